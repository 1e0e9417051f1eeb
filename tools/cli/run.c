// `nibble run`: one answer to a prompt, or a chat. Standard output carries the answers alone.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/run.h"
#include "tools/cli/terminal.h"

#define STOP_MAX          16
#define REPEAT_WINDOW_MAX 4096
#define CHAT_ROOM         (16u << 20) // shared memory for a conversation as it grows

// A text as it is, or NULL: the conversation.
static int run_once(struct run *run, const char *text, size_t len)
{
    const struct nibble_chat chat = conversation_chat(&run->conversation);
    struct nibble_prompt prompt = {.size = sizeof(prompt), .text = text, .text_len = len};
    if (!text)
        prompt = (struct nibble_prompt){.size = sizeof(prompt), .chat = &chat};
    struct answer a = {0};
    answer_catch_interrupts();
    int rc = answer_run(run, &prompt, &a);
    int status = answer_end(run, &a, rc);
    answer_finish(&a);
    return status;
}

static int run_model(struct run *run, const char *name, const char *text, size_t len, bool chat)
{
    uint64_t room = text ? cli_room(len) : chat ? CHAT_ROOM : conversation_room(&run->conversation);
    int status = CLI_FAILED;
    run->connection = cli_connect(&run->common);
    const char *adapter = run->adapter_name ? run->adapter : NULL;
    run->session =
        run->connection ? cli_session(run->connection, name, adapter, room, run->drafts) : NULL;
    if (run->session)
        status = text ? CLI_OK
                      : conversation_check(&run->conversation, nibble_session_model(run->session));
    if (status == CLI_OK)
        status = chat ? chat_run(run) : run_once(run, text, len);
    nibble_session_close(run->session);
    nibble_close(run->connection);
    return status;
}

static int run_prompt(struct run *run, const char *name, const char *prompt)
{
    bool chat = !prompt && !run->about.messages_file && terminal_is_there();
    size_t len = 0;
    char *text = NULL;
    int status = conversation_init(&run->conversation, &run->about);
    if (status == CLI_OK && !chat)
        status = prompt_read(prompt, &run->about, &text, &len);
    if (status == CLI_OK && !chat && !text && !run->about.messages_file)
        status = cli_error("there is no PROMPT, and standard input is empty");
    if (status == CLI_OK && text && !run->raw)
        status = conversation_add(&run->conversation, "user", text, NULL);
    if (status == CLI_OK)
        status = run_model(run, name, run->raw ? text : NULL, len, chat);
    conversation_finish(&run->conversation);
    free(text);
    return status;
}

static int read_drafts(struct run *run)
{
    static const char *const names[] = {[NIBBLE_DRAFTS_MEASURED] = "measured",
                                        [NIBBLE_DRAFTS_OFF] = "off",
                                        [NIBBLE_DRAFTS_ALWAYS] = "always"};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (!run->drafts_name || !strcmp(run->drafts_name, names[i])) {
            run->drafts = (enum nibble_drafts)i;
            return CLI_OK;
        }
    return cli_usage_error("--drafts is measured, off or always");
}

static int check_options(const struct run *run, const char *prompt)
{
    const struct conversation_options *about = &run->about;
    if (run->raw && !prompt && terminal_is_there())
        return cli_usage_error("--raw needs a PROMPT: a chat goes by the model's template");
    if (run->raw && (about->system || about->messages_file || about->tools_file ||
                     about->documents_file || about->template_file || about->variables.n))
        return cli_usage_error("--system, --messages, --tools, --documents, --template and "
                               "--template-var go into the chat template, which --raw leaves out");
    for (size_t i = 0; i < run->stop.n; i++)
        if (!*run->stop.items[i])
            return cli_usage_error("--stop: an empty text stops nothing");
    return prompt_check(prompt, about);
}

int verb_run(const struct verb *verb, int argc, char **argv)
{
    struct run run = {.about.has_raw = true};
    struct nibble_sampling *s = &run.generate.sampling;
    nibble_generate_options_init(&run.generate, sizeof(run.generate));
    const struct option_spec specs[] = {
        {"adapter", 0, OPTION_STRING, &run.adapter_name, "NAME",
         "with this adapter of the model (nibble load --base)"},
        {"max-tokens", 'n', OPTION_UINT(0, UINT32_MAX), &run.generate.max_tokens, "N",
         "tokens at most (default, and 0: to the end)"},
        {"temp", 0, OPTION_FLOAT(0, 100), &s->temperature, "T",
         "temperature; 0, the default, takes the likeliest token"},
        {"top-k", 0, OPTION_UINT(0, UINT32_MAX), &s->top_k, "K",
         "choose among the K likeliest (0: all)"},
        {"top-p", 0, OPTION_FLOAT(0.0001, 1), &s->top_p, "P",
         "choose among the likeliest that sum to P (1: all)"},
        {"min-p", 0, OPTION_FLOAT(0, 1), &s->min_p, "P",
         "choose among those P times as likely as the likeliest (0: all)"},
        {"repeat-penalty", 0, OPTION_FLOAT(0.01, 100), &s->repeat_penalty, "R",
         "make recent tokens less likely (1: off)"},
        {"repeat-window", 0, OPTION_UINT(0, REPEAT_WINDOW_MAX), &s->repeat_window, "N",
         "how many tokens are recent"},
        {"seed", 0, OPTION_U64, &s->seed, "SEED",
         "same prompt, options and seed: same answer (default: 0)"},
        {"stop", 0, OPTION_LIST(STOP_MAX), &run.stop, "TEXT",
         "end before this text; up to 16 of them"},
        CONVERSATION_OPTIONS(&run.about),
        {"raw", 0, OPTION_FLAG, &run.raw, NULL, "no chat template: go on from the prompt as it is"},
        {"show-thinking", 0, OPTION_FLAG, &run.show_thinking, NULL,
         "print the model's reasoning also where no terminal is"},
        {"ignore-eos", 0, OPTION_FLAG, &run.generate.ignore_eos, NULL,
         "go on past the end of the text"},
        {"drafts", 0, OPTION_STRING, &run.drafts_name, "WHEN",
         "verify proposed tokens, several at once: measured (default: where it is faster), off, "
         "always; the answer is the same"},
        {"verbose", 'v', OPTION_FLAG, &run.verbose, NULL, "timings on standard error"},
        {0},
    };
    char **args, name[CLI_NAME_SIZE];
    int n = cli_parse(verb, specs, &run.common, argc, argv, 1, 2, &args);
    if (n < 0)
        return CLI_EXIT(n);
    const char *prompt = n == 2 ? args[1] : NULL;
    int status = check_options(&run, prompt);
    if (status == CLI_OK)
        status = read_drafts(&run);
    if (status == CLI_OK)
        status = cli_name(args[0], name);
    if (status == CLI_OK && run.adapter_name)
        status = cli_name(run.adapter_name, run.adapter);
    if (status != CLI_OK)
        return status;
    run.generate.stop = run.stop.items;
    run.generate.n_stop = run.stop.n;
    return run_prompt(&run, name, prompt);
}
