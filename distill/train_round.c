// Quantization-aware training: the model computes with what its tensors will be in the file, and
// gradients go to the numbers behind them as if nothing had been rounded (the straight-through
// estimator: Bengio and others, arXiv 1308.3432). Either all of a tensor's scales follow from its
// weights, or codes and scales are what is trained.
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "distill/train_room.h"
#include "tensor/type.h"

#define ROWS 16 // that a thread takes at once

static int fail_untrained(struct nb_str name, struct nb_error *e)
{
    return nb_fail(e, -EINVAL, "tensor %.*s is not trained, and cannot be rounded", (int)name.len,
                   name.data);
}

int nb_train_round(struct nb_train *t, struct nb_str name, const struct nb_encode *how,
                   struct nb_error *e)
{
    struct nb_trained *w = nb_train_find(t, name);
    if (!w || !w->tensor)
        return fail_untrained(name, e);
    w->rounded = nb_grad_floats(w->floats);
    if (!w->rounded)
        return nb_fail(e, -ENOMEM, "no memory for tensor %.*s as it is rounded", (int)name.len,
                       name.data);
    w->how = *how;
    w->tensor->values = w->rounded;
    t->stale = true;
    const char *scheme = how->scheme ? how->scheme->name : "";
    t->key = XXH3_64bits_withSeed(w->name, strlen(w->name), t->key);
    t->key = XXH3_64bits_withSeed(scheme, strlen(scheme), t->key + how->type);
    return 0;
}

static float mean_size(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += fabs((double)x[i]);
    return (float)(sum / (double)n);
}

// Codes and scales take the place of weights and their moments, whose memory is given back.
static int start_codes(const struct nb_train *t, struct nb_trained *w, uint32_t type,
                       const void *encoded)
{
    w->rounded = nb_grad_floats(w->floats);
    int rc = w->rounded
                 ? nb_latent_create(t->team, type, w->rows, w->cols, encoded, w->x, &w->latent)
                 : -ENOMEM;
    if (rc < 0)
        return rc;
    w->gap = nb_latent_gap(w->latent);
    w->size = mean_size(w->x, w->floats);
    w->tensor->values = w->rounded;
    free(w->x);
    w->x = w->first = w->second = NULL;
    w->moments = NULL;
    return 0;
}

int nb_train_learn_codes(struct nb_train *t, struct nb_str name, uint32_t type, const void *encoded,
                         struct nb_error *e)
{
    struct nb_trained *w = nb_train_find(t, name);
    if (!w || !w->tensor)
        return fail_untrained(name, e);
    int rc = start_codes(t, w, type, encoded);
    if (rc < 0)
        return nb_fail(e, rc, "tensor %.*s cannot be trained as %s: %s", (int)name.len, name.data,
                       nb_type_name(type),
                       rc == -EDOM ? "a scale or weight is not finite" : strerror(-rc));
    t->stale = true;
    t->key = XXH3_64bits_withSeed(w->name, strlen(w->name), t->key + type);
    t->key = XXH3_64bits_withSeed(encoded, nb_encoded_bytes(type, w->rows, w->cols), t->key);
    return 0;
}

bool nb_train_encode(const struct nb_train *t, struct nb_str name, void *ret)
{
    const struct nb_trained *w = nb_train_find(t, name);
    if (!w || !w->latent)
        return false;
    if (ret)
        nb_latent_encode(w->latent, t->team, ret);
    return true;
}

int nb_train_round_inputs(struct nb_train *t, struct nb_str name, enum nb_input_scale scale,
                          float range, struct nb_error *e)
{
    const struct nb_trained *w = nb_train_find(t, name);
    if (!w || !w->tensor)
        return fail_untrained(name, e);
    if (t->options.device)
        return nb_fail(e, -ENOTSUP,
                       "the device does not train with rounded inputs, as those of %.*s are: train "
                       "on the CPU, or with \"activations\" of block",
                       (int)name.len, name.data);
    w->tensor->inputs = scale;
    w->tensor->range = range;
    t->key = XXH3_64bits_withSeed(w->name, strlen(w->name), t->key + scale);
    t->key = XXH3_64bits_withSeed(&range, sizeof(range), t->key);
    return 0;
}

// What one scale of the whole tensor spans now.
static void set_extent(struct nb_trained *w)
{
    float least = 0, most = 0;
    for (size_t i = 0; i < w->floats; i++) {
        least = w->x[i] < least ? w->x[i] : least;
        most = w->x[i] > most ? w->x[i] : most;
    }
    w->how.least = least;
    w->how.most = most;
}

struct rounding {
    const struct nb_trained *w;
    size_t row_bytes;
    atomic_uint next;
    atomic_int rc;
};

static void round_rows(void *arg, uint32_t thread)
{
    struct rounding *r = arg;
    const struct nb_trained *w = r->w;
    const struct nb_type_info *info = nb_type_info(w->how.type);
    void *encoded = malloc(ROWS * r->row_bytes);
    if (!encoded)
        atomic_store(&r->rc, -ENOMEM);
    for (uint32_t at; encoded && (at = atomic_fetch_add(&r->next, ROWS)) < w->rows;) {
        const uint32_t n = w->rows - at < ROWS ? w->rows - at : ROWS;
        const size_t first = (size_t)at * w->cols;
        int rc = nb_encode_rows(&w->how, w->x + first, n, w->cols, encoded);
        if (rc < 0)
            atomic_store(&r->rc, rc);
        else
            info->dequantize(encoded, w->rounded + first, (size_t)n * w->cols / info->block);
    }
    free(encoded);
}

static int round_weights(const struct nb_train *t, struct nb_trained *w)
{
    struct rounding r = {.w = w, .row_bytes = nb_encoded_bytes(w->how.type, 1, w->cols)};
    if (w->how.scheme && w->how.scheme->group == NB_GROUP_TENSOR)
        set_extent(w);
    nb_team_run(t->team, round_rows, &r);
    const int rc = atomic_load(&r.rc);
    return rc == 0 || rc == -ENOMEM ? rc
                                    : -EDOM; // a number that is none, or too large for the type
}

int nb_train_refresh(struct nb_train *t)
{
    int rc = 0;
    if (t->stale)
        nb_grad_changed(t->grad);
    for (uint32_t i = 0; i < t->n_tensors && t->stale && rc == 0; i++) {
        struct nb_trained *w = &t->tensors[i];
        if (w->latent)
            nb_latent_decode(w->latent, t->team, w->rounded);
        else if (w->rounded)
            rc = round_weights(t, w);
    }
    if (rc == 0)
        t->stale = false;
    return rc;
}
