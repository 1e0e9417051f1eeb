// One answer: its text on standard output as it comes, how it ended on standard error. Knows
// nothing of where the prompt came from.
#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/run.h"

#define DIM_ON  "\033[2m"
#define DIM_OFF "\033[22m"

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal)
{
    interrupted = signal;
}

void answer_catch_interrupts(void)
{
    sigaction(SIGINT, &(struct sigaction){.sa_handler = on_interrupt}, NULL);
}

// What the callback of a job needs.
struct watch {
    const struct run *run;
    struct answer *answer;
    bool reasoned; // the last text was reasoning
    bool begun;    // something is shown
};

static int append(struct text *t, const char *data, size_t len)
{
    if (t->len + len + 1 > t->room) {
        size_t room = 2 * (t->len + len + 1);
        char *grown = realloc(t->data, room);
        if (!grown)
            return -ENOMEM;
        t->data = grown;
        t->room = room;
    }
    memcpy(t->data + t->len, data, len);
    t->len += len;
    t->data[t->len] = '\0';
    return 0;
}

// Reasoning is dimmed on a terminal, and elsewhere left out unless it was asked for.
static bool hides_reasoning(const struct run *run)
{
    return !isatty(STDOUT_FILENO) && !run->show_thinking;
}

static void show(struct watch *w, const char *text, size_t len, bool reasoning)
{
    bool terminal = isatty(STDOUT_FILENO);
    if (w->run->common.json || (reasoning && hides_reasoning(w->run)))
        return;
    if (terminal && w->reasoned != reasoning)
        fputs(reasoning ? DIM_ON : "\n" DIM_OFF, stdout);
    w->reasoned = reasoning;
    w->begun = true;
    if (fwrite(text, 1, len, stdout) < len || fflush(stdout) == EOF) {
        w->answer->error = -EIO;
        cli_streams_failed(errno);
    }
}

static void on_token(struct watch *w, const struct nibble_event *event)
{
    struct answer *a = w->answer;
    bool reasoning = event->reasoning != 0;
    const char *text = event->text;
    size_t len = event->text_len;
    // The space between reasoning and answer is neither's.
    for (; !reasoning && a->reasoning.len && !a->content.len && len && isspace(*text); len--)
        text++;
    if (!len)
        return;
    if (append(reasoning ? &a->reasoning : &a->content, text, len) < 0)
        a->error = -ENOMEM;
    else
        show(w, text, len, reasoning);
}

static void on_moved(const struct watch *w, const struct nibble_event *event)
{
    if (event->device)
        fprintf(stderr,
                "%snibble: the model has moved to device %s, which answers from here on; "
                "`nibble devices` says why\n",
                w->begun ? "\n" : "", event->device);
    else if (isatty(STDERR_FILENO))
        fputs("\n[the worker died; another one goes on]\n", stderr);
}

static void on_event(nibble_job *job, const struct nibble_event *event, void *user)
{
    struct watch *w = user;
    if (event->type == NIBBLE_EVENT_TOKEN && event->text_len) {
        on_token(w, event);
    } else if (event->type == NIBBLE_EVENT_PREFILL && event->total >= 1024) {
        cli_progress("reading the prompt", event->done, event->total);
    } else if (event->type == NIBBLE_EVENT_MOVED) {
        on_moved(w, event);
    } else if (event->type == NIBBLE_EVENT_DONE) {
        w->answer->finish = event->finish;
        w->answer->timings = event->timings;
        nibble_job_drafts(job, &w->answer->proposed, &w->answer->accepted);
    }
}

int answer_run(struct run *run, const struct nibble_prompt *prompt, struct answer *ret)
{
    struct watch w = {.run = run, .answer = ret};
    nibble_job *job = NULL;
    interrupted = 0;
    int rc = nibble_generate(run->session, prompt, &run->generate, on_event, &w, &job);
    while (rc >= 0 && ret->finish == NIBBLE_FINISH_NONE) {
        rc = nibble_dispatch(run->connection, ret->cancelled ? -1 : 200);
        if (rc == -EINTR)
            rc = 0;
        if ((interrupted || ret->error) && !ret->cancelled) {
            nibble_job_cancel(job);
            ret->cancelled = true;
        }
    }
    if (rc >= 0)
        rc = nibble_job_wait(job);
    nibble_job_free(job);
    if (w.reasoned && isatty(STDOUT_FILENO))
        fputs(DIM_OFF, stdout);
    if (w.begun)
        putchar('\n');
    fflush(stdout);
    return rc;
}

static double per_second(uint32_t tokens, uint64_t ns)
{
    return ns ? 1e9 * tokens / (double)ns : 0;
}

// One token comes with the prompt: no time goes by that a rate could be told of.
static double decode_rate(const struct nibble_timings *t)
{
    return t->generated_tokens > 1 ? per_second(t->generated_tokens, t->decode_ns) : 0;
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
        json_pack("{s:s, s:s*, s:o, s:s, s:{s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f}}",
                  "text", a->content.data ? a->content.data : "", "reasoning", a->reasoning.data,
                  "tokens", tokens, "finish", finish_name(a->finish), "timings", "prompt_tokens",
                  (int)t->prompt_tokens, "cached_tokens", (int)t->cached_tokens, "generated_tokens",
                  (int)t->generated_tokens, "proposed_tokens", (int)a->proposed, "accepted_tokens",
                  (int)a->accepted, "queue_ms", (double)t->queue_ns / 1e6, "prefill_ms",
                  (double)t->prefill_ns / 1e6, "decode_ms", (double)t->decode_ns / 1e6,
                  "prefill_tps", per_second(computed, t->prefill_ns), "decode_tps", decode_rate(t));
    return cli_print_json(object, JSON_COMPACT);
}

static void print_timings(const struct answer *a)
{
    const struct nibble_timings *t = &a->timings;
    char rate[40] = "", drafts[64] = "";
    if (decode_rate(t) > 0)
        snprintf(rate, sizeof(rate), ", %.0f/s", decode_rate(t));
    if (a->proposed)
        snprintf(drafts, sizeof(drafts), ", %u of %u proposed", a->accepted, a->proposed);
    fprintf(stderr, "[%u prompt tokens (%u cached), %.0f/s; %u generated%s%s; %s]\n",
            t->prompt_tokens, t->cached_tokens,
            per_second(t->prompt_tokens - t->cached_tokens, t->prefill_ns), t->generated_tokens,
            rate, drafts, finish_name(a->finish));
}

// An answer that did not end by itself says so, where no program reads it.
static void mark_cut(const struct run *run, const struct answer *a)
{
    if (a->cancelled)
        fputs("[cancelled]\n", stderr);
    else if (a->finish == NIBBLE_FINISH_LENGTH)
        fprintf(stderr, "[cut at the limit of %u tokens]\n", run->generate.max_tokens);
    else if (a->finish == NIBBLE_FINISH_CONTEXT)
        fprintf(stderr, "[cut: the context of %u tokens is full]\n",
                nibble_session_model(run->session)->context);
}

int answer_end(struct run *run, const struct answer *a, int rc)
{
    if (a->error == -ENOMEM)
        return cli_error("out of memory");
    if (a->error)
        return CLI_FAILED; // of stdout: said once, when it is closed
    if (rc < 0)
        return cli_failed(run->connection, "run", rc);
    if (run->common.json)
        return print_json(run, a);
    mark_cut(run, a);
    if (a->reasoning.len && !a->content.len && !a->cancelled && hides_reasoning(run))
        fputs("[only reasoning came, and no answer: --show-thinking prints it]\n", stderr);
    if (run->verbose)
        print_timings(a);
    return CLI_OK;
}

void answer_finish(struct answer *a)
{
    free(a->content.data);
    free(a->reasoning.data);
    *a = (struct answer){0};
}
