// A chat on the terminal: turns, and what can be done when the context is full. The conversation is
// kept whatever becomes of an answer.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli/run.h"
#include "tools/cli/terminal.h"

struct command {
    const char *name, *help;
    void (*run)(struct run *run); // NULL: the chat ends
};

static void run_help(struct run *run);

static void run_forget(struct run *run)
{
    fputs(conversation_forget(&run->conversation) ? "[the oldest turn is forgotten]\n"
                                                  : "[nothing is left to forget]\n",
          stderr);
}

static void run_clear(struct run *run)
{
    while (conversation_forget(&run->conversation))
        ;
    fputs("[the conversation begins anew]\n", stderr);
}

static const struct command commands[] = {
    {"/forget", "forget the oldest message and its answer", run_forget},
    {"/clear", "begin anew", run_clear},
    {"/help", "list these", run_help},
    {"/bye", "end the chat, as Ctrl-D does", NULL},
};
#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void run_help(struct run *run)
{
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(stderr, "  %-8s %s\n", commands[i].name, commands[i].help);
    fputs("  Ctrl-C cancels an answer, or clears the line\n", stderr);
}

static const struct command *find_command(const char *line)
{
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (!strcmp(line, commands[i].name))
            return &commands[i];
    return NULL;
}

static void offer_room(const struct run *run)
{
    fprintf(stderr,
            "[the context of %s has %u tokens; the conversation is kept: /forget drops its oldest "
            "turn, /clear begins anew, and `nibble load --context N` gives a model more]\n",
            nibble_session_model(run->session)->name, nibble_session_model(run->session)->context);
}

// What was not answered is taken back, so that the next message does not follow it. The chat goes
// on while there is somebody to talk to.
static int give_up_turn(struct run *run, struct answer *a, int rc)
{
    static const int ends[] = {NIBBLE_E_CLOSED, NIBBLE_E_PROTOCOL, NIBBLE_E_NO_MODEL,
                               NIBBLE_E_LOST};
    conversation_take_back(&run->conversation);
    int status = answer_end(run, a, rc);
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        if (rc == ends[i] || a->error)
            return status;
    if (rc == NIBBLE_E_CONTEXT)
        offer_room(run);
    return CLI_OK;
}

static int chat_turn(struct run *run, const char *line)
{
    struct conversation *c = &run->conversation;
    int status = conversation_add(c, "user", line, NULL);
    if (status != CLI_OK)
        return status;
    const struct nibble_chat chat = conversation_chat(c);
    struct answer a = {0};
    int rc = answer_run(
        run, &(struct nibble_prompt){.size = sizeof(struct nibble_prompt), .chat = &chat}, &a);
    if (rc < 0 && rc != NIBBLE_E_CANCELLED) {
        status = give_up_turn(run, &a, rc);
    } else {
        status = answer_end(run, &a, 0);
        if (status == CLI_OK)
            status = conversation_add(c, "assistant", a.content.data ? a.content.data : "",
                                      a.reasoning.data);
        if (a.finish == NIBBLE_FINISH_CONTEXT)
            offer_room(run);
    }
    answer_finish(&a);
    return status;
}

int chat_run(struct run *run)
{
    struct terminal *terminal = terminal_create();
    int status = terminal ? CLI_OK : CLI_FAILED;
    char *line;
    answer_catch_interrupts();
    while (status == CLI_OK && (line = terminal_read(terminal))) {
        const struct command *command = find_command(line);
        if (command && command->run)
            command->run(run);
        else if (!command && *line)
            status = chat_turn(run, line);
        free(line);
        if (command && !command->run)
            break;
    }
    terminal_destroy(terminal);
    return status;
}
