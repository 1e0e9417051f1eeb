// See permute.h.
#include "quant/permute.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define KEYS 3

struct key {
    float size;
    uint32_t channel;
};

// The largest first; those of one size as they were.
static int compare(const void *a, const void *b)
{
    const struct key *x = a, *y = b;
    if (x->size != y->size)
        return x->size < y->size ? 1 : -1;
    return x->channel < y->channel ? -1 : 1;
}

static void sort(const float *size_w, const float *size_x, int key, uint32_t n, struct key *keys,
                 uint32_t *ret_order)
{
    for (uint32_t i = 0; i < n; i++) {
        const float sizes[KEYS] = {size_w[i], size_x[i], size_w[i] * size_x[i]};
        keys[i] = (struct key){sizes[key], i};
    }
    qsort(keys, n, sizeof(*keys), compare);
    for (uint32_t i = 0; i < n; i++)
        ret_order[i] = keys[i].channel;
}

int nb_permute_search(struct nb_trial *t, const float *scale, const float *size_w,
                      const float *size_x, uint32_t n, uint32_t *ret_order, struct nb_gain *ret)
{
    struct key *keys = malloc(n * sizeof(*keys));
    uint32_t *order = malloc(n * sizeof(*order));
    struct nb_trial_error without = {0, 0}, best, e;
    int rc = keys && order ? nb_trial_run(t, scale, NULL, &without) : -ENOMEM;
    best = without;
    *ret = (struct nb_gain){.before = without.held, .after = without.held};
    for (int key = 0; key < KEYS && rc == 0; key++) {
        sort(size_w, size_x, key, n, keys, order);
        rc = nb_trial_run(t, scale, order, &e);
        if (rc < 0 || e.searched >= best.searched || e.held >= without.held)
            continue;
        best = e;
        *ret = (struct nb_gain){true, 0, without.held, e.held};
        memcpy(ret_order, order, n * sizeof(*order));
    }
    free(order);
    free(keys);
    return rc;
}
