// One step on the CPU: every thread walks the plan's ops together, with one barrier after each (two
// where many rows are quantized first). Threads share row groups, rows or heads; a result never
// depends on who computed it.
#include "engine/cpu/device.h"

#include <string.h>
#include <time.h>

#define GROUP_ROWS 16

// A thread's walk through the plan.
struct walk {
    struct nb_device_model *m;
    const struct nb_kernels *k;
    const struct nb_hparams *hp;
    struct nb_cpu_scratch *s;
    uint32_t thread;
    uint32_t n;        // rows of the residual stream
    uint64_t share_id; // counted alike by all threads
};

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t groups_of(const struct nb_packed *w)
{
    return w ? (w->rows + GROUP_ROWS - 1) / GROUP_ROWS : 0;
}

static struct nb_share share_of(struct walk *w, uint32_t units, uint32_t most)
{
    return (struct nb_share){++w->share_id, units, most};
}

static bool take(struct walk *w, const struct nb_share *share, uint32_t *first, uint32_t *end)
{
    uint32_t n = nb_team_take(w->m->device->team, w->thread, share, first);
    *end = *first + n;
    return n > 0;
}

static void barrier(struct walk *w)
{
    nb_team_barrier(w->m->device->team);
}

// --- Inputs

static bool wants_codes(const struct nb_matrix *m)
{
    return m->w && !nb_is_float(m->w);
}

static void fill_input(const struct walk *w, const struct nb_op *op, struct nb_act *a, uint32_t t0,
                       uint32_t t1)
{
    if (op->norm)
        for (uint32_t t = t0; t < t1; t++)
            w->k->rmsnorm(w->m->x + (size_t)t * a->k, op->norm, w->hp->norm_eps, a->k,
                          a->x + (size_t)t * a->k);
    if (wants_codes(&op->m[0]) || wants_codes(&op->m[1]) || wants_codes(&op->m[2]))
        w->k->quantize(a, t0, t1);
}

// The op's input, k wide: the normalized residual stream, or `x` where the op has no norm.
static struct nb_act input(struct walk *w, const struct nb_op *op, float *x)
{
    bool few = w->n <= NB_CPU_FEW_ROWS;
    struct nb_act a;
    nb_act_init(&a, few ? w->s->act : w->m->act, w->n, op->m[0].w->cols, op->terms);
    if (!op->norm)
        a.x = x;
    if (few) {
        fill_input(w, op, &a, 0, w->n);
        return a;
    }
    struct nb_share share = share_of(w, w->n, 32);
    for (uint32_t t0, t1; take(w, &share, &t0, &t1);)
        fill_input(w, op, &a, t0, t1);
    barrier(w);
    return a;
}

// --- Products: units are row groups of a tile of tokens.

typedef void (*piece_fn)(struct walk *w, const struct nb_op *op, const struct nb_act *a,
                         uint32_t t0, uint32_t g0, uint32_t g1);

static struct nb_act tile_of(const struct nb_act *a, uint32_t t0)
{
    struct nb_act r = *a;
    size_t k = a->k;
    r.n = min_u32(a->n - t0, NB_CPU_TOKEN_TILE);
    r.x += t0 * k;
    r.q1 += t0 * k;
    r.q2 += t0 * k;
    r.s += t0 * (k / 32);
    r.sum1 += t0 * (k / 16);
    r.sum2 += t0 * (k / 16);
    return r;
}

static void share_groups(struct walk *w, const struct nb_op *op, const struct nb_act *a,
                         uint32_t groups, uint32_t most, piece_fn piece)
{
    uint32_t tiles = (a->n + NB_CPU_TOKEN_TILE - 1) / NB_CPU_TOKEN_TILE;
    struct nb_share share = share_of(w, tiles * groups, most);
    for (uint32_t u, end; take(w, &share, &u, &end);)
        while (u < end) {
            uint32_t t0 = u / groups * NB_CPU_TOKEN_TILE, g0 = u % groups;
            uint32_t g1 = min_u32(groups, g0 + end - u);
            struct nb_act tile = tile_of(a, t0);
            piece(w, op, &tile, t0, g0, g1);
            u += g1 - g0;
        }
}

static void product(struct walk *w, const struct nb_matrix *m, const struct nb_act *a, uint32_t g0,
                    uint32_t g1, bool accumulate, float *y)
{
    w->k->gemm(m->w, a, g0, g1, m->bias, accumulate, y, m->w->rows, w->s->kernel);
}

// --- q, k, v: whoever completes a head's last row group turns it, and writes k and v into the KV
// block.

static uint8_t *kv_at(const struct nb_device_model *m, uint32_t layer, uint32_t block)
{
    return m->kv + block * m->kv_block_bytes + (layer - m->plan->first_layer) * m->kv_layer_bytes;
}

static void finish_q(struct walk *w, uint32_t head, uint32_t t0, uint32_t n)
{
    const struct nb_hparams *hp = w->hp;
    for (uint32_t t = t0; t < t0 + n; t++)
        w->k->rope(w->m->q + (size_t)t * hp->dim[NB_DIM_Q] + (size_t)head * hp->k_dim, 1, hp->k_dim,
                   hp->rope_dims, w->m->rope + (size_t)t * hp->rope_dims, hp->arch->rope_neox);
}

static void finish_kv(struct walk *w, uint32_t layer, uint32_t head, uint32_t t0, uint32_t n)
{
    const struct nb_device_model *m = w->m;
    const struct nb_hparams *hp = w->hp;
    const size_t bytes = nb_kv_bytes(m->kv_form.type);
    for (uint32_t t = t0; t < t0 + n; t++) {
        float *k = m->k + (size_t)t * hp->dim[NB_DIM_K] + (size_t)head * hp->k_dim;
        const float *v = m->v + (size_t)t * hp->dim[NB_DIM_V] + (size_t)head * hp->v_dim;
        w->k->rope(k, 1, hp->k_dim, hp->rope_dims, m->rope + (size_t)t * hp->rope_dims,
                   hp->arch->rope_neox);
        uint32_t position = m->rows->position[t];
        uint32_t block = m->rows->blocks[m->rows->sequence[t]][position / NB_KV_TILE];
        uint8_t *kv = kv_at(m, layer, block);
        w->k->kv_write(&m->kv_form, kv + head * hp->k_dim * bytes,
                       kv + m->kv_v_offset + head * hp->v_dim * bytes, k, v, 1,
                       position % NB_KV_TILE);
    }
}

// Row groups [g0, g1) of a matrix whose heads are `dim` rows are done; the first of its heads is
// `slot`.
static void count_heads(struct walk *w, uint32_t layer, uint32_t slot, uint32_t heads, uint32_t dim,
                        uint32_t t0, uint32_t n, uint32_t g0, uint32_t g1)
{
    struct nb_device_model *m = w->m;
    uint32_t slots = w->hp->n_heads + w->hp->n_kv_heads;
    atomic_uint *done = m->head_done + (size_t)(t0 / NB_CPU_TOKEN_TILE) * slots;
    for (uint32_t h = g0 * GROUP_ROWS / dim; h < heads && h * dim < g1 * GROUP_ROWS; h++) {
        uint32_t first = h * dim / GROUP_ROWS, end = ((h + 1) * dim - 1) / GROUP_ROWS + 1;
        uint32_t part = min_u32(end, g1) - (first > g0 ? first : g0);
        uint32_t before = atomic_fetch_add_explicit(&done[slot + h], part, memory_order_acq_rel);
        if (before + part < m->head_need[slot + h])
            continue;
        atomic_store_explicit(&done[slot + h], 0, memory_order_relaxed);
        if (slot == 0)
            finish_q(w, h, t0, n);
        else
            finish_kv(w, layer, h, t0, n);
    }
}

static void qkv_piece(struct walk *w, const struct nb_op *op, const struct nb_act *a, uint32_t t0,
                      uint32_t g0, uint32_t g1)
{
    const struct nb_hparams *hp = w->hp;
    float *out[3] = {w->m->q, w->m->k, w->m->v};
    for (uint32_t i = 0, base = 0; i < 3; i++) {
        const struct nb_matrix *m = &op->m[i];
        uint32_t groups = groups_of(m->w);
        uint32_t lo = g0 > base ? g0 - base : 0, hi = g1 > base ? min_u32(g1 - base, groups) : 0;
        if (lo < hi) {
            product(w, m, a, lo, hi, false, out[i] + (size_t)t0 * m->w->rows);
            count_heads(w, op->layer, i ? hp->n_heads : 0, i ? hp->n_kv_heads : hp->n_heads,
                        i == 2 ? hp->v_dim : hp->k_dim, t0, a->n, lo, hi);
        }
        base += groups;
    }
}

static void run_qkv(struct walk *w, const struct nb_op *op)
{
    struct nb_act a = input(w, op, w->m->x);
    uint32_t groups = groups_of(op->m[0].w) + groups_of(op->m[1].w) + groups_of(op->m[2].w);
    share_groups(w, op, &a, groups, UINT32_MAX, qkv_piece);
}

// --- Attention: units are the heads of a chunk of queries.

static void attend(struct walk *w, const struct nb_op *op, const struct nb_cpu_chunk *c,
                   uint32_t head, uint32_t n)
{
    const struct nb_device_model *m = w->m;
    const struct nb_hparams *hp = w->hp;
    uint32_t position = m->rows->position[c->row];
    const uint32_t *blocks = m->rows->blocks[m->rows->sequence[c->row]];
    for (uint32_t b = 0; b <= (position + c->n - 1) / NB_KV_TILE; b++)
        w->s->kv[b] = kv_at(m, op->layer, blocks[b]);
    // The kernel finds a head at kv_head * n + i: shift the rows so that `n` heads from `head` on
    // lie there.
    uint32_t kv_head = head / (hp->n_heads / hp->n_kv_heads), shift = head - kv_head * n;
    size_t ldq = hp->dim[NB_DIM_Q], ldo = hp->dim[NB_DIM_ATTN];
    w->k->attention(&m->kv_form, m->q + c->row * ldq + (size_t)shift * hp->k_dim, ldq, w->s->kv,
                    m->kv_v_offset, c->n, position, kv_head, n, hp->attn_scale, hp->attn_softcap,
                    hp->window, m->attn + c->out_row * ldo + (size_t)shift * hp->v_dim, ldo,
                    w->s->kernel);
}

static bool is_last_layer(const struct walk *w, const struct nb_op *op)
{
    return op->layer + 1 == w->hp->n_layers && nb_plan_has(w->m->plan, NB_OP_HEAD);
}

static void run_attention(struct walk *w, const struct nb_op *op)
{
    struct nb_device_model *m = w->m;
    const struct nb_hparams *hp = w->hp;
    bool last = is_last_layer(w, op);
    const struct nb_cpu_chunks *chunks = last ? &m->wanted : &m->all;
    struct nb_share share = share_of(w, chunks->n * hp->n_heads, UINT32_MAX);
    for (uint32_t u, end; take(w, &share, &u, &end);)
        while (u < end) {
            uint32_t head = u % hp->n_heads, sharing = hp->n_heads / hp->n_kv_heads;
            uint32_t n = min_u32(sharing - head % sharing, end - u);
            attend(w, op, &chunks->chunk[u / hp->n_heads], head, n);
            u += n;
        }
    if (!last)
        return;
    w->n = m->rows->n_logits;
    for (uint32_t i = 0; w->thread == 0 && i < w->n; i++)
        if (m->rows->logits_row[i] != i)
            memcpy(m->x + (size_t)i * hp->embedding,
                   m->x + (size_t)m->rows->logits_row[i] * hp->embedding,
                   hp->embedding * sizeof(float));
}

// --- The others

static void run_embed(struct walk *w, const struct nb_op *op)
{
    const struct nb_rows *rows = w->m->rows;
    struct nb_share share = share_of(w, w->n, UINT32_MAX);
    for (uint32_t t, end; take(w, &share, &t, &end);)
        for (; t < end; t++) {
            w->k->decode_row(op->m[0].w, (uint32_t)rows->token[t],
                             w->m->x + (size_t)t * w->hp->embedding);
            nb_rope_row(w->hp, rows->position[t], w->m->rope + (size_t)t * w->hp->rope_dims);
        }
}

// What stands for the embedding in a plan that lacks it.
static void take_hidden(struct nb_device_model *m, const struct nb_rows *rows)
{
    const struct nb_hparams *hp = &m->plan->hp;
    memcpy(m->x, rows->hidden, (size_t)rows->n * hp->embedding * sizeof(float));
    for (uint32_t t = 0; t < rows->n; t++)
        nb_rope_row(hp, rows->position[t], m->rope + (size_t)t * hp->rope_dims);
}

static void residual_piece(struct walk *w, const struct nb_op *op, const struct nb_act *a,
                           uint32_t t0, uint32_t g0, uint32_t g1)
{
    product(w, &op->m[0], a, g0, g1, true, w->m->x + (size_t)t0 * w->hp->embedding);
}

static void run_out(struct walk *w, const struct nb_op *op)
{
    struct nb_act a = input(w, op, w->m->attn);
    share_groups(w, op, &a, groups_of(op->m[0].w), UINT32_MAX, residual_piece);
}

static void run_down(struct walk *w, const struct nb_op *op)
{
    struct nb_act a = input(w, op, w->m->hidden);
    share_groups(w, op, &a, groups_of(op->m[0].w), UINT32_MAX, residual_piece);
}

static void gate_up_piece(struct walk *w, const struct nb_op *op, const struct nb_act *a,
                          uint32_t t0, uint32_t g0, uint32_t g1)
{
    uint32_t ffn = w->hp->ffn, row = g0 * GROUP_ROWS, n = min_u32(g1 * GROUP_ROWS, ffn) - row;
    float *gate = w->m->hidden + (size_t)t0 * ffn, *up = w->m->up + (size_t)t0 * ffn;
    product(w, &op->m[0], a, g0, g1, false, gate);
    product(w, &op->m[1], a, g0, g1, false, up);
    for (uint32_t t = 0; t < a->n; t++) {
        size_t at = (size_t)t * ffn + row;
        w->k->swiglu(gate + at, up + at, n, gate + at);
    }
}

static void run_gate_up(struct walk *w, const struct nb_op *op)
{
    struct nb_act a = input(w, op, w->m->x);
    // Small pieces where there are many tokens: gate and up are still in the cache when they meet.
    uint32_t most = a.n > NB_CPU_FEW_ROWS ? 4 : UINT32_MAX;
    share_groups(w, op, &a, groups_of(op->m[0].w), most, gate_up_piece);
}

static void head_piece(struct walk *w, const struct nb_op *op, const struct nb_act *a, uint32_t t0,
                       uint32_t g0, uint32_t g1)
{
    product(w, &op->m[0], a, g0, g1, false, w->m->logits + (size_t)t0 * w->hp->vocab);
}

static void run_head(struct walk *w, const struct nb_op *op)
{
    struct nb_act a = input(w, op, w->m->x);
    share_groups(w, op, &a, groups_of(op->m[0].w), UINT32_MAX, head_piece);
}

static void (*const run_op[NB_OP_KINDS])(struct walk *w, const struct nb_op *op) = {
    [NB_OP_EMBED] = run_embed, [NB_OP_QKV] = run_qkv,         [NB_OP_ATTENTION] = run_attention,
    [NB_OP_OUT] = run_out,     [NB_OP_GATE_UP] = run_gate_up, [NB_OP_DOWN] = run_down,
    [NB_OP_HEAD] = run_head,
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void nb_cpu_step_thread(void *model, uint32_t thread)
{
    struct nb_device_model *m = model;
    struct walk w = {m,      m->device->kernels, &m->plan->hp,       &m->scratch[thread],
                     thread, m->rows->n,         m->device->share_id};
    uint64_t before = now_ns();
    for (uint32_t i = 0; i < m->plan->n_ops && w.n > 0; i++) {
        const struct nb_op *op = &m->plan->ops[i];
        run_op[op->kind](&w, op);
        barrier(&w);
        if (thread > 0)
            continue;
        uint64_t now = now_ns();
        m->times[op->kind].ns += now - before;
        before = now;
        nb_device_beat(&m->device->base);
    }
    if (thread == 0)
        m->device->share_id = w.share_id;
}

// Cuts runs of consecutive rows of one sequence, out of rows[0..n) (or all, with NULL), into
// chunks.
static void cut(struct nb_cpu_chunks *c, const struct nb_rows *rows, const uint32_t *row,
                uint32_t n)
{
    c->n = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t r = row ? row[i] : i;
        struct nb_cpu_chunk *last = c->n ? &c->chunk[c->n - 1] : NULL;
        if (last && last->n < NB_CPU_QUERY_TILE && r == last->row + last->n &&
            rows->sequence[r] == rows->sequence[last->row])
            last->n++;
        else
            c->chunk[c->n++] = (struct nb_cpu_chunk){r, 1, i};
    }
}

void nb_cpu_step_prepare(struct nb_device_model *m, const struct nb_rows *rows)
{
    m->rows = rows;
    cut(&m->all, rows, NULL, rows->n);
    cut(&m->wanted, rows, rows->logits_row, rows->n_logits);
    if (!nb_plan_has(m->plan, NB_OP_EMBED))
        take_hidden(m, rows);
}

void nb_cpu_step_finish(struct nb_device_model *m, const struct nb_rows *rows)
{
    if (!nb_plan_has(m->plan, NB_OP_HEAD))
        memcpy(rows->hidden, m->x, (size_t)rows->n * m->plan->hp.embedding * sizeof(float));
}
