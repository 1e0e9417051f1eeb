// Keys and values of sequences, which later batches attend to: [layers][sequences][length], of each
// token the heads' keys, then their values.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "grad/room.h"

static size_t row_floats(const struct nb_hparams *hp)
{
    return (size_t)hp->n_kv_heads * (hp->k_dim + hp->v_dim);
}

int nb_grad_cache_create(const struct nb_grad *g, uint32_t sequences, uint32_t length,
                         struct nb_grad_cache **ret)
{
    const struct nb_hparams *hp = &g->plan->hp;
    if (!g->backend->keeps || !hp->causal)
        return -ENOTSUP;
    struct nb_grad_cache *c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    *c = (struct nb_grad_cache){.sequences = sequences, .length = length};
    c->rows = nb_grad_floats((size_t)hp->n_layers * sequences * length * row_floats(hp));
    if (!c->rows) {
        nb_grad_cache_destroy(c);
        return -ENOMEM;
    }
    *ret = c;
    return 0;
}

void nb_grad_cache_destroy(struct nb_grad_cache *c)
{
    if (!c)
        return;
    free(c->rows);
    free(c);
}

void nb_grad_continue(struct nb_grad *g, struct nb_grad_cache *c)
{
    g->cache = c;
}

bool nb_cache_fits(const struct nb_grad_cache *c, const struct nb_grad_sequence *sequence,
                   uint32_t n)
{
    bool fits = n <= c->sequences;
    for (uint32_t i = 0; i < n && fits; i++)
        fits = (uint64_t)sequence[i].position + sequence[i].n <= c->length;
    return fits;
}

struct nb_cached nb_cache_of(const struct nb_grad *g, uint32_t layer, uint32_t sequence)
{
    const struct nb_hparams *hp = &g->plan->hp;
    const struct nb_grad_cache *c = g->cache;
    const size_t row = row_floats(hp), first = (size_t)layer * c->sequences + sequence;
    float *k = c->rows + first * c->length * row;
    return (struct nb_cached){k, k + (size_t)hp->n_kv_heads * hp->k_dim, row};
}
