// Tuning's state: all numbers that steps move.
#include <errno.h>
#include <stdlib.h>

#include "quant/tune_room.h"

// The parts are malloc'ed; NULL without memory.
static struct nb_state_part *list(const struct nb_tune *t, uint32_t *ret_n)
{
    struct nb_state_part *parts = calloc(t->n_matrices + t->n_vectors + 1, sizeof(*parts));
    uint32_t n = 0;
    for (uint32_t i = 0; parts && i < t->n_matrices; i++) {
        size_t floats;
        if (!t->matrices[i].latent)
            continue;
        parts[n].data = nb_latent_state(t->matrices[i].latent, &floats);
        parts[n++].bytes = floats * sizeof(float);
    }
    for (uint32_t i = 0; parts && i < t->n_vectors; i++)
        parts[n++] =
            (struct nb_state_part){t->vectors[i].x, 3 * t->vectors[i].floats * sizeof(float)};
    *ret_n = n;
    return parts;
}

static struct nb_state state_of(const struct nb_tune *t,
                                uint32_t *done) // NOLINT(*non-const-parameter)
{
    struct nb_state s = {.magic = "nbtune1",
                         .key = t->key,
                         .done = done,
                         .all = nb_tune_layer_steps(t) + t->options.steps};
    s.parts = list(t, &s.n_parts);
    return s;
}

int nb_tune_store(const struct nb_tune *t, nb_state_io write, void *user)
{
    uint32_t done = t->done;
    const struct nb_state s = state_of(t, &done);
    int rc = s.parts ? nb_state_write(&s, write, user) : -ENOMEM;
    free((void *)s.parts);
    return rc;
}

int nb_tune_restore(struct nb_tune *t, nb_state_io read, void *user)
{
    const struct nb_state s = state_of(t, &t->done);
    int rc = s.parts ? nb_state_read(&s, read, user) : -ENOMEM;
    free((void *)s.parts);
    if (rc == 0)
        t->entered = NB_TUNE_OUTSIDE;
    return rc;
}

uint64_t nb_tune_stored_bytes(const struct nb_tune *t)
{
    uint32_t done = t->done;
    const struct nb_state s = state_of(t, &done);
    uint64_t bytes = s.parts ? nb_state_bytes(&s) : 0;
    free((void *)s.parts);
    return bytes;
}
