// Perplexity of a model on texts, and KL divergence from a reference.
//
// Windows as llama-perplexity has them: a text's tokens in consecutive windows of N, each on its
// own; BOS in the place of a window's first token when the model wants one; the second half scored.
// A window is one observation of every interval, because its tokens depend on each other.
#include "tools/cli/eval/scoring.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NOT_FINITE 1 // what a row's function returns then

struct divergence {
    double kld;
    uint32_t window;
};

// A text's scores, or those of several texts one after the other. Windows have one size, so the
// mean of their means is the mean of the tokens.
struct scores {
    size_t n_windows, n_tokens;
    double *nll, *reference_nll, *kld, *top; // means of each window; top: the share of equal ones
    struct divergence *each;                 // of every token
};

struct window {
    struct scores *scores;
    const int32_t *tokens;
    size_t first, size;
    float *reference; // rows of the reference, from `first` on; NULL without one
};

static struct scores scores_create(size_t windows, size_t rows)
{
    return (struct scores){.nll = cli_alloc(windows, sizeof(double)),
                           .reference_nll = cli_alloc(windows, sizeof(double)),
                           .kld = cli_alloc(windows, sizeof(double)),
                           .top = cli_alloc(windows, sizeof(double)),
                           .each = cli_alloc(windows * rows, sizeof(struct divergence))};
}

static void scores_destroy(struct scores *s)
{
    free(s->nll);
    free(s->reference_nll);
    free(s->kld);
    free(s->top);
    free(s->each);
}

static int keep_row(void *user, size_t position, const float *logits, size_t vocab)
{
    const struct window *w = user;
    size_t top;
    if (position + 1 < w->size)
        memcpy(w->reference + (position - w->first) * vocab, logits, vocab * sizeof(*logits));
    return isfinite(eval_log_sum_exp(logits, vocab, &top)) ? 0 : NOT_FINITE;
}

static double divergence(const float *p, double p_log, const float *q, double q_log, size_t vocab)
{
    double kld = 0;
    for (size_t i = 0; i < vocab; i++) {
        double log_p = (double)p[i] - p_log;
        kld += exp(log_p) * (log_p - ((double)q[i] - q_log));
    }
    return fmax(kld, 0); // rounding
}

static int score_row(void *user, size_t position, const float *logits, size_t vocab)
{
    const struct window *w = user;
    struct scores *s = w->scores;
    size_t at = s->n_windows, top, reference_top;
    if (position + 1 >= w->size)
        return 0; // the last row predicts a token of the next window
    double norm = eval_log_sum_exp(logits, vocab, &top);
    if (!isfinite(norm))
        return NOT_FINITE;
    int32_t next = w->tokens[position + 1];
    s->nll[at] += norm - (double)logits[next];
    if (w->reference) {
        const float *p = w->reference + (position - w->first) * vocab;
        double p_norm = eval_log_sum_exp(p, vocab, &reference_top);
        double kld = divergence(p, p_norm, logits, norm, vocab);
        s->reference_nll[at] += p_norm - (double)p[next];
        s->kld[at] += kld;
        s->top[at] += top == reference_top;
        s->each[s->n_tokens] = (struct divergence){kld, (uint32_t)at};
    }
    s->n_tokens++;
    return 0;
}

static int ask(struct window *w, struct eval_model *m,
               int (*row)(void *user, size_t position, const float *logits, size_t vocab))
{
    int rc = nibble_logits(m->session, w->tokens, w->size, w->first, row, w);
    return rc == NOT_FINITE ? cli_error("%s gives logits that are not finite", m->role)
           : rc != 0        ? cli_failed(m->connection, m->role, rc)
                            : CLI_OK;
}

// The window's sums to means.
static void end_window(struct scores *s, size_t rows)
{
    double *const sums[] = {s->nll, s->reference_nll, s->kld, s->top};
    for (size_t i = 0; i < sizeof(sums) / sizeof(sums[0]); i++)
        sums[i][s->n_windows] /= (double)rows;
    s->n_windows++;
}

static int score_windows(struct window *w, struct eval_model *m, struct eval_model *reference,
                         const int32_t *tokens, size_t n, const char *name)
{
    size_t vocab = m->about.vocab, rows = w->size - w->first;
    int status = CLI_OK;
    if (reference && !(w->reference = malloc(rows * vocab * sizeof(*w->reference))))
        return cli_error("no memory for %s of reference logits; use a smaller --ctx",
                         cli_bytes(rows * vocab * 4));
    for (size_t i = 0; i < n && status == CLI_OK; i++) {
        w->tokens = tokens + i * w->size;
        if (reference)
            status = ask(w, reference, keep_row);
        if (status == CLI_OK)
            status = ask(w, m, score_row);
        end_window(w->scores, rows - 1);
        cli_progress(name, i + 1, n);
    }
    free(w->reference);
    return status;
}

// Each window's first token becomes BOS where the model wants one. The number of windows, or
// negative after saying why there is none.
static int divide(const struct eval *e, const struct eval_input *text, struct eval_model *m,
                  int32_t *tokens, int n)
{
    int32_t bos[4];
    size_t windows = (size_t)n / e->window;
    if (e->max_windows && windows > e->max_windows)
        windows = e->max_windows;
    if (!windows) {
        cli_error("%s has %d tokens, less than one window of %u", text->name, n, e->window);
        return -1;
    }
    int n_bos = nibble_tokenize(m->session, "", 0, NIBBLE_TOKENIZE_BOS, bos, 4);
    if (n_bos < 0) {
        cli_failed(m->connection, m->given, n_bos);
        return -1;
    }
    for (size_t i = 0; i < windows && n_bos == 1; i++)
        tokens[i * e->window] = bos[0];
    return (int)windows;
}

static int score_text(const struct eval *e, const struct eval_input *text, struct eval_model *m,
                      struct eval_model *reference, struct scores *ret)
{
    int32_t *tokens = NULL;
    int n = eval_tokenize(m, text->data, text->len, 0, &tokens);
    int windows = n < 0 ? n : divide(e, text, m, tokens, n), status = CLI_FAILED;
    if (windows > 0) {
        struct window w = {.scores = ret, .first = e->window / 2, .size = e->window};
        *ret = scores_create((size_t)windows, e->window - e->window / 2);
        status = score_windows(&w, m, reference, tokens, (size_t)windows, text->name);
    }
    free(tokens);
    return status;
}

// --- Results

static int compare_divergences(const void *a, const void *b)
{
    const struct divergence *x = a, *y = b;
    return (x->kld > y->kld) - (x->kld < y->kld);
}

// The divergence that this share of a sample's tokens does not exceed.
struct quantile {
    const struct scores *scores;
    double share;
};

static double quantile(void *user, const uint32_t *weights)
{
    const struct quantile *q = user;
    const struct scores *s = q->scores;
    size_t n = s->n_tokens, rank = n - 1 - (size_t)(q->share * (double)(n - 1)), seen = 0;
    for (size_t i = n; i-- > 0;)
        if ((seen += weights[s->each[i].window]) > rank)
            return s->each[i].kld;
    return NAN;
}

static void set_mean(json_t *row, const char *key, const char *key_ci, const double *windows,
                     size_t n, double most)
{
    json_object_set_new(row, key, eval_number(stats_mean(windows, n)));
    json_object_set_new(row, key_ci, eval_interval(stats_cut(stats_of_mean(windows, n), 0, most)));
}

static void set_quantile(json_t *row, const char *key, const char *key_ci, const struct scores *s,
                         double share, uint64_t seed)
{
    struct quantile q = {s, share};
    double value = s->each[(size_t)(share * (double)(s->n_tokens - 1))].kld;
    json_object_set_new(row, key, eval_number(value));
    json_object_set_new(row, key_ci,
                        eval_interval(stats_bootstrap(s->n_windows, seed, quantile, &q)));
}

static struct stats_interval exponential(struct stats_interval i)
{
    return (struct stats_interval){exp(i.low), exp(i.high)};
}

// Of the model's perplexity less the reference's, on the same windows: the delta method on their
// pairs of means. The ratio's interval is exact in the logarithm.
static void set_difference(json_t *row, const struct scores *s)
{
    size_t n = s->n_windows;
    double *pairs = cli_alloc(n, sizeof(*pairs)), *logs = cli_alloc(n, sizeof(*logs));
    double ours = exp(stats_mean(s->nll, n)), theirs = exp(stats_mean(s->reference_nll, n));
    for (size_t i = 0; i < n; i++) {
        logs[i] = s->nll[i] - s->reference_nll[i];
        pairs[i] = ours * (s->nll[i] - log(ours)) - theirs * (s->reference_nll[i] - log(theirs));
        pairs[i] += ours - theirs;
    }
    json_object_set_new(row, "reference_perplexity", eval_number(theirs));
    json_object_set_new(row, "perplexity_difference", eval_number(ours - theirs));
    json_object_set_new(row, "perplexity_difference_ci", eval_interval(stats_of_mean(pairs, n)));
    json_object_set_new(row, "perplexity_ratio", eval_number(ours / theirs));
    json_object_set_new(row, "perplexity_ratio_ci",
                        eval_interval(exponential(stats_of_mean(logs, n))));
    free(pairs);
    free(logs);
}

// The row's members; NULL after saying that it has no perplexity.
static json_t *describe(const struct scores *s, bool reference, uint64_t seed)
{
    size_t n = s->n_windows;
    double mean = stats_mean(s->nll, n), ppl = exp(mean);
    if (!isfinite(ppl) || (reference && !isfinite(stats_mean(s->kld, n)))) {
        cli_error("the model's logits give no perplexity: its mean loss is %g", mean);
        return NULL;
    }
    json_t *row = json_object();
    json_object_set_new(row, "perplexity", json_real(ppl));
    json_object_set_new(row, "stderr", eval_number(ppl * stats_error(s->nll, n)));
    json_object_set_new(row, "perplexity_ci", eval_interval(exponential(stats_of_mean(s->nll, n))));
    json_object_set_new(row, "tokens", json_integer((json_int_t)s->n_tokens));
    json_object_set_new(row, "windows", json_integer((json_int_t)n));
    if (!reference)
        return row;
    qsort(s->each, s->n_tokens, sizeof(*s->each), compare_divergences);
    set_mean(row, "kld_mean", "kld_mean_ci", s->kld, n, INFINITY);
    set_quantile(row, "kld_99", "kld_99_ci", s, 0.99, seed);
    set_quantile(row, "kld_max", "kld_max_ci", s, 1, seed);
    set_mean(row, "top1", "top1_ci", s->top, n, 1);
    set_difference(row, s);
    return row;
}

// `all` goes on with the windows of `s`; it has room for them.
static void append(struct scores *all, const struct scores *s)
{
    size_t n = s->n_windows, at = all->n_windows;
    memcpy(all->nll + at, s->nll, n * sizeof(*s->nll));
    memcpy(all->reference_nll + at, s->reference_nll, n * sizeof(*s->nll));
    memcpy(all->kld + at, s->kld, n * sizeof(*s->kld));
    memcpy(all->top + at, s->top, n * sizeof(*s->top));
    for (size_t i = 0; i < s->n_tokens; i++)
        all->each[all->n_tokens + i] =
            (struct divergence){s->each[i].kld, s->each[i].window + (uint32_t)at};
    all->n_windows += n;
    all->n_tokens += s->n_tokens;
}

static int describe_texts(const struct eval *e, const struct scores *scores, bool reference,
                          json_t *result)
{
    size_t windows = 0;
    json_t *rows = json_array(), *row = NULL;
    for (size_t i = 0; i < e->text_files.n; i++)
        windows += scores[i].n_windows;
    struct scores all = scores_create(windows, e->window - e->window / 2);
    for (size_t i = 0; i < e->text_files.n; i++) {
        append(&all, &scores[i]);
        if (!(row = describe(&scores[i], reference, e->seed)))
            break;
        json_object_set_new(row, "text", json_string(e->texts[i].name));
        json_array_append_new(rows, row);
    }
    json_t *together = row ? describe(&all, reference, e->seed) : NULL;
    if (together) {
        json_object_update(result, together);
        json_object_set(result, "texts", rows);
    }
    json_decref(rows);
    json_decref(together);
    scores_destroy(&all);
    return together ? CLI_OK : CLI_FAILED;
}

static int check_models(const struct eval *e, const struct eval_model *m,
                        const struct eval_model *reference)
{
    int status = cli_generates(&m->about);
    if (status == CLI_OK && reference)
        status = cli_generates(&reference->about);
    if (status != CLI_OK)
        return status;
    if (reference && reference->about.vocab != m->about.vocab)
        return cli_error("%s and the reference %s have different vocabularies", m->given,
                         reference->given);
    if (e->window > m->about.context)
        return cli_usage_error("--ctx %u: the model's context is %u", e->window, m->about.context);
    return CLI_OK;
}

int eval_texts(const struct eval *e, struct eval_model *m, struct eval_model *reference,
               json_t *result)
{
    struct scores scores[OPTION_LIST_MAX] = {0};
    int status = check_models(e, m, reference);
    for (size_t i = 0; i < e->text_files.n && status == CLI_OK; i++)
        status = score_text(e, &e->texts[i], m, reference, &scores[i]);
    if (status == CLI_OK)
        status = describe_texts(e, scores, reference != NULL, result);
    for (size_t i = 0; i < e->text_files.n; i++)
        scores_destroy(&scores[i]);
    return status;
}
