// Training's steps: batches through both models, the gradients back, AdamW.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "distill/train_room.h"
#include "engine/device.h"
#include "engine/sampler.h"
#include "grad/adam.h"
#include "grad/loss.h"

#define FIRST  0.9f // AdamW's
#define SECOND 0.95f
#define FLOOR  1e-8f

// --- Batches

// Of conversations answers alone are labels, and other rows are left out. What the student has
// written has none. Adds to `counts`.
static void set_labels(const int32_t *tokens, const bool *answers, bool own, uint32_t n,
                       int32_t *label, struct nb_train_counts *counts)
{
    for (uint32_t i = 0; i < n; i++) {
        const bool has = i + 1 < n && !own && (!answers || answers[i + 1]);
        label[i] = has ? tokens[i + 1] : answers ? NB_LEFT_OUT : NB_NO_LABEL;
        counts->labels += has;
        counts->counted += label[i] != NB_LEFT_OUT;
    }
}

static int read_lessons(struct nb_train *t, const int32_t *tokens, uint32_t row, struct nb_error *e)
{
    const struct nb_lessons *l = t->options.lessons;
    if (!l)
        return 0;
    const uint32_t kept = nb_lessons_header(l)->kept;
    int rc = nb_lessons_read(l, tokens, t->sums + row, t->kept + (size_t)row * kept);
    return rc == 0 ? 0
                   : nb_fail(e, rc,
                             rc == -ENOENT ? "a window of the text is none of the lessons%s"
                                           : "the lessons cannot be read: %s",
                             rc == -ENOENT    ? ""
                             : rc == -EBADMSG ? "they have changed, or were damaged"
                                              : strerror(-rc));
}

static int set_batch(struct nb_train *t, const struct nb_windows *w, const uint32_t *of,
                     uint32_t first, uint32_t n, struct nb_error *e)
{
    uint32_t rows = 0, length;
    int rc = 0;
    t->of_batch = (struct nb_train_counts){0};
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        const uint32_t at = of ? of[first + i] : first + i;
        const bool own = of && i < t->n_own;
        const int32_t *tokens = nb_window(w, at, &length);
        tokens = own ? t->own + (size_t)i * length : tokens;
        t->sequence[i] = (struct nb_grad_sequence){tokens, length, 0};
        set_labels(tokens, nb_window_answers(w, at), own, length, t->label + rows, &t->of_batch);
        rc = read_lessons(t, tokens, rows, e);
        rows += length;
        t->end[i] = rows;
    }
    t->n_rows = rows;
    t->n_windows = n;
    if (rc == 0)
        rc = nb_grad_batch(t->grad, t->sequence, n, e);
    return rc == 0 && t->teacher ? nb_grad_batch(t->teacher, t->sequence, n, e) : rc;
}

// Windows follow each other, epoch after epoch, however many of them are a batch.
static void choose(struct nb_train *t, uint32_t number)
{
    const uint32_t n = t->windows->n;
    uint64_t at = (uint64_t)number * t->options.batch;
    for (uint32_t i = 0; i < t->options.batch; i++, at++) {
        if (i == 0 || at % n == 0)
            nb_windows_order(t->options.seed, (uint32_t)(at / n), n, t->order);
        t->chosen[i] = t->order[at % n];
    }
    t->n_own = nb_train_own(t, number);
}

// All batches of the step that begins: a token counts the same in whichever it is.
static void count_step(struct nb_train *t)
{
    const uint32_t parts = t->options.accumulate;
    uint32_t length;
    t->of_step = (struct nb_train_counts){0};
    for (uint32_t i = 0; i < parts; i++) {
        choose(t, t->done * parts + i);
        for (uint32_t j = 0; j < t->options.batch; j++) {
            const int32_t *tokens = nb_window(t->windows, t->chosen[j], &length);
            set_labels(tokens, nb_window_answers(t->windows, t->chosen[j]), j < t->n_own, length,
                       t->label, &t->of_step);
        }
    }
}

static int take_batch(struct nb_train *t, uint32_t number, struct nb_error *e)
{
    choose(t, number);
    int rc = nb_train_write_own(t, number, e);
    return rc == 0 ? set_batch(t, t->windows, t->chosen, 0, t->options.batch, e) : rc;
}

// --- Forward

static int forward(struct nb_train *t, bool taped)
{
    int rc = t->teacher ? nb_grad_forward(t->teacher, t->taught,
                                          (size_t)t->rows * t->teacher_plan->hp.embedding)
                        : 0;
    if (rc == 0)
        rc = nb_grad_begin(t->grad, nb_train_rows(t, 0));
    for (uint32_t i = 0; i < t->plan->n_layers && rc == 0; i++)
        rc = nb_grad_layer(t->grad, i, nb_train_rows(t, i), taped ? t->tapes[i] : NULL,
                           nb_train_rows(t, i + 1));
    return rc;
}

// --- One batch

static int back(struct nb_train *t)
{
    const bool whole = !t->factors; // before an adapter's first layer nothing moves
    int rc = 0;
    for (uint32_t i = t->plan->n_layers; i > 0 && rc == 0; i--)
        rc = nb_grad_layer_back(t->grad, i - 1, nb_train_rows(t, i - 1), t->tapes[i - 1], t->d,
                                whole || i > 1);
    return rc == 0 && whole ? nb_grad_begin_back(t->grad, t->d) : rc;
}

// Adds the gradients of one of a step's batches.
static int run_batch(struct nb_train *t, uint32_t number, struct nb_train_loss *sum,
                     struct nb_error *e)
{
    const struct nb_train_counts *all = &t->of_step, *own = &t->of_batch;
    int rc = take_batch(t, number, e);
    if (rc == 0)
        rc = forward(t, true);
    if (rc == 0)
        rc = nb_train_losses(t, true);
    if (rc < 0)
        return rc;
    const struct nb_train_loss loss = nb_train_mean(t, 0, t->n_windows);
    if (!isfinite(loss.hard + loss.soft + loss.hidden + loss.cosine + loss.relation +
                  loss.attention))
        return -EDOM;
    const double labels = all->labels ? (double)own->labels / all->labels : 0;
    const double tokens = all->counted ? (double)own->counted / all->counted : 0;
    sum->hard += loss.hard * labels;
    sum->soft += loss.soft * tokens;
    sum->hidden += loss.hidden * tokens;
    sum->attention += loss.attention * tokens;
    sum->cosine += loss.cosine / t->options.accumulate;
    sum->relation += loss.relation / t->options.accumulate;
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

// As far in weights as `how` moves those.
static void descend_codes(const struct nb_train *t, const struct nb_trained *w,
                          const struct nb_adam *how)
{
    const struct nb_descent d = {.code_rate = w->gap > 0 ? how->rate / w->gap : 0,
                                 .scale_rate = w->size > 0 ? how->rate / w->size : 0,
                                 .scale = how->scale,
                                 .first = how->first,
                                 .second = how->second,
                                 .first_by = how->first_by,
                                 .second_by = how->second_by,
                                 .floor = how->floor};
    nb_latent_descend(w->latent, t->team, w->gradient, &d);
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
        .floor = FLOOR,
        .draw = (uint32_t)nb_random(o->seed, t->done)};
    for (uint32_t i = 0; i < t->n_tensors; i++) {
        const struct nb_trained *w = &t->tensors[i];
        how.decay = w->decays ? o->decay : 0;
        if (w->latent)
            descend_codes(t, w, &how);
        else if (w->moments)
            nb_adam_step_coded(t->team, &how, w->gradient, w->floats, w->x, w->moments);
        else
            nb_adam_step(t->team, &how, w->gradient, w->floats, w->x, w->first, w->second);
    }
}

static int run_step(struct nb_train *t, struct nb_train_loss *ret, struct nb_error *e)
{
    struct nb_train_loss loss = {0};
    int rc = nb_train_refresh(t);
    for (uint32_t i = 0; i < t->n_tensors; i++)
        memset(t->tensors[i].gradient, 0, t->tensors[i].floats * sizeof(float));
    const struct nb_train_share *share = t->options.share;
    count_step(t);
    for (uint32_t i = share ? share->rank : 0; i < t->options.accumulate && rc == 0;
         i += share ? share->ranks : 1)
        rc = run_batch(t, t->done * t->options.accumulate + i, &loss, e);
    if (share)
        rc = nb_train_join(t, rc, &loss);
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

// Of the device, where it was that.
static const char *cause_of(const struct nb_train *t, int rc)
{
    const struct nb_device *d = t->options.device;
    const char *fault = d && d->ops->fault ? d->ops->fault(d) : NULL;
    return fault ? fault : rc == -ECANCELED ? "another process has failed" : strerror(-rc);
}

int nb_train_step(struct nb_train *t, struct nb_train_loss *ret, struct nb_error *ret_error)
{
    if (t->done >= t->options.steps)
        return nb_fail(ret_error, -EALREADY, "all %u steps of the training are done", t->done);
    struct nb_error why = {""};
    int rc = run_step(t, ret, &why);
    return rc == 0 ? 0
                   : nb_fail(ret_error, rc,
                             rc == -EDOM ? "the loss of step %u of the training, or its gradient, "
                                           "is not finite: its rate is too high%s"
                                         : "step %u of the training failed: %s",
                             t->done + 1,
                             rc == -EDOM ? ""
                             : *why.text ? why.text
                                         : cause_of(t, rc));
}

// --- Measuring

static int measure(struct nb_train *t, const struct nb_windows *w, uint32_t first, uint32_t n,
                   struct nb_error *e)
{
    int rc = set_batch(t, w, NULL, first, n, e);
    if (rc < 0)
        return rc;
    rc = nb_train_refresh(t);
    if (rc == 0)
        rc = forward(t, false);
    if (rc == 0)
        rc = nb_train_losses(t, false);
    return rc < 0 ? nb_fail(e, rc, "a measurement failed: %s", cause_of(t, rc)) : 0;
}

// How many of the windows from the first on are a batch.
static uint32_t fitting(const struct nb_train *t, const struct nb_windows *w, uint32_t first)
{
    uint32_t rows = 0, n = 0, length;
    while (first + n < w->n) {
        nb_window(w, first + n, &length);
        if (rows + length > t->rows)
            break;
        rows += length;
        n++;
    }
    return n;
}

int nb_train_measure(struct nb_train *t, const struct nb_windows *windows,
                     struct nb_train_loss *ret, struct nb_error *ret_error)
{
    if (windows->length == 0 || windows->length > t->rows)
        return nb_fail(ret_error, -EINVAL, "windows of %u tokens; training has batches of %u",
                       windows->length, t->rows);
    for (uint32_t i = 0, n; i < windows->n; i += n) {
        n = fitting(t, windows, i);
        int rc = measure(t, windows, i, n, ret_error);
        if (rc < 0)
            return rc;
        for (uint32_t j = 0; j < n; j++)
            ret[i + j] = nb_train_mean(t, j, 1);
    }
    return 0;
}
