// The stage of matrices that have one input: it is normalized and quantized once, and what follows
// from the results alone is done by whoever has made them. Units are row groups of a tile of
// tokens; of experts a tile is some rows of one expert.
#include <string.h>

#include "engine/cpu/device.h"

// A products stage as a thread runs it.
struct products {
    const struct nb_cpu_stage *stage;
    const struct nb_op *ops; // the products
    struct nb_act a;         // their input
    // Of experts: the input has a row for each token, to be gathered for each tile.
    bool gathers;
    bool experts;
};

// Columns [first, end) of a product's result for the rows of a tile.
struct piece {
    const struct nb_op *op; // the nth of the stage's products
    uint32_t nth;
    const struct nb_cpu_tile *tile;
    uint32_t group0, group1;
};

static uint32_t groups_of(const struct nb_op *op)
{
    return (op->w->packed.rows + NB_GROUP_ROWS - 1) / NB_GROUP_ROWS;
}

// --- Inputs

static bool wants_codes(const struct products *p)
{
    bool wants = false;
    for (uint32_t i = 0; i < p->stage->n_products; i++)
        wants |= !nb_is_float(&p->ops[i].w->packed);
    return wants;
}

static void fill_input(const struct nb_cpu_walk *w, struct products *p, uint32_t t0, uint32_t t1)
{
    const struct nb_op *norm = &w->plan->ops[p->stage->first];
    for (uint32_t t = t0; p->stage->has_norm && t < t1; t++)
        nb_cpu_norm(w, norm, 0, nb_cpu_row(w->m, &norm->in, t), p->a.x + (size_t)t * p->a.k);
    if (wants_codes(p))
        w->k->quantize(&p->a, t0, t1);
}

// The experts whose input the rows are: of a token's row all that it takes, of a row of experts,
// which are sorted, one.
static const uint16_t *experts_of(const struct nb_cpu_walk *w, const struct products *p)
{
    return !p->experts ? NULL : p->gathers ? w->m->expert : w->s->groups.expert;
}

// What a client of the step wants of the input beside the products.
static void show_input(const struct nb_cpu_walk *w, const struct products *p)
{
    const struct nb_device_model *m = w->m;
    if (w->thread > 0)
        return;
    for (uint32_t i = 0; m->capture && i < p->stage->n_products; i++)
        m->capture(m->capture_user, (uint32_t)(&p->ops[i] - w->plan->ops), p->a.x, p->a.n, p->a.k,
                   experts_of(w, p));
    if (m->rows->vectors && p->stage->has_norm && p->stage->first == w->plan->result)
        memcpy(m->rows->vectors, p->a.x, (size_t)p->a.n * p->a.k * sizeof(float));
}

// Few rows every thread normalizes and quantizes for itself.
static void make_input(struct nb_cpu_walk *w, struct products *p)
{
    const struct nb_slice *in = &p->ops[0].in;
    const uint32_t n = nb_plan_rows(w->plan, in->value, w->n);
    const bool few = n <= NB_CPU_FEW_ROWS;
    nb_act_init(&p->a, few ? w->s->act : w->m->act, n, in->width, p->ops[0].terms);
    p->a.scaled = p->ops[0].scaled;
    p->a.range = p->ops[0].range;
    if (!p->stage->has_norm)
        p->a.x = nb_cpu_row(w->m, in, 0);
    if (few || (!p->stage->has_norm && !wants_codes(p))) {
        fill_input(w, p, 0, n); // of floats as they are, nothing
    } else {
        struct nb_share share = nb_cpu_share(w, n, 32);
        for (uint32_t t0, t1; nb_cpu_take(w, &share, &t0, &t1);)
            fill_input(w, p, t0, t1);
        nb_team_barrier(w->m->device->team);
    }
    show_input(w, p);
}

static struct nb_act tile_of(const struct nb_act *a, uint32_t t0, uint32_t n)
{
    struct nb_act r = *a;
    size_t k = a->k;
    r.n = n;
    r.x += t0 * k;
    r.q1 += t0 * k;
    r.q2 += t0 * k;
    r.s += t0 * (k / 32);
    r.sum1 += t0 * (k / 16);
    r.sum2 += t0 * (k / 16);
    return r;
}

static void copy_row(const struct nb_act *from, uint32_t i, const struct nb_act *to, uint32_t j)
{
    const struct nb_act a = tile_of(from, i, 1), b = tile_of(to, j, 1);
    const size_t k = a.k;
    memcpy(b.x, a.x, k * sizeof(*b.x));
    memcpy(b.q1, a.q1, k);
    memcpy(b.s, a.s, k / 32 * sizeof(*b.s));
    memcpy(b.sum1, a.sum1, k / 16 * sizeof(*b.sum1));
    if (a.terms < 2)
        return;
    memcpy(b.q2, a.q2, k);
    memcpy(b.sum2, a.sum2, k / 16 * sizeof(*b.sum2));
}

// The input of a tile's rows.
static struct nb_act input_of(const struct nb_cpu_walk *w, const struct products *p,
                              const struct nb_cpu_tile *tile)
{
    if (!p->gathers)
        return tile_of(&p->a, tile->row, tile->n);
    struct nb_act a;
    nb_act_init(&a, w->s->gathered, tile->n, p->a.k, p->a.terms);
    for (uint32_t i = 0; i < tile->n; i++)
        copy_row(&p->a, w->s->groups.token[tile->row + i], &a, i);
    return a;
}

// --- Products

static void multiply(const struct nb_cpu_walk *w, const struct piece *p, const struct nb_act *a)
{
    const struct nb_op *op = p->op;
    const struct nb_packed m = nb_matrix_of_expert(op->w, p->tile->expert);
    const float *bias = op->bias ? op->bias + (size_t)p->tile->expert * m.rows : NULL;
    w->k->gemm(&m, a, p->group0, p->group1, bias, op->add, nb_cpu_row(w->m, &op->out, p->tile->row),
               op->out.stride, w->s->kernel);
    nb_cpu_adapters_add(w, op, p->nth, p->tile, p->group0, p->group1);
}

// --- Heads: whoever completes one turns it, and writes k and v into the KV block.

static void finish_head(const struct nb_cpu_walk *w, const struct products *p, bool is_q,
                        uint32_t head, const struct nb_cpu_tile *tile)
{
    const struct nb_op *op = p->ops + p->stage->n_products,
                       *end = &w->plan->ops[p->stage->first + p->stage->n];
    for (; op < end; op++)
        for (uint32_t i = 0; (op->kind != NB_OP_KV && op->in.at == 0) == is_q && i < tile->n; i++)
            nb_cpu_head_op(w, op, head, tile->row + i);
}

// Columns [at, end) of the queries, keys and values of a tile are made; of those, `dim` columns
// from `first` on are each of the heads whose counts begin at `slot`.
static void count_heads(const struct nb_cpu_walk *w, const struct products *p,
                        const struct nb_cpu_tile *tile, uint32_t at, uint32_t end, uint32_t first,
                        uint32_t dim, uint32_t heads, bool is_q)
{
    const struct nb_hparams *hp = &w->plan->hp;
    const uint32_t slots = hp->n_heads + hp->n_kv_heads;
    const uint32_t need = is_q ? hp->k_dim : hp->k_dim + hp->v_dim;
    atomic_uint *done = w->m->head_done + (size_t)(tile->row / NB_CPU_TOKEN_TILE) * slots +
                        (is_q ? 0 : hp->n_heads);
    const uint32_t from = at > first ? at - first : 0;
    for (uint32_t h = from / dim; h < heads && first + h * dim < end; h++) {
        const uint32_t low = first + h * dim, high = low + dim;
        const uint32_t part = nb_cpu_min(high, end) - (low > at ? low : at);
        if (atomic_fetch_add_explicit(&done[h], part, memory_order_acq_rel) + part < need)
            continue;
        atomic_store_explicit(&done[h], 0, memory_order_relaxed);
        finish_head(w, p, is_q, h, tile);
    }
}

static void heads_of_piece(const struct nb_cpu_walk *w, const struct products *p,
                           const struct piece *piece)
{
    const struct nb_hparams *hp = &w->plan->hp;
    const struct nb_slice *out = &piece->op->out;
    const uint32_t k = hp->dim[NB_DIM_Q], v = k + hp->dim[NB_DIM_K];
    const uint32_t at = out->at + piece->group0 * NB_GROUP_ROWS;
    const uint32_t end = out->at + nb_cpu_min(piece->group1 * NB_GROUP_ROWS, out->width);
    count_heads(w, p, piece->tile, at, end, 0, hp->k_dim, hp->n_heads, true);
    count_heads(w, p, piece->tile, at, end, k, hp->k_dim, hp->n_kv_heads, false);
    count_heads(w, p, piece->tile, at, end, v, hp->v_dim, hp->n_kv_heads, false);
}

// --- Units

// Row groups [g0, g1) of all products of the stage, one product after the other.
static void run_one_by_one(const struct nb_cpu_walk *w, const struct products *p,
                           const struct nb_cpu_tile *tile, uint32_t g0, uint32_t g1)
{
    const struct nb_act a = input_of(w, p, tile);
    for (uint32_t i = 0, base = 0; i < p->stage->n_products; i++) {
        const uint32_t groups = groups_of(&p->ops[i]);
        const struct piece piece = {&p->ops[i], i, tile, g0 > base ? g0 - base : 0,
                                    g1 > base ? nb_cpu_min(g1 - base, groups) : 0};
        base += groups;
        if (piece.group0 >= piece.group1)
            continue;
        multiply(w, &piece, &a);
        if (p->stage->finish == NB_CPU_HEADS)
            heads_of_piece(w, p, &piece);
    }
}

// The same row groups of each product, and what becomes of them.
static void run_together(const struct nb_cpu_walk *w, const struct products *p,
                         const struct nb_cpu_tile *tile, uint32_t g0, uint32_t g1)
{
    const struct nb_op *act = p->ops + p->stage->n_products;
    const struct nb_act a = input_of(w, p, tile);
    const uint32_t at = g0 * NB_GROUP_ROWS, end = nb_cpu_min(g1 * NB_GROUP_ROWS, act->out.width);
    for (uint32_t i = 0; i < p->stage->n_products; i++)
        multiply(w, &(struct piece){&p->ops[i], i, tile, g0, g1}, &a);
    for (uint32_t t = tile->row; t < tile->row + tile->n; t++) {
        float *gate = nb_cpu_row(w->m, &act->in, t) + at;
        const float *up = act->other.value ? nb_cpu_row(w->m, &act->other, t) + at : NULL;
        w->k->activate(w->plan->hp.arch->activation, gate, up, end - at,
                       nb_cpu_row(w->m, &act->out, t) + at);
    }
}

static struct nb_cpu_tile tile_at(const struct nb_cpu_walk *w, const struct products *p, uint32_t i)
{
    const uint32_t row = i * NB_CPU_TOKEN_TILE;
    if (p->experts)
        return w->s->groups.tile[i];
    return (struct nb_cpu_tile){row, nb_cpu_min(p->a.n - row, NB_CPU_TOKEN_TILE), 0};
}

void nb_cpu_run_products(struct nb_cpu_walk *w, const struct nb_cpu_stage *s)
{
    struct products p = {.stage = s, .ops = &w->plan->ops[s->first + s->has_norm]};
    const bool together = s->finish == NB_CPU_ACTIVATE;
    p.experts = nb_value_is_of_experts(p.ops[0].out.value);
    p.gathers = p.experts && !nb_value_is_of_experts(p.ops[0].in.value);
    if (p.gathers)
        nb_cpu_group(w->m, w->n, &w->s->groups);
    make_input(w, &p);
    if (w->m->rows->no_logits && s->has_norm && s->first == w->plan->result)
        return;
    if (!p.experts)
        nb_cpu_adapters_begin(w, p.ops, s->n_products, &p.a);
    uint32_t groups = groups_of(&p.ops[0]);
    for (uint32_t i = 1; i < s->n_products && !together; i++)
        groups += groups_of(&p.ops[i]);
    const uint32_t tiles =
        p.experts ? w->s->groups.n_tiles : (p.a.n + NB_CPU_TOKEN_TILE - 1) / NB_CPU_TOKEN_TILE;
    // Small pieces where there are many tokens: gate and up are still in the cache when they meet.
    const uint32_t most = together && p.a.n > NB_CPU_FEW_ROWS ? 4 : UINT32_MAX;
    struct nb_share share = nb_cpu_share(w, tiles * groups, most);
    for (uint32_t u, end; nb_cpu_take(w, &share, &u, &end);)
        while (u < end) {
            const struct nb_cpu_tile tile = tile_at(w, &p, u / groups);
            const uint32_t g0 = u % groups, g1 = nb_cpu_min(groups, g0 + end - u);
            (together ? run_together : run_one_by_one)(w, &p, &tile, g0, g1);
            u += g1 - g0;
        }
}
