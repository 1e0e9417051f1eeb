// Steps of one layer, as AutoRound has them (Cheng and others, arXiv 2309.05516), and BRECQ before
// it (Li and others, arXiv 2102.05426): its codes, scales and norms are moved so that its results
// come nearer to those of the float model. The inputs are the quantized model's and the results
// the float model's, so a layer also makes good for what those before it have lost.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/tune_room.h"

static size_t window_floats(const struct nb_tune *t)
{
    return (size_t)t->windows->length * t->plan->hp.embedding;
}

// --- Entering a layer

// Windows [first, first + n) as the batch, from all of them in order.
static int take_windows(struct nb_tune *t, uint32_t first, uint32_t n, struct nb_error *e)
{
    const struct nb_windows *w = t->windows;
    for (uint32_t i = 0; i < n; i++)
        t->sequence[i] =
            (struct nb_grad_sequence){w->tokens + (size_t)(first + i) * w->length, w->length, 0};
    return nb_grad_batch(t->grad, t->sequence, n, e);
}

// A layer, or what comes before them all, of all windows in place.
static int advance(struct nb_tune *t, uint32_t layer, bool quantized, float *x, struct nb_error *e)
{
    const uint32_t batch = t->options.batch;
    int rc = 0;
    nb_tune_point(t, quantized);
    if (quantized)
        nb_tune_decode(t, layer);
    for (uint32_t i = 0, n; i < t->windows->n && rc == 0; i += n) {
        float *at = x + i * window_floats(t);
        n = t->windows->n - i < batch ? t->windows->n - i : batch;
        rc = take_windows(t, i, n, e);
        if (rc == 0)
            rc = layer == NB_TUNE_OUTSIDE ? nb_grad_begin(t->grad, t->x)
                                          : nb_grad_layer(t->grad, layer, at, NULL, t->x);
        if (rc == 0)
            memcpy(at, t->x, n * window_floats(t) * sizeof(*at));
    }
    return rc;
}

static int make_room(struct nb_tune *t)
{
    const size_t bytes = t->windows->n * window_floats(t) * sizeof(float);
    if (!t->inputs)
        t->inputs = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!t->targets)
        t->targets = aligned_alloc(64, (bytes + 63) / 64 * 64);
    return t->inputs && t->targets ? 0 : -ENOMEM;
}

static int enter_first(struct nb_tune *t, struct nb_error *e)
{
    int rc = make_room(t);
    if (rc == 0)
        rc = advance(t, NB_TUNE_OUTSIDE, false, t->targets, e);
    if (rc == 0)
        rc = advance(t, 0, false, t->targets, e);
    if (rc == 0)
        rc = advance(t, NB_TUNE_OUTSIDE, true, t->inputs, e);
    return rc;
}

// After a restart from the first one on: what is known of earlier layers is what they became.
static int enter(struct nb_tune *t, uint32_t layer, struct nb_error *e)
{
    int rc = 0;
    if (t->entered == NB_TUNE_OUTSIDE) {
        rc = enter_first(t, e);
        t->entered = rc == 0 ? 0 : NB_TUNE_OUTSIDE;
    }
    while (rc == 0 && t->entered < layer) {
        rc = advance(t, t->entered, true, t->inputs, e);
        if (rc == 0)
            rc = advance(t, t->entered + 1, false, t->targets, e);
        t->entered = rc == 0 ? t->entered + 1 : NB_TUNE_OUTSIDE;
    }
    return rc;
}

// --- Steps

// A row's squared error relative to the square of its target, since a norm comes next; its gradient
// times `share` to d.
static double row_loss(const float *y, const float *target, uint32_t n, double share, float *d)
{
    double error = 0, size = 0;
    for (uint32_t i = 0; i < n; i++) {
        const double off = (double)y[i] - (double)target[i];
        error += off * off;
        size += (double)target[i] * (double)target[i];
    }
    const float by = size > 0 ? (float)(2 * share / size) : 0;
    for (uint32_t i = 0; i < n; i++)
        d[i] = by * (y[i] - target[i]);
    return size > 0 ? error / size : 0;
}

static double losses(struct nb_tune *t, uint32_t first, const float *y)
{
    const uint32_t n = t->plan->hp.embedding, length = t->windows->length;
    double sum = 0;
    for (uint32_t row = 0; row < t->rows; row++) {
        const size_t window = t->order[first + row / length];
        const float *target = t->targets + window * window_floats(t) + (size_t)row % length * n;
        sum += row_loss(y + (size_t)row * n, target, n, 1.0 / t->rows, t->d + (size_t)row * n);
    }
    return sum / t->rows;
}

int nb_tune_layer_step(struct nb_tune *t, double *ret_loss, struct nb_error *e)
{
    const struct nb_tune_options *o = &t->options;
    const uint32_t layer = t->done / o->layer_steps, step = t->done % o->layer_steps;
    const struct nb_descent how = nb_tune_descent(step, o->layer_steps, o->layer_code_rate,
                                                  o->layer_scale_rate, o->layer_vector_rate);
    float *x = t->x + layer * (size_t)t->rows * t->plan->hp.embedding;
    float *y = x + (size_t)t->rows * t->plan->hp.embedding;
    uint32_t first = 0;
    int rc = enter(t, layer, e);
    if (rc == 0)
        rc = nb_tune_take_batch(t, step, &first, e);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < o->batch; i++)
        memcpy(x + i * window_floats(t), t->inputs + t->order[first + i] * window_floats(t),
               window_floats(t) * sizeof(*x));
    nb_tune_point(t, true);
    nb_tune_decode(t, layer);
    rc = nb_grad_layer(t->grad, layer, x, t->tapes[layer], y);
    if (rc < 0)
        return rc;
    *ret_loss = losses(t, first, y);
    return isfinite(*ret_loss) ? nb_tune_layer_back(t, layer, &how, false) : -EDOM;
}
