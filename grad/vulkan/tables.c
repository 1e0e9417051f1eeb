// What the device is told of a batch: RoPE's angles, the tiles of its sequences, and the rows of
// tables that it looks up.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "grad/vulkan/room.h"

void nb_tables_finish(struct nb_grad_vulkan *v)
{
    for (uint32_t i = 0; i < NB_LOOKUPS; i++) {
        free(v->looked[i].of);
        v->looked[i].of = NULL;
    }
}

static int compare(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// By what they look up, and then by row.
static void sort_rows(const struct nb_batch *b, enum nb_lookup lookup, uint64_t *ret)
{
    for (uint32_t i = 0; i < b->rows; i++) {
        const uint32_t of = lookup == NB_LOOKUP_TOKEN      ? (uint32_t)b->token[i]
                            : lookup == NB_LOOKUP_POSITION ? b->position[i]
                                                           : 0;
        ret[i] = (uint64_t)of << 32 | i;
    }
    qsort(ret, b->rows, sizeof(*ret), compare);
}

// words: of all tables. Returns the words behind it.
static uint32_t look_up(const struct nb_batch *b, const uint64_t *sorted, uint32_t at,
                        uint32_t *words, struct nb_looked *l)
{
    l->index = at;
    l->first = at + b->rows;
    l->list = l->first + b->rows + 1;
    l->n = 0;
    for (uint32_t i = 0; i < b->rows; i++) {
        const uint32_t of = (uint32_t)(sorted[i] >> 32), row = (uint32_t)sorted[i];
        if (i == 0 || of != l->of[l->n - 1]) {
            words[l->first + l->n] = i;
            l->of[l->n++] = of;
        }
        words[l->index + row] = l->n - 1;
        words[l->list + i] = row;
    }
    words[l->first + l->n] = b->rows;
    return l->list + b->rows;
}

static uint32_t tiles_of(const struct nb_grad_sequence *s)
{
    return (s->n + TRAIN_QUERIES - 1) / TRAIN_QUERIES;
}

static void add_tiles(const struct nb_batch *b, uint32_t *to)
{
    for (uint32_t i = 0; i < b->n_sequences; i++)
        for (uint32_t t = 0; t < tiles_of(&b->sequence[i]); t++) {
            *to++ = (uint32_t)(b->sequence[i].token - b->token);
            *to++ = b->sequence[i].n;
            *to++ = t * TRAIN_QUERIES;
        }
}

static int fill(struct nb_grad *g, const struct nb_batch *b, uint64_t *sorted, uint32_t *words,
                size_t n)
{
    struct nb_grad_vulkan *v = g->device;
    uint32_t at = v->n_tiles * TRAIN_TILE_WORDS;
    v->tiles = 0;
    add_tiles(b, words);
    v->angles = at;
    const size_t angles = (size_t)b->rows * g->plan->hp.n_ropes * g->plan->hp.rope_dims;
    if (angles)
        memcpy(words + at, b->rope, angles * sizeof(*words));
    at += (uint32_t)angles;
    for (uint32_t i = 0; i < NB_LOOKUPS; i++) {
        uint32_t *of = realloc(v->looked[i].of, b->rows * sizeof(*of));
        if (!of)
            return -ENOMEM;
        v->looked[i].of = of;
        sort_rows(b, (enum nb_lookup)i, sorted);
        at = look_up(b, sorted, at, words, &v->looked[i]);
    }
    int rc = nb_vulkan_fit(v, n, NB_VULKAN_DEVICE, &v->tables);
    return rc == 0 ? nb_vulkan_send(v, (const float *)words, n, &v->tables, 0) : rc;
}

// The longest loops of train_attention.comp are over the tiles of all heads that share keys: of
// each, the chunks of two products, which are staged and summed, the sums of two gradients, and a
// little.
static int check_loops(const struct nb_grad *g, const struct nb_batch *b, struct nb_error *error)
{
    const struct nb_hparams *hp = &g->plan->hp;
    const uint32_t depth = TRAIN_ATTEND_DEPTH, staging = 7, tile = TRAIN_QUERIES + 1;
    const uint32_t chunks = (hp->k_dim + depth - 1) / depth + (hp->v_dim + depth - 1) / depth;
    const uint32_t each = chunks * (depth + staging) + 2 * tile + 12;
    const uint32_t most =
        nb_vulkan_steps(g->device->device) / (hp->n_heads / hp->n_kv_heads) / each * TRAIN_QUERIES;
    for (uint32_t i = 0; i < b->n_sequences; i++)
        if (b->sequence[i].n > most)
            return nb_fail(error, -E2BIG,
                           "%s trains on windows of %u tokens of this model at most, because its "
                           "driver cuts longer loops short, and this one has %u: give shorter ones "
                           "(--length), or train on the CPU",
                           g->device->name, most, b->sequence[i].n);
    return 0;
}

int nb_tables_make(struct nb_grad *g, const struct nb_batch *b, struct nb_error *error)
{
    struct nb_grad_vulkan *v = g->device;
    int rc = check_loops(g, b, error);
    if (rc < 0)
        return rc;
    size_t n = (size_t)b->rows * g->plan->hp.n_ropes * g->plan->hp.rope_dims;
    v->n_tiles = v->longest = 0;
    for (uint32_t i = 0; i < b->n_sequences; i++) {
        v->n_tiles += tiles_of(&b->sequence[i]);
        v->longest = b->sequence[i].n > v->longest ? b->sequence[i].n : v->longest;
    }
    n += (size_t)v->n_tiles * TRAIN_TILE_WORDS + NB_LOOKUPS * (3 * (size_t)b->rows + 1);
    uint64_t *sorted = calloc(b->rows, sizeof(*sorted));
    uint32_t *words = calloc(n, sizeof(*words));
    rc = sorted && words ? fill(g, b, sorted, words, n) : -ENOMEM;
    free(sorted);
    free(words);
    return rc < 0 ? nb_fail(error, rc, "%s: a batch of %u tokens cannot be sent: %s", v->name,
                            b->rows, strerror(-rc))
                  : 0;
}
