// `nibble eval`: perplexity of a model on a text, and how far its distribution is from a
// reference's.
//
// Windows as llama-perplexity has them: the text's tokens in consecutive windows of N, each on its
// own; BOS in the place of a window's first token when the model wants one; the second half scored.
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/cli.h"

// Sums over scored tokens, in double.
struct score {
    size_t n;
    double nll, nll2; // of the model: sums of -log P and of its square
    double kld, kld_max;
    size_t same_top;
    double *kld_each; // room for every scored token
};

struct eval {
    struct common common;
    const char *text_file, *reference;
    struct nibble_load_options how; // of a file
    uint32_t window, max_windows;
    int32_t *tokens;
    size_t n_tokens, n_windows;
    struct score score;
};

// A row's log-partition and its top token.
static double log_sum_exp(const float *logits, size_t vocab, size_t *ret_top)
{
    size_t top = 0;
    for (size_t i = 1; i < vocab; i++)
        if (logits[i] > logits[top])
            top = i;
    double sum = 0;
    for (size_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - (double)logits[top]);
    *ret_top = top;
    return (double)logits[top] + log(sum);
}

struct window {
    struct eval *eval;
    const int32_t *tokens;
    size_t first;
    float *reference; // rows of the reference, from `first` on; NULL without one
};

static int keep_row(void *user, size_t position, const float *logits, size_t vocab)
{
    const struct window *w = user;
    if (position + 1 < w->eval->window)
        memcpy(w->reference + (position - w->first) * vocab, logits, vocab * sizeof *logits);
    return 0;
}

static void add_divergence(struct score *s, const float *p, double p_log, const float *q,
                           double q_log, size_t vocab)
{
    double kld = 0;
    for (size_t i = 0; i < vocab; i++) {
        double log_p = (double)p[i] - p_log;
        kld += exp(log_p) * (log_p - ((double)q[i] - q_log));
    }
    kld = fmax(kld, 0); // rounding
    s->kld_each[s->n] = kld;
    s->kld += kld;
    s->kld_max = fmax(s->kld_max, kld);
}

static int score_row(void *user, size_t position, const float *logits, size_t vocab)
{
    const struct window *w = user;
    struct score *s = &w->eval->score;
    if (position + 1 >= w->eval->window)
        return 0; // the last row predicts a token of the next window
    size_t top, reference_top;
    double norm = log_sum_exp(logits, vocab, &top);
    if (w->reference) {
        const float *p = w->reference + (position - w->first) * vocab;
        double p_norm = log_sum_exp(p, vocab, &reference_top);
        add_divergence(s, p, p_norm, logits, norm, vocab);
        s->same_top += top == reference_top;
    }
    double nll = norm - (double)logits[w->tokens[position + 1]];
    s->nll += nll;
    s->nll2 += nll * nll;
    s->n++;
    return 0;
}

static int eval_windows(struct eval *e, nibble_session *model, nibble_session *reference)
{
    size_t vocab = nibble_session_model(model)->vocab, rows = e->window - e->window / 2;
    struct window w = {.eval = e, .first = e->window / 2};
    e->score.kld_each = cli_alloc(e->n_windows * rows, sizeof *e->score.kld_each);
    int r = 0;
    if (reference && !(w.reference = malloc(rows * vocab * sizeof *w.reference)))
        return cli_error("no memory for %s of reference logits; use a smaller --ctx",
                         cli_bytes(rows * vocab * 4));
    for (size_t i = 0; i < e->n_windows && r == 0; i++) {
        w.tokens = e->tokens + i * e->window;
        if (reference)
            r = nibble_logits(reference, w.tokens, e->window, w.first, keep_row, &w);
        if (r == 0)
            r = nibble_logits(model, w.tokens, e->window, w.first, score_row, &w);
        cli_progress("evaluating", i + 1, e->n_windows);
    }
    free(w.reference);
    return r;
}

// The text's tokens and the number of windows; each window's first is BOS if the model asks.
static int read_tokens(struct eval *e, nibble *connection, const char *model, const char *text,
                       size_t len)
{
    int32_t bos[4];
    nibble_session *session = cli_session(connection, model, len + 4 * (len + 16) + 65536);
    if (!session)
        return CLI_FAILED;
    int n_bos = nibble_tokenize(session, "", 0, NIBBLE_TOKENIZE_BOS, bos, 4);
    int n = n_bos < 0 ? n_bos : nibble_tokenize(session, text, len, 0, e->tokens, len + 16);
    uint32_t context = nibble_session_model(session)->context;
    nibble_session_close(session);
    if (n < 0)
        return cli_failed(connection, model, n);
    if (e->window > context)
        return cli_usage_error("--ctx %u: the model's context is %u", e->window, context);
    e->n_tokens = (size_t)n;
    e->n_windows = e->n_tokens / e->window;
    if (e->max_windows && e->n_windows > e->max_windows)
        e->n_windows = e->max_windows;
    if (!e->n_windows)
        return cli_error("%s has %d tokens, less than one window of %u", e->text_file, n,
                         e->window);
    for (size_t i = 0; i < e->n_windows && n_bos == 1; i++)
        e->tokens[i * e->window] = bos[0];
    return CLI_OK;
}

static int print_result(struct eval *e)
{
    struct score *s = &e->score;
    double mean = s->nll / (double)s->n, ppl = exp(mean);
    double variance = s->nll2 / (double)s->n - mean * mean;
    double error = s->n > 1 ? ppl * sqrt(fmax(variance, 0) / (double)(s->n - 1)) : 0;
    json_t *object = json_pack("{s:f, s:f, s:I, s:I}", "perplexity", ppl, "stderr", error, "tokens",
                               (json_int_t)s->n, "windows", (json_int_t)e->n_windows);
    if (e->reference) {
        qsort(s->kld_each, s->n, sizeof *s->kld_each, cli_compare_doubles);
        double p99 = s->kld_each[(size_t)(0.99 * (double)(s->n - 1))];
        json_object_set_new(object, "kld_mean", json_real(s->kld / (double)s->n));
        json_object_set_new(object, "kld_99", json_real(p99));
        json_object_set_new(object, "kld_max", json_real(s->kld_max));
        json_object_set_new(object, "top1", json_real((double)s->same_top / (double)s->n));
    }
    const char *key;
    json_t *value;
    if (e->common.json) {
        json_dumpf(object, stdout, JSON_COMPACT);
        putchar('\n');
    } else {
        json_object_foreach(object, key, value)
            printf("%-12s %.6g\n", key, json_number_value(value));
    }
    json_decref(object);
    return CLI_OK;
}

static int eval_models(struct eval *e, nibble *connection, const char *name,
                       const char *reference_name)
{
    // Room for 16 rows of logits in the channel; the library divides a window accordingly.
    uint64_t arena = 32u << 20;
    nibble_session *model = cli_session(connection, name, arena), *reference = NULL;
    int status = model ? CLI_OK : CLI_FAILED;
    if (model && reference_name) {
        reference = cli_session(connection, reference_name, arena);
        if (!reference)
            status = CLI_FAILED;
        else if (nibble_session_model(reference)->vocab != nibble_session_model(model)->vocab)
            status = cli_error("%s and the reference %s have different vocabularies", name,
                               reference_name);
    }
    if (status == CLI_OK) {
        const struct nibble_model was = *nibble_session_model(model);
        int r = eval_windows(e, model, reference);
        status = r != 0 ? cli_failed(connection, "eval", r) : cli_stayed(model, was.device);
    }
    nibble_session_close(reference);
    nibble_session_close(model);
    return status == CLI_OK ? print_result(e) : status;
}

static int eval_text(struct eval *e, const char *model, const char *text, size_t len)
{
    struct loaded subject = {0}, reference = {0};
    nibble *connection = NULL;
    e->tokens = cli_alloc(len + 16, sizeof *e->tokens);
    const struct nibble_load_options how = {
        .precision = e->reference && !access(e->reference, R_OK) ? "exact" : NULL};
    int status = cli_model_or_file(&e->common, model, &e->how, &subject);
    if (status == CLI_OK && e->reference)
        status = cli_model_or_file(&e->common, e->reference, &how, &reference);
    if (status == CLI_OK && !(connection = cli_connect(&e->common)))
        status = CLI_FAILED;
    if (status == CLI_OK)
        status = read_tokens(e, connection, subject.name, text, len);
    if (status == CLI_OK)
        status = eval_models(e, connection, subject.name, e->reference ? reference.name : NULL);
    nibble_close(connection);
    cli_model_release(&reference);
    cli_model_release(&subject);
    free(e->tokens);
    free(e->score.kld_each);
    return status;
}

int verb_eval(const struct verb *verb, int argc, char **argv)
{
    struct eval e = {.window = 512};
    const struct option_spec specs[] = {
        {"text", 't', OPTION_STRING, &e.text_file, "FILE",
         "the text (required; -: standard input)"},
        {"ctx", 'c', OPTION_UINT, &e.window, "N", "tokens of a window (default: 512)"},
        {"windows", 'w', OPTION_UINT, &e.max_windows, "M",
         "windows at most (default: the whole text)"},
        {"reference", 'r', OPTION_STRING, &e.reference, "NAME|FILE",
         "also KL divergence from this model"},
        {"precision", 0, OPTION_STRING, &e.how.precision, "P",
         "fast, balanced or exact, for a FILE (references: exact)"},
        {"device", 0, OPTION_STRING, &e.how.device, "D",
         "the device, for a FILE (default, and for references: cpu)"},
        {"kv-type", 0, OPTION_STRING, &e.how.kv_type, "T",
         "of its KV cache, for a FILE: f16 (default, and of references) or q8_0"},
        {0},
    };
    char **args;
    int n = cli_parse(verb, specs, &e.common, argc, argv, 1, 1, &args);
    if (n < 0)
        return CLI_EXIT(n);
    if (!e.text_file)
        return cli_usage_error("--text FILE is required");
    if (e.window < 4)
        return cli_usage_error("--ctx %u: a window has at least 4 tokens", e.window);
    size_t len = 0;
    char *text = cli_read_file(e.text_file, &len);
    int status = text ? eval_text(&e, args[0], text, len) : CLI_FAILED;
    free(text);
    return status;
}
