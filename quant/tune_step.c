// Tuning's steps: a batch through both models, the loss, the gradients back, Adam.
//
// A layer's matrices are decoded when a pass comes to it, and move as soon as its backward pass is
// done; those outside of layers at the end, since the embedding may be the head as well.
#include <errno.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grad/loss.h"
#include "quant/tune_room.h"
#include "tensor/type.h"

#define FIRST  0.9f // Adam's
#define SECOND 0.99f
#define FLOOR  1e-8f
#define WARM   20 // one of so many steps: the rates rise

void nb_tune_point(struct nb_tune *t, bool quantized)
{
    for (uint32_t i = 0; i < t->n_matrices; i++)
        t->matrices[i].tensor->values = quantized ? t->matrices[i].values : NULL;
    for (uint32_t i = 0; i < t->n_vectors; i++)
        t->vectors[i].tensor->values = quantized ? t->vectors[i].x : NULL;
}

void nb_tune_decode(struct nb_tune *t, uint32_t layer)
{
    for (uint32_t i = 0; i < t->n_matrices; i++) {
        const struct nb_tuned_matrix *m = &t->matrices[i];
        if (m->layer != layer)
            continue;
        if (m->latent)
            nb_latent_decode(m->latent, t->team, m->values);
        else
            nb_type_info(m->type)->dequantize(m->encoded, m->values,
                                              m->floats / nb_type_info(m->type)->block);
    }
}

// --- Batches

int nb_tune_take_batch(struct nb_tune *t, uint32_t step, uint32_t *ret_first, struct nb_error *e)
{
    const uint32_t batch = t->options.batch, batches = t->windows->n / batch;
    const uint32_t first = step % batches * batch, length = t->windows->length;
    nb_windows_order(t->options.seed, step / batches, t->windows->n, t->order);
    for (uint32_t i = 0; i < batch; i++)
        t->sequence[i] = (struct nb_grad_sequence){
            t->windows->tokens + (size_t)t->order[first + i] * length, length, 0};
    *ret_first = first;
    return nb_grad_batch(t->grad, t->sequence, batch, e);
}

// --- Forward

static float *rows_of(const struct nb_tune *t, uint32_t rows, uint32_t layer)
{
    return t->x + (size_t)layer * rows * t->plan->hp.embedding;
}

static int forward_float(struct nb_tune *t, uint32_t rows)
{
    nb_tune_point(t, false);
    return nb_grad_forward(t->grad, t->reference, (size_t)rows * t->plan->hp.embedding);
}

// The float model's results do not change, nor do they depend on what else is in a batch.
static int forward_float_once(struct nb_tune *t, uint32_t first)
{
    const size_t n = (size_t)t->windows->length * t->plan->hp.embedding;
    bool kept = t->kept != NULL;
    for (uint32_t i = 0; i < t->options.batch && kept; i++)
        kept = t->is_kept[t->order[first + i]];
    int rc = kept ? 0 : forward_float(t, t->rows);
    for (uint32_t i = 0; i < t->options.batch && rc == 0 && t->kept; i++) {
        float *of = t->kept + t->order[first + i] * n, *x = t->reference + i * n;
        memcpy(kept ? x : of, kept ? of : x, n * sizeof(*x));
        t->is_kept[t->order[first + i]] = true;
    }
    return rc;
}

static int forward_quantized(struct nb_tune *t, uint32_t rows, bool taped)
{
    nb_tune_point(t, true);
    nb_tune_decode(t, NB_TUNE_OUTSIDE);
    int rc = nb_grad_begin(t->grad, rows_of(t, rows, 0));
    for (uint32_t i = 0; i < t->plan->n_layers && rc == 0; i++) {
        nb_tune_decode(t, i);
        rc = nb_grad_layer(t->grad, i, rows_of(t, rows, i), taped ? t->tapes[i] : NULL,
                           rows_of(t, rows, i + 1));
    }
    return rc;
}

// Both heads of rows [at, at + n), and their loss; with `d` also back.
static int head(struct nb_tune *t, uint32_t rows, uint32_t at, uint32_t n, float *d)
{
    const size_t row = t->plan->hp.embedding;
    const float *x = rows_of(t, rows, t->plan->n_layers) + at * row;
    nb_tune_point(t, false);
    int rc = nb_grad_head(t->grad, n, t->reference + at * row, NULL, t->reference_logits);
    nb_tune_point(t, true);
    if (rc == 0)
        rc = nb_grad_head(t->grad, n, x, NULL, t->logits);
    if (rc < 0)
        return rc;
    nb_grad_divergence(t->grad, n, t->reference_logits, t->logits, 1.0f / (float)rows,
                       t->row_loss + at);
    return d ? nb_grad_head_back(t->grad, n, x, NULL, t->logits, d + at * row) : 0;
}

static int heads(struct nb_tune *t, uint32_t rows, float *d)
{
    int rc = 0;
    for (uint32_t at = 0; at < rows && rc == 0; at += t->slice)
        rc = head(t, rows, at, rows - at < t->slice ? rows - at : t->slice, d);
    return rc;
}

static double mean_loss(const struct nb_tune *t, uint32_t first, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = first; i < first + n; i++)
        sum += (double)t->row_loss[i];
    return sum / n;
}

// --- Descent

struct nb_descent nb_tune_descent(uint32_t at, uint32_t n, float code_rate, float scale_rate,
                                  float vector_rate)
{
    const uint32_t warm = n / WARM + 1;
    const double part = (double)at / n, rising = (at + 1.0) / warm;
    const float now = (float)(fmin(rising, 1) * 0.5 * (1 + cos(M_PI * part)));
    return (struct nb_descent){.code_rate = now * code_rate,
                               .scale_rate = now * scale_rate,
                               .vector_rate = now * vector_rate,
                               .scale = 1,
                               .first = FIRST,
                               .second = SECOND,
                               .first_by = (float)(1 / (1 - pow((double)FIRST, at + 1.0))),
                               .second_by = (float)(1 / (1 - pow((double)SECOND, at + 1.0))),
                               .floor = FLOOR};
}

static void descend_vector(struct nb_tuned_vector *v, const struct nb_descent *how)
{
    for (size_t i = 0; i < v->floats; i++) {
        const float g = v->gradient[i];
        v->first[i] = how->first * v->first[i] + (1 - how->first) * g;
        v->second[i] = how->second * v->second[i] + (1 - how->second) * (g * g);
        v->x[i] -= how->vector_rate * v->unit * how->first_by * v->first[i] /
                   (sqrtf(how->second_by * v->second[i]) + how->floor);
    }
}

// Those of a layer, or those outside.
static void descend(struct nb_tune *t, uint32_t layer, const struct nb_descent *how)
{
    for (uint32_t i = 0; i < t->n_matrices; i++) {
        const struct nb_tuned_matrix *m = &t->matrices[i];
        if (m->layer == layer && m->latent)
            nb_latent_descend(m->latent, t->team, m->gradient, how);
    }
    for (uint32_t i = 0; i < t->n_vectors; i++)
        if (t->vectors[i].layer == layer)
            descend_vector(&t->vectors[i], how);
}

static void clear_gradients(struct nb_tune *t, uint32_t layer)
{
    for (uint32_t i = 0; i < t->n_matrices; i++) {
        const struct nb_tuned_matrix *m = &t->matrices[i];
        if (m->layer == layer && m->latent)
            memset(m->gradient, 0, m->floats * sizeof(*m->gradient));
    }
    for (uint32_t i = 0; i < t->n_vectors; i++)
        if (t->vectors[i].layer == layer)
            memset(t->vectors[i].gradient, 0, t->vectors[i].floats * sizeof(float));
}

int nb_tune_layer_back(struct nb_tune *t, uint32_t layer, const struct nb_descent *how,
                       bool to_input)
{
    clear_gradients(t, layer);
    int rc = nb_grad_layer_back(t->grad, layer, rows_of(t, t->rows, layer), t->tapes[layer], t->d,
                                to_input);
    if (rc == 0)
        descend(t, layer, how);
    return rc;
}

static int back(struct nb_tune *t, const struct nb_descent *how)
{
    int rc = 0;
    for (uint32_t i = t->plan->n_layers; i > 0 && rc == 0; i--) {
        nb_tune_decode(t, i - 1);
        rc = nb_tune_layer_back(t, i - 1, how, i > 1 || t->to_begin);
    }
    if (rc == 0 && t->to_begin)
        rc = nb_grad_begin_back(t->grad, t->d);
    if (rc == 0)
        descend(t, NB_TUNE_OUTSIDE, how);
    return rc;
}

// What has moved when a layer fails stays moved: only memory fails, and then the work is over.
static int run_step(struct nb_tune *t, double *ret_loss, struct nb_error *e)
{
    const struct nb_tune_options *o = &t->options;
    const struct nb_descent how = nb_tune_descent(t->done - nb_tune_layer_steps(t), o->steps,
                                                  o->code_rate, o->scale_rate, o->vector_rate);
    uint32_t first;
    int rc = nb_tune_take_batch(t, t->done - nb_tune_layer_steps(t), &first, e);
    if (rc < 0)
        return rc;
    clear_gradients(t, NB_TUNE_OUTSIDE);
    rc = forward_float_once(t, first);
    if (rc == 0)
        rc = forward_quantized(t, t->rows, true);
    if (rc == 0)
        rc = heads(t, t->rows, t->d);
    if (rc == 0) {
        *ret_loss = mean_loss(t, 0, t->rows);
        rc = isfinite(*ret_loss) ? back(t, &how) : -EDOM;
    }
    return rc;
}

static void settle(struct nb_tune *t)
{
    for (uint32_t i = 0; i < t->n_matrices; i++)
        if (t->matrices[i].latent)
            nb_latent_settle(t->matrices[i].latent);
    for (uint32_t i = 0; i < t->n_vectors; i++)
        memset(t->vectors[i].first, 0, 2 * t->vectors[i].floats * sizeof(float));
}

static int fail_step(const struct nb_tune *t, int rc, struct nb_error *e)
{
    return nb_fail(e, rc,
                   rc == -EDOM ? "the loss of step %u of tuning is not finite: its rates "
                                 "are too high%s"
                               : "step %u of tuning failed: %s",
                   t->done + 1, rc == -EDOM ? "" : strerror(-rc));
}

int nb_tune_step(struct nb_tune *t, double *ret_loss, struct nb_error *ret_error)
{
    const uint32_t first = nb_tune_layer_steps(t);
    double loss = 0;
    if (t->done >= first + t->options.steps)
        return nb_fail(ret_error, -EALREADY, "all %u steps of tuning are done", t->done);
    int rc =
        t->done < first ? nb_tune_layer_step(t, &loss, ret_error) : run_step(t, &loss, ret_error);
    if (rc < 0)
        return fail_step(t, rc, ret_error);
    if (++t->done == first)
        settle(t);
    if (ret_loss)
        *ret_loss = loss;
    return 0;
}

// --- Measuring

static int measure(struct nb_tune *t, const struct nb_windows *w, uint32_t first, uint32_t n,
                   struct nb_error *e)
{
    for (uint32_t i = 0; i < n; i++)
        t->sequence[i] =
            (struct nb_grad_sequence){w->tokens + (size_t)(first + i) * w->length, w->length, 0};
    int rc = nb_grad_batch(t->grad, t->sequence, n, e);
    if (rc < 0)
        return rc;
    rc = forward_float(t, n * w->length);
    if (rc == 0)
        rc = forward_quantized(t, n * w->length, false);
    if (rc == 0)
        rc = heads(t, n * w->length, NULL);
    return rc < 0 ? nb_fail(e, rc, "a measurement failed: %s", strerror(-rc)) : 0;
}

int nb_tune_measure(struct nb_tune *t, const struct nb_windows *windows, double *ret,
                    struct nb_error *ret_error)
{
    const uint32_t length = windows->length;
    if (length == 0 || length > t->rows)
        return nb_fail(ret_error, -EINVAL, "windows of %u tokens; tuning has batches of %u", length,
                       t->rows);
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
