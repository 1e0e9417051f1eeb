// ATTENTION over a batch's sequences. A unit of work is a tile of queries of one head; backward,
// all heads that share a head of keys and values, so that whoever adds to one is alone.
#include <string.h>

#include "grad/room.h"

struct work {
    const struct nb_pass *p;
    const struct nb_step *s;
};

// Whose rows a sequence are.
static uint32_t first_row(const struct nb_batch *b, uint32_t sequence)
{
    return (uint32_t)(b->sequence[sequence].token - b->token);
}

// What a backward pass runs again is of the batch alone.
static bool continues(const struct nb_pass *p)
{
    return p->g->cache && p->shows;
}

static struct nb_attend_head head_of(const struct nb_pass *p, const struct nb_step *s,
                                     uint32_t sequence, uint32_t head)
{
    const struct nb_hparams *hp = &p->g->plan->hp;
    const uint32_t row = first_row(&p->g->batch, sequence);
    const uint32_t kv = head / (hp->n_heads / hp->n_kv_heads);
    struct nb_attend_head a = {
        .q = nb_value(p, &s->in, row) + (size_t)head * hp->k_dim,
        .k = nb_value(p, &s->other, row) + (size_t)kv * hp->k_dim,
        .v = nb_value(p, &s->third, row) + (size_t)kv * hp->v_dim,
        .out = nb_value(p, &s->out, row) + (size_t)head * hp->v_dim,
        .sum = nb_value(p, &s->aux, row) + head,
        .ldq = s->in.stride,
        .ldk = s->other.stride,
        .ldv = s->third.stride,
        .ldo = s->out.stride,
        .lds = s->aux.stride,
        .n = p->g->batch.sequence[sequence].n,
        .k_dim = hp->k_dim,
        .v_dim = hp->v_dim,
        .scale = hp->attn_scale,
        .softcap = hp->attn_softcap,
        .window = s->op->window,
        .causal = hp->causal,
    };
    if (!continues(p))
        return a;
    const struct nb_cached c = nb_cache_of(p->g, s->op->layer, sequence);
    a.k = c.k + (size_t)kv * hp->k_dim;
    a.v = c.v + (size_t)kv * hp->v_dim;
    a.ldk = a.ldv = c.stride;
    a.first = p->g->batch.sequence[sequence].position;
    a.n += a.first;
    return a;
}

size_t nb_attend_scratch(const struct nb_hparams *hp)
{
    return nb_attend_floats(hp->k_dim, hp->v_dim);
}

// --- Forward

static uint32_t tiles_of(const struct nb_grad_sequence *s)
{
    return (s->n + NB_QUERY_TILE - 1) / NB_QUERY_TILE;
}

// The sequence that the unit's tile is of, and which of its tiles.
static uint32_t sequence_of(const struct nb_batch *b, uint32_t *tile)
{
    uint32_t sequence = 0;
    while (*tile >= tiles_of(&b->sequence[sequence]))
        *tile -= tiles_of(&b->sequence[sequence++]);
    return sequence;
}

static void attend_unit(void *arg, uint32_t unit, uint32_t thread)
{
    const struct work *w = arg;
    const uint32_t heads = w->p->g->plan->hp.n_heads;
    uint32_t tile = unit / heads;
    const uint32_t sequence = sequence_of(&w->p->g->batch, &tile);
    const struct nb_attend_head a = head_of(w->p, w->s, sequence, unit % heads);
    const uint32_t q0 = tile * NB_QUERY_TILE;
    const uint32_t left = a.n - a.first - q0;
    w->p->g->loops->attend(&a, q0, nb_least(left, NB_QUERY_TILE), nb_scratch(w->p, thread));
}

static bool is_tapped(const struct nb_pass *p)
{
    return p->span == &p->g->spans[p->g->tap.layer + 1];
}

// Queries, keys and values, in this order.
static const struct nb_place *read_by(const struct nb_step *s, uint32_t i)
{
    const struct nb_place *const of[] = {&s->in, &s->other, &s->third};
    return of[i];
}

static void tap(const struct nb_pass *p, const struct nb_step *s)
{
    for (uint32_t i = 0; i < 3; i++) {
        const struct nb_place *of = read_by(s, i);
        float *ret = p->g->tap.ret[i];
        for (uint32_t row = 0; row < p->rows && ret; row++, ret += of->width)
            memcpy(ret, nb_value(p, of, row), of->width * sizeof(*ret));
    }
}

static void put(const struct nb_pass *p, const struct nb_step *s, uint32_t sequence)
{
    const struct nb_grad_sequence *of = &p->g->batch.sequence[sequence];
    const struct nb_cached c = nb_cache_of(p->g, s->op->layer, sequence);
    const uint32_t row = first_row(&p->g->batch, sequence);
    for (uint32_t i = 0; i < of->n; i++) {
        const size_t at = (of->position + i) * c.stride;
        memcpy(c.k + at, nb_value(p, &s->other, row + i), s->other.width * sizeof(float));
        memcpy(c.v + at, nb_value(p, &s->third, row + i), s->third.width * sizeof(float));
    }
}

void nb_attend(const struct nb_pass *p, const struct nb_step *s)
{
    if (p->shows && is_tapped(p))
        tap(p, s);
    const struct nb_batch *b = &p->g->batch;
    for (uint32_t i = 0; continues(p) && i < b->n_sequences; i++)
        put(p, s, i);
    struct work w = {p, s};
    uint32_t tiles = 0;
    for (uint32_t i = 0; i < b->n_sequences; i++)
        tiles += tiles_of(&b->sequence[i]);
    nb_each(p->g->team, tiles * p->g->plan->hp.n_heads, attend_unit, &w);
}

// --- Backward

static float *gradient_or_null(const struct nb_pass *p, const struct nb_place *place, uint32_t row,
                               size_t at)
{
    return nb_is_wanted(p, place) ? nb_gradient(p, place, row) + at : NULL;
}

static void attend_back_unit(void *arg, uint32_t unit, uint32_t thread)
{
    const struct work *w = arg;
    const struct nb_pass *p = w->p;
    const struct nb_hparams *hp = &p->g->plan->hp;
    const uint32_t sequence = unit / hp->n_kv_heads, kv = unit % hp->n_kv_heads;
    const uint32_t row = first_row(&p->g->batch, sequence), sharing = hp->n_heads / hp->n_kv_heads;
    for (uint32_t h = kv * sharing; h < (kv + 1) * sharing; h++) {
        const struct nb_attend_head a = head_of(p, w->s, sequence, h);
        const struct nb_attend_gradients d = {
            .out = nb_gradient(p, &w->s->out, row) + (size_t)h * hp->v_dim,
            .q = gradient_or_null(p, &w->s->in, row, (size_t)h * hp->k_dim),
            .k = gradient_or_null(p, &w->s->other, row, (size_t)kv * hp->k_dim),
            .v = gradient_or_null(p, &w->s->third, row, (size_t)kv * hp->v_dim)};
        p->g->loops->attend_back(&a, &d, nb_scratch(p, thread));
    }
}

static void tap_back(const struct nb_pass *p, const struct nb_step *s)
{
    for (uint32_t i = 0; i < 3; i++) {
        const struct nb_place *of = read_by(s, i);
        const float *d = nb_is_wanted(p, of) ? p->g->tap.d[i] : NULL;
        for (uint32_t row = 0; row < p->rows && d; row++, d += of->width)
            for (uint32_t j = 0; j < of->width; j++)
                nb_gradient(p, of, row)[j] += d[j];
    }
}

void nb_attend_back(const struct nb_pass *p, const struct nb_step *s)
{
    if (is_tapped(p))
        tap_back(p, s);
    struct work w = {p, s};
    nb_each(p->g->team, p->g->batch.n_sequences * p->g->plan->hp.n_kv_heads, attend_back_unit, &w);
}
