// Training's steps: batches through both models, the losses, the gradients back, AdamW.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "distill/cosine.h"
#include "distill/train_room.h"
#include "grad/adam.h"
#include "grad/loss.h"

#define FIRST  0.9f // AdamW's
#define SECOND 0.95f
#define FLOOR  1e-8f

// --- Batches

static int set_batch(struct nb_train *t, const struct nb_windows *w, const uint32_t *of,
                     uint32_t first, uint32_t n, struct nb_error *e)
{
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t window = of ? of[first + i] : first + i;
        const int32_t *tokens = w->tokens + (size_t)window * w->length;
        t->sequence[i] = (struct nb_grad_sequence){tokens, w->length, 0};
        for (uint32_t j = 0; j < w->length; j++)
            t->label[(size_t)i * w->length + j] = j + 1 < w->length ? tokens[j + 1] : -1;
    }
    int rc = nb_grad_batch(t->grad, t->sequence, n, e);
    return rc == 0 && t->teacher ? nb_grad_batch(t->teacher, t->sequence, n, e) : rc;
}

static int take_batch(struct nb_train *t, uint32_t number, struct nb_error *e)
{
    const uint32_t batches = t->windows->n / t->options.batch;
    const uint32_t first = number % batches * t->options.batch;
    nb_windows_order(t->options.seed, number / batches, t->windows->n, t->order);
    return set_batch(t, t->windows, t->order, first, t->options.batch, e);
}

// --- Forward

static float *rows_of(const struct nb_train *t, uint32_t rows, uint32_t layer)
{
    return t->x + (size_t)layer * rows * t->plan->hp.embedding;
}

static int forward(struct nb_train *t, uint32_t rows, bool taped)
{
    int rc = t->teacher ? nb_grad_forward(t->teacher, t->taught,
                                          (size_t)rows * t->teacher_plan->hp.embedding)
                        : 0;
    if (rc == 0)
        rc = nb_grad_begin(t->grad, rows_of(t, rows, 0));
    for (uint32_t i = 0; i < t->plan->n_layers && rc == 0; i++)
        rc = nb_grad_layer(t->grad, i, rows_of(t, rows, i), taped ? t->tapes[i] : NULL,
                           rows_of(t, rows, i + 1));
    return rc;
}

// --- Losses

// Both heads of rows [at, at + n), and their losses; with `d` also back.
static int head(struct nb_train *t, uint32_t rows, const struct nb_distil_loss *how, uint32_t at,
                uint32_t n, float *d)
{
    const size_t row = t->plan->hp.embedding;
    const float *x = rows_of(t, rows, t->plan->n_layers) + at * row;
    float *reference = t->teacher ? t->teacher_logits : NULL;
    int rc = 0;
    if (reference)
        rc = nb_grad_head(t->teacher, n, t->taught + (size_t)at * t->teacher_plan->hp.embedding,
                          NULL, reference);
    if (rc == 0)
        rc = nb_grad_head(t->grad, n, x, NULL, t->logits);
    if (rc < 0)
        return rc;
    nb_grad_distil(t->grad, n, how, reference, t->label + at, t->logits, t->soft + at,
                   t->hard + at);
    return d ? nb_grad_head_back(t->grad, n, x, NULL, t->logits, d + at * row) : 0;
}

static int heads(struct nb_train *t, uint32_t rows, const struct nb_distil_loss *how, float *d)
{
    int rc = 0;
    for (uint32_t at = 0; at < rows && rc == 0; at += NB_TRAIN_SLICE)
        rc = head(t, rows, how, at, rows - at < NB_TRAIN_SLICE ? rows - at : NB_TRAIN_SLICE, d);
    return rc;
}

static void compare_hidden(struct nb_train *t, uint32_t rows, float weight, float *d)
{
    const uint32_t n = t->plan->hp.embedding;
    const float *x = rows_of(t, rows, t->plan->n_layers);
    for (uint32_t i = 0; i < rows; i++)
        t->hidden[i] = (float)nb_away(x + (size_t)i * n, t->taught + (size_t)i * n, n, weight,
                                      d ? d + (size_t)i * n : d);
}

static struct nb_train_loss mean_loss(const struct nb_train *t, uint32_t first, uint32_t n)
{
    struct nb_train_loss sum = {0};
    uint32_t labels = 0;
    for (uint32_t i = first; i < first + n; i++) {
        labels += t->label[i] >= 0;
        sum.hard += (double)t->hard[i];
        sum.soft += t->teacher ? (double)t->soft[i] : 0;
        sum.hidden += t->options.hidden > 0 ? (double)t->hidden[i] : 0;
    }
    sum.hard /= labels ? labels : 1;
    sum.soft /= n;
    sum.hidden /= n;
    return sum;
}

// --- One batch

static int back(struct nb_train *t)
{
    const bool whole = !t->factors; // before an adapter's first layer nothing moves
    int rc = 0;
    for (uint32_t i = t->plan->n_layers; i > 0 && rc == 0; i--)
        rc = nb_grad_layer_back(t->grad, i - 1, rows_of(t, t->rows, i - 1), t->tapes[i - 1], t->d,
                                whole || i > 1);
    return rc == 0 && whole ? nb_grad_begin_back(t->grad, t->d) : rc;
}

// Adds the gradients of one of a step's batches.
static int run_batch(struct nb_train *t, uint32_t number, struct nb_train_loss *sum,
                     struct nb_error *e)
{
    const struct nb_train_options *o = &t->options;
    const float parts = (float)t->rows * (float)o->accumulate;
    const float labels = parts * (float)(t->windows->length - 1) / (float)t->windows->length;
    const struct nb_distil_loss how = {.temperature = o->temperature,
                                       .soft = (1 - o->hard) / parts,
                                       .hard = o->hard / labels,
                                       .mix = o->mix};
    int rc = take_batch(t, number, e);
    if (rc == 0)
        rc = forward(t, t->rows, true);
    if (rc == 0)
        rc = heads(t, t->rows, &how, t->d);
    if (rc < 0)
        return rc;
    if (o->hidden > 0)
        compare_hidden(t, t->rows, o->hidden / parts, t->d);
    const struct nb_train_loss loss = mean_loss(t, 0, t->rows);
    if (!isfinite(loss.hard + loss.soft + loss.hidden))
        return -EDOM;
    sum->hard += loss.hard / o->accumulate;
    sum->soft += loss.soft / o->accumulate;
    sum->hidden += loss.hidden / o->accumulate;
    return back(t);
}

// --- Descent

// Of the rate, in step `at` of all.
static double scheduled(const struct nb_train_options *o, uint32_t at)
{
    const double falling = o->steps > o->warm ? o->steps - o->warm : 1;
    const double part = at < o->warm ? 0 : (at - o->warm) / falling;
    const double rising = o->warm ? fmin((at + 1.0) / o->warm, 1) : 1;
    const double of[] = {[NB_SCHEDULE_COSINE] = 0.5 * (1 + cos(M_PI * part)),
                         [NB_SCHEDULE_LINEAR] = 1 - part,
                         [NB_SCHEDULE_CONSTANT] = 1};
    return rising * of[o->schedule];
}

static int norm_of(const struct nb_train *t, double *ret)
{
    double all = 0, one;
    int rc = 0;
    for (uint32_t i = 0; i < t->n_tensors && rc == 0; i++) {
        rc = nb_adam_squares(t->team, t->tensors[i].gradient, t->tensors[i].floats, &one);
        all += one;
    }
    *ret = sqrt(all);
    return rc < 0 ? rc : isfinite(*ret) ? 0 : -EDOM;
}

static void descend(struct nb_train *t, double norm)
{
    const struct nb_train_options *o = &t->options;
    const double at = t->done + 1.0;
    struct nb_adam how = {
        .rate = (float)(scheduled(o, t->done) * (double)o->rate),
        .scale = o->clip > 0 && norm > (double)o->clip ? (float)((double)o->clip / norm) : 1,
        .first = FIRST,
        .second = SECOND,
        .first_by = (float)(1 / (1 - pow((double)FIRST, at))),
        .second_by = (float)(1 / (1 - pow((double)SECOND, at))),
        .floor = FLOOR};
    for (uint32_t i = 0; i < t->n_tensors; i++) {
        const struct nb_trained *w = &t->tensors[i];
        how.decay = w->decays ? o->decay : 0;
        nb_adam_step(t->team, &how, w->gradient, w->floats, w->x, w->first, w->second);
    }
}

static int run_step(struct nb_train *t, struct nb_train_loss *ret, struct nb_error *e)
{
    struct nb_train_loss loss = {0};
    int rc = nb_train_refresh(t);
    for (uint32_t i = 0; i < t->n_tensors; i++)
        memset(t->tensors[i].gradient, 0, t->tensors[i].floats * sizeof(float));
    for (uint32_t i = 0; i < t->options.accumulate && rc == 0; i++)
        rc = run_batch(t, t->done * t->options.accumulate + i, &loss, e);
    if (rc == 0)
        rc = norm_of(t, &loss.norm);
    if (rc < 0)
        return rc;
    descend(t, loss.norm);
    t->stale = true;
    t->done++;
    *ret = loss;
    return 0;
}

int nb_train_step(struct nb_train *t, struct nb_train_loss *ret, struct nb_error *ret_error)
{
    if (t->done >= t->options.steps)
        return nb_fail(ret_error, -EALREADY, "all %u steps of the training are done", t->done);
    int rc = run_step(t, ret, ret_error);
    return rc == 0 ? 0
                   : nb_fail(ret_error, rc,
                             rc == -EDOM ? "the loss of step %u of the training, or its gradient, "
                                           "is not finite: its rate is too high%s"
                                         : "step %u of the training failed: %s",
                             t->done + 1, rc == -EDOM ? "" : strerror(-rc));
}

// --- Measuring

static int measure(struct nb_train *t, const struct nb_windows *w, uint32_t first, uint32_t n,
                   struct nb_error *e)
{
    const struct nb_distil_loss how = {.temperature = 1};
    const uint32_t rows = n * w->length;
    int rc = set_batch(t, w, NULL, first, n, e);
    if (rc < 0)
        return rc;
    rc = nb_train_refresh(t);
    if (rc == 0)
        rc = forward(t, rows, false);
    if (rc == 0)
        rc = heads(t, rows, &how, NULL);
    if (rc == 0 && t->options.hidden > 0)
        compare_hidden(t, rows, 0, NULL);
    return rc < 0 ? nb_fail(e, rc, "a measurement failed: %s", strerror(-rc)) : 0;
}

int nb_train_measure(struct nb_train *t, const struct nb_windows *windows,
                     struct nb_train_loss *ret, struct nb_error *ret_error)
{
    const uint32_t length = windows->length;
    if (length == 0 || length > t->rows)
        return nb_fail(ret_error, -EINVAL, "windows of %u tokens; training has batches of %u",
                       length, t->rows);
    for (uint32_t i = 0, n; i < windows->n; i += n) {
        n = windows->n - i < t->rows / length ? windows->n - i : t->rows / length;
        int rc = measure(t, windows, i, n, ret_error);
        if (rc < 0)
            return rc;
        for (uint32_t j = 0; j < n; j++)
            ret[i + j] = mean_loss(t, j * length, length);
    }
    return 0;
}
