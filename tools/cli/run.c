// `nibble run`: one answer to a prompt, or a chat. Standard output carries the answers alone.
#include <editline/readline.h>
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/cli.h"

struct run {
    struct common common;
    struct nibble_generate_options generate;
    const char *system;
    const char *stop;
    bool raw, verbose;
    nibble *connection;
    nibble_session *session;
};

// An answer as it grows.
struct answer {
    bool quiet; // gathered for --json, not printed
    char *text;
    size_t len, room;
    int error;
    enum nibble_finish finish;
    struct nibble_timings timings;
};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal)
{
    interrupted = signal;
}

static void append(struct answer *a, const char *text, size_t len)
{
    if (a->len + len + 1 > a->room) {
        size_t room = 2 * (a->len + len + 1);
        char *grown = realloc(a->text, room);
        if (!grown) {
            a->error = -ENOMEM;
            return;
        }
        a->text = grown;
        a->room = room;
    }
    memcpy(a->text + a->len, text, len);
    a->len += len;
    a->text[a->len] = '\0';
}

static void on_event(nibble_job *job, const struct nibble_event *event, void *user)
{
    struct answer *a = user;
    if (event->type == NIBBLE_EVENT_TOKEN && event->text_len) {
        append(a, event->text, event->text_len);
        if (!a->quiet) {
            fwrite(event->text, 1, event->text_len, stdout);
            fflush(stdout);
        }
    } else if (event->type == NIBBLE_EVENT_PREFILL && event->total >= 1024) {
        cli_progress("reading the prompt", event->done, event->total);
    } else if (event->type == NIBBLE_EVENT_MOVED && event->device) {
        fprintf(stderr,
                "%snibble: the model has moved to device %s, which answers from here on; "
                "`nibble devices` says why\n",
                a->len && !a->quiet ? "\n" : "", event->device);
    } else if (event->type == NIBBLE_EVENT_MOVED && isatty(STDERR_FILENO)) {
        fputs("\n[the worker died; another one goes on]\n", stderr);
    } else if (event->type == NIBBLE_EVENT_DONE) {
        a->finish = event->finish;
        a->timings = event->timings;
    }
}

// Runs one job to its end; an interrupt cancels it.
static int answer_prompt(struct run *run, const struct nibble_prompt *prompt, struct answer *a)
{
    nibble_job *job = NULL;
    bool cancelled = false;
    int r = nibble_generate(run->session, prompt, &run->generate, on_event, a, &job);
    interrupted = 0;
    while (r >= 0 && a->finish == NIBBLE_FINISH_NONE) {
        r = nibble_dispatch(run->connection, cancelled ? -1 : 200);
        if (r == -EINTR)
            r = 0;
        if (interrupted && !cancelled) {
            nibble_job_cancel(job);
            cancelled = true;
        }
    }
    if (r >= 0)
        r = nibble_job_wait(job);
    nibble_job_free(job);
    return r;
}

static double per_second(uint32_t tokens, uint64_t ns)
{
    return ns ? 1e9 * tokens / (double)ns : 0;
}

static const char *finish_name(enum nibble_finish finish)
{
    static const char *const names[] = {"none", "eos", "stop", "length", "context", "error"};
    return names[finish];
}

static int print_json(const struct run *run, const struct answer *a)
{
    const struct nibble_timings *t = &a->timings;
    const int32_t *log;
    size_t n = nibble_session_tokens(run->session, &log);
    json_t *tokens = json_array();
    for (size_t i = n - (t->generated_tokens < n ? t->generated_tokens : n); i < n; i++)
        json_array_append_new(tokens, json_integer(log[i]));
    uint32_t computed = t->prompt_tokens - t->cached_tokens;
    json_t *object =
        json_pack("{s:s, s:o, s:s, s:{s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f}}", "text",
                  a->text ? a->text : "", "tokens", tokens, "finish", finish_name(a->finish),
                  "timings", "prompt_tokens", (int)t->prompt_tokens, "cached_tokens",
                  (int)t->cached_tokens, "generated_tokens", (int)t->generated_tokens, "queue_ms",
                  (double)t->queue_ns / 1e6, "prefill_ms", (double)t->prefill_ns / 1e6, "decode_ms",
                  (double)t->decode_ns / 1e6, "prefill_tps", per_second(computed, t->prefill_ns),
                  "decode_tps", per_second(t->generated_tokens, t->decode_ns));
    int r = object ? json_dumpf(object, stdout, JSON_COMPACT) : -1;
    json_decref(object);
    putchar('\n');
    return r < 0 ? cli_error("cannot print JSON: out of memory") : CLI_OK;
}

static int finish_answer(struct run *run, struct answer *a, int r)
{
    if (!a->quiet && (r >= 0 || a->len))
        putchar('\n');
    if (r < 0)
        return cli_failed(run->connection, "run", r);
    if (a->error)
        return cli_error("%s", strerror(-a->error));
    if (run->common.json)
        return print_json(run, a);
    if (run->verbose)
        fprintf(
            stderr, "[%u prompt tokens (%u cached), %.0f/s; %u generated, %.0f/s; %s]\n",
            a->timings.prompt_tokens, a->timings.cached_tokens,
            per_second(a->timings.prompt_tokens - a->timings.cached_tokens, a->timings.prefill_ns),
            a->timings.generated_tokens,
            per_second(a->timings.generated_tokens, a->timings.decode_ns), finish_name(a->finish));
    return CLI_OK;
}

static int run_once(struct run *run, const char *text, size_t len)
{
    struct nibble_message messages[2] = {{"system", run->system}, {"user", text}};
    struct nibble_prompt prompt = {.text = text, .text_len = len};
    if (!run->raw)
        prompt = (struct nibble_prompt){.messages = messages + !run->system,
                                        .n_messages = 1 + !!run->system};
    struct answer a = {.quiet = run->common.json};
    int r = answer_prompt(run, &prompt, &a);
    int status = finish_answer(run, &a, r);
    free(a.text);
    return status;
}

// The conversation so far. Contents are owned.
struct chat {
    struct nibble_message *messages;
    size_t n;
};

static int chat_add(struct chat *chat, const char *role, const char *content)
{
    struct nibble_message *grown = realloc(chat->messages, (chat->n + 1) * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    chat->messages = grown;
    char *copy = strdup(content);
    if (!copy)
        return -ENOMEM;
    chat->messages[chat->n].role = role;
    chat->messages[chat->n++].content = copy;
    return 0;
}

static char *read_turn(void)
{
    char *line = NULL;
    size_t room = 0;
    if (isatty(STDIN_FILENO)) {
        line = readline("> ");
        if (line && *line)
            add_history(line);
        return line;
    }
    ssize_t n = getline(&line, &room, stdin);
    if (n < 0) {
        free(line);
        return NULL;
    }
    line[strcspn(line, "\n")] = '\0';
    return line;
}

static int chat_turn(struct run *run, struct chat *chat, const char *line)
{
    if (chat_add(chat, "user", line) < 0)
        return cli_error("out of memory");
    struct answer a = {.quiet = run->common.json};
    int r = answer_prompt(
        run, &(struct nibble_prompt){.messages = chat->messages, .n_messages = chat->n}, &a);
    bool cancelled = r == NIBBLE_E_CANCELLED;
    int status = finish_answer(run, &a, cancelled ? 0 : r);
    if (status == CLI_OK && chat_add(chat, "assistant", a.text ? a.text : "") < 0)
        status = cli_error("out of memory");
    free(a.text);
    return status;
}

static int run_chat(struct run *run)
{
    struct chat chat = {0};
    char *line;
    int status = run->system && chat_add(&chat, "system", run->system) < 0 ? CLI_FAILED : CLI_OK;
    while (status == CLI_OK && (line = read_turn())) {
        if (*line)
            status = chat_turn(run, &chat, line);
        free(line);
    }
    for (size_t i = 0; i < chat.n; i++)
        free((char *)chat.messages[i].content);
    free(chat.messages);
    return status;
}

static int run_prompt(struct run *run, const char *name, const char *prompt)
{
    size_t len = 0;
    char *text = NULL;
    if (prompt && !(text = strcmp(prompt, "-") ? strdup(prompt) : cli_read_file("-", &len)))
        return CLI_FAILED;
    if (text && !len)
        len = strlen(text);
    run->connection = cli_connect(&run->common);
    run->session =
        run->connection ? cli_session(run->connection, name, len > (1 << 19) ? 8 * len : 0) : NULL;
    int status = CLI_FAILED;
    if (run->session)
        status = text ? run_once(run, text, len) : run_chat(run);
    nibble_session_close(run->session);
    nibble_close(run->connection);
    free(text);
    return status;
}

int verb_run(const struct verb *verb, int argc, char **argv)
{
    struct run run = {0};
    struct nibble_sampling *s = &run.generate.sampling;
    nibble_generate_options_init(&run.generate);
    const struct option_spec specs[] = {
        {"max-tokens", 'n', OPTION_UINT, &run.generate.max_tokens, "N",
         "tokens at most (default: to the end)"},
        {"temp", 0, OPTION_FLOAT, &s->temperature, "T",
         "temperature; 0, the default, takes the likeliest token"},
        {"top-k", 0, OPTION_UINT, &s->top_k, "K", "choose among the K likeliest (0: all)"},
        {"top-p", 0, OPTION_FLOAT, &s->top_p, "P",
         "choose among the likeliest that sum to P (1: all)"},
        {"min-p", 0, OPTION_FLOAT, &s->min_p, "P",
         "choose among those P times as likely as the likeliest (0: all)"},
        {"repeat-penalty", 0, OPTION_FLOAT, &s->repeat_penalty, "R",
         "make recent tokens less likely (1: off)"},
        {"repeat-window", 0, OPTION_UINT, &s->repeat_window, "N", "how many tokens are recent"},
        {"seed", 0, OPTION_U64, &s->seed, "SEED",
         "same prompt, options and seed: same answer (default: 0)"},
        {"stop", 0, OPTION_STRING, &run.stop, "TEXT", "end before this text"},
        {"system", 0, OPTION_STRING, &run.system, "TEXT", "the system message"},
        {"raw", 0, OPTION_FLAG, &run.raw, NULL, "no chat template: go on from the prompt as it is"},
        {"ignore-eos", 0, OPTION_FLAG, &run.generate.ignore_eos, NULL,
         "go on past the end of the text"},
        {"verbose", 'v', OPTION_FLAG, &run.verbose, NULL, "timings on standard error"},
        {0},
    };
    char **args;
    int n = cli_parse(verb, specs, &run.common, argc, argv, 1, 2, &args);
    if (n < 0)
        return CLI_EXIT(n);
    if (n == 1 && run.raw)
        return cli_usage_error("--raw needs a PROMPT: a chat goes by the model's template");
    if (run.raw && run.system)
        return cli_usage_error("--system goes into the chat template, which --raw leaves out");
    run.generate.stop = &run.stop;
    run.generate.n_stop = !!run.stop;
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    return run_prompt(&run, args[0], n == 2 ? args[1] : NULL);
}
