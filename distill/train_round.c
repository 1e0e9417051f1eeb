// Quantization-aware training: the model computes with what its tensors will be in the file, and
// gradients go to the numbers behind them as if nothing had been rounded (the straight-through
// estimator: Bengio and others, arXiv 1308.3432).
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "distill/train_room.h"
#include "tensor/type.h"

#define ROWS 16 // that a thread takes at once

int nb_train_round(struct nb_train *t, struct nb_str name, const struct nb_encode *how,
                   struct nb_error *e)
{
    struct nb_trained *w = nb_train_find(t, name);
    if (!w || !w->tensor)
        return nb_fail(e, -EINVAL, "tensor %.*s is not trained, and cannot be rounded",
                       (int)name.len, name.data);
    if (how->scheme && how->scheme->group == NB_GROUP_TENSOR)
        return nb_fail(e, -ENOTSUP,
                       "a tensor with one scale for all of it cannot be trained as it is rounded: "
                       "choose a type, or a scale for each row or group (--to)");
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

int nb_train_refresh(struct nb_train *t)
{
    for (uint32_t i = 0; i < t->n_tensors && t->stale; i++) {
        const struct nb_trained *w = &t->tensors[i];
        struct rounding r = {.w = w};
        if (!w->rounded)
            continue;
        r.row_bytes = nb_encoded_bytes(w->how.type, 1, w->cols);
        nb_team_run(t->team, round_rows, &r);
        const int rc = atomic_load(&r.rc);
        if (rc < 0) // a number that is none, or too large for the type
            return rc == -ENOMEM ? rc : -EDOM;
    }
    t->stale = false;
    return 0;
}
