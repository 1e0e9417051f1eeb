// See judge.h. With p' the stored p divided by its sum, a row's divergence is
//     sum of p' log p'  -  sum of p' z  +  log of the sum of exp z
// of the other's logits z. The first sum is made when p is stored. Sums are doubles, each row's by
// one thread in the order of tokens, so that no number of threads shows.
#include "quant/judge.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/type.h"

#define STEP 256 // rows, so that logits take a bounded memory

struct nb_judge {
    struct nb_judging how;
    struct nb_runner *runner; // of the source
    uint32_t vocab, rows;     // rows: of all windows
    uint16_t *p;              // [rows][vocab], bf16
    double *entropy;          // [rows]: minus; the sum of p' log p'
    double *sum;              // [rows] of the stored p
    double *kl;               // [rows] of the last measurement
    // Of a step
    const float *logits;
    uint32_t first, n;
    atomic_uint next; // row of it
};

uint32_t nb_judge_room(uint32_t vocab, uint32_t length)
{
    return (uint32_t)(NB_JUDGE_BYTES / 2 / vocab / length);
}

struct nb_plan *nb_judge_plan(const struct nb_judge *j)
{
    return j->runner->plan;
}

// ---- Rows

static double log_sum(const float *z, uint32_t n)
{
    float most = z[0];
    double sum = 0;
    for (uint32_t i = 1; i < n; i++)
        most = z[i] > most ? z[i] : most;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)expf(z[i] - most);
    return (double)most + log(sum); // cppcheck-suppress invalidFunctionArg
}

static void keep_row(struct nb_judge *j, uint32_t row)
{
    const float *z = j->logits + (size_t)row * j->vocab;
    const uint32_t at = j->first + row;
    uint16_t *p = j->p + (size_t)at * j->vocab;
    const double norm = log_sum(z, j->vocab);
    double sum = 0, log_p = 0;
    for (uint32_t i = 0; i < j->vocab; i++) {
        p[i] = nb_f32_to_bf16(expf((float)((double)z[i] - norm)));
        const double x = (double)nb_bf16_to_f32(p[i]);
        sum += x;
        log_p += x > 0 ? x * log(x) : 0;
    }
    j->sum[at] = isfinite(norm) ? sum : NAN;
    j->entropy[at] = log_p / sum - log(sum);
}

static void judge_row(struct nb_judge *j, uint32_t row)
{
    const float *z = j->logits + (size_t)row * j->vocab;
    const uint32_t at = j->first + row;
    const uint16_t *p = j->p + (size_t)at * j->vocab;
    double along = 0;
    for (uint32_t i = 0; i < j->vocab; i++)
        along += (double)nb_bf16_to_f32(p[i]) * (double)z[i];
    const double kl = j->entropy[at] - along / j->sum[at] + log_sum(z, j->vocab);
    j->kl[at] = kl < 0 ? 0 : kl; // rounding; a NaN stays one
}

static void take_rows(struct nb_judge *j, void (*row)(struct nb_judge *j, uint32_t row))
{
    for (uint32_t i; (i = atomic_fetch_add(&j->next, 1)) < j->n;)
        row(j, i);
}

static void keep_rows(void *arg, uint32_t thread)
{
    (void)thread;
    take_rows(arg, keep_row);
}

static void judge_rows(void *arg, uint32_t thread)
{
    (void)thread;
    take_rows(arg, judge_row);
}

// ---- Windows

static int run(struct nb_judge *j, struct nb_runner *r, void (*rows)(void *arg, uint32_t thread),
               struct nb_error *e)
{
    const uint32_t length = j->how.windows->length;
    for (uint32_t done = 0, n; done < j->how.windows->n; done += n) {
        n = j->how.windows->n - done < r->batch ? j->how.windows->n - done : r->batch;
        const int32_t *tokens = j->how.windows->tokens + (size_t)done * length;
        for (uint32_t at = 0; at < n * length; at += j->n) {
            float *logits = NULL;
            j->n = n * length - at < STEP ? n * length - at : STEP;
            int rc = nb_runner_step(r, tokens, at, j->n, &logits);
            if (rc < 0)
                return nb_fail(e, rc, "a step of the model that is judged failed: %s",
                               strerror(-rc));
            j->logits = logits;
            j->first = done * length + at;
            atomic_store(&j->next, 0);
            nb_team_run(j->how.team, rows, j);
        }
    }
    return 0;
}

static int open_runner(const struct nb_judge *j, const struct nb_source *source,
                       struct nb_image *image, struct nb_runner **ret, struct nb_error *e)
{
    const struct nb_windows *w = j->how.windows;
    const uint32_t fit = w->length < STEP ? STEP / w->length : 1, batch = fit < w->n ? fit : w->n;
    const uint32_t rows = batch * w->length;
    const struct nb_running how = {.source = source,
                                   .image = image,
                                   .length = w->length,
                                   .batch = batch,
                                   .rows = rows < STEP ? rows : STEP,
                                   .allowed = j->how.allowed};
    return nb_runner_open(&how, ret, e);
}

static int reserve(struct nb_judge *j, struct nb_error *e)
{
    const struct nb_windows *w = j->how.windows;
    const struct nb_hparams *hp = &j->runner->plan->hp;
    if (!j->runner->plan->width[NB_VALUE_LOGITS])
        return nb_fail(e, -EINVAL, "the model only embeds: there is no divergence of its tokens");
    if (w->n < 1 || w->n > nb_judge_room(hp->vocab, w->length))
        return nb_fail(e, -EINVAL, "a judge takes 1 to %u windows of %u tokens",
                       nb_judge_room(hp->vocab, w->length), w->length);
    j->vocab = hp->vocab;
    j->rows = w->n * w->length;
    j->p = malloc((size_t)j->rows * j->vocab * sizeof(*j->p));
    j->entropy = calloc(j->rows, sizeof(*j->entropy));
    j->sum = calloc(j->rows, sizeof(*j->sum));
    j->kl = calloc(j->rows, sizeof(*j->kl));
    return j->p && j->entropy && j->sum && j->kl
               ? 0
               : nb_fail(e, -ENOMEM, "no memory for the float model's probabilities");
}

static int check_finite(const double *x, uint32_t n, const char *whose, struct nb_error *e)
{
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return nb_fail(e, -ERANGE, "%s logits are not finite numbers at token %u of the text",
                           whose, i);
    return 0;
}

int nb_judge_open(const struct nb_judging *how, struct nb_judge **ret, struct nb_error *ret_error)
{
    struct nb_judge *j = calloc(1, sizeof(*j));
    if (!j)
        return nb_fail(ret_error, -ENOMEM, "no memory for a judge");
    j->how = *how;
    int rc = open_runner(j, how->source, how->image, &j->runner, ret_error);
    if (rc == 0)
        rc = reserve(j, ret_error);
    if (rc == 0)
        rc = run(j, j->runner, keep_rows, ret_error);
    if (rc == 0)
        rc = check_finite(j->sum, j->rows, "the model's", ret_error);
    if (rc < 0)
        nb_judge_close(j);
    else
        *ret = j;
    return rc;
}

void nb_judge_close(struct nb_judge *j)
{
    if (!j)
        return;
    nb_runner_close(j->runner);
    free(j->p);
    free(j->entropy);
    free(j->sum);
    free(j->kl);
    free(j);
}

// ---- Results

static double mean_of(const struct nb_judge *j, uint32_t window)
{
    const uint32_t length = j->how.windows->length;
    double mean = 0;
    for (uint32_t i = 0; i < length; i++)
        mean += j->kl[window * length + i] / length;
    return mean;
}

void nb_judge_windows(const struct nb_judge *j, double *ret)
{
    for (uint32_t w = 0; w < j->how.windows->n; w++)
        ret[w] = mean_of(j, w);
}

static struct nb_divergence summarize(const struct nb_judge *j)
{
    const uint32_t n = j->how.windows->n;
    double mean = 0, squares = 0;
    for (uint32_t i = 0; i < j->rows; i++)
        mean += j->kl[i] / j->rows;
    for (uint32_t w = 0; w < n; w++) {
        const double own = mean_of(j, w);
        squares += (own - mean) * (own - mean);
    }
    return (struct nb_divergence){mean, n > 1 ? sqrt(squares / (n - 1) / n) : 0, j->rows};
}

static int measure(struct nb_judge *j, struct nb_runner *r, struct nb_divergence *ret,
                   struct nb_error *e)
{
    int rc = run(j, r, judge_rows, e);
    if (rc == 0)
        rc = check_finite(j->kl, j->rows, "the compressed model's", e);
    if (rc == 0)
        *ret = summarize(j);
    return rc;
}

int nb_judge_measure(struct nb_judge *j, struct nb_divergence *ret, struct nb_error *ret_error)
{
    return measure(j, j->runner, ret, ret_error);
}

int nb_judge_measure_source(struct nb_judge *j, const struct nb_source *other,
                            struct nb_divergence *ret, struct nb_error *ret_error)
{
    struct nb_runner *r = NULL;
    int rc = open_runner(j, other, NULL, &r, ret_error);
    if (rc == 0 && r->plan->hp.vocab != j->vocab)
        rc = nb_fail(ret_error, -EINVAL, "a model of %u tokens beside one of %u", r->plan->hp.vocab,
                     j->vocab);
    if (rc == 0)
        rc = measure(j, r, ret, ret_error);
    nb_runner_close(r);
    return rc;
}
