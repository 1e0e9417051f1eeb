// The dispatches of each kind of step, forward and backward. A value and its gradient lie at the
// same offset of two buffers, so one place says where both are.
#include "grad/vulkan/room.h"

#define SIDE 16 // of a workgroup of attention

static uint32_t at(const struct nb_recording *r, const struct nb_place *p)
{
    return nb_is_somewhere(p) ? r->v->at[p->buffer] + p->at : NONE;
}

static const struct nb_placed *placed(const struct nb_recording *r, const struct nb_step *s)
{
    return &r->weights->steps[s - r->span->steps];
}

static const struct nb_hparams *params(const struct nb_recording *r)
{
    return &r->g->plan->hp;
}

// --- LINEAR

static uint32_t ceil_by(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

// Of one product: bands of rows, so that no dispatch takes long, of parts of the sum.
static void multiply(struct nb_recording *r, uint32_t mode, const struct push_train_gemm *whole)
{
    const bool a_by_k = mode != TRAIN_TO_WEIGHT, b_by_k = mode == TRAIN_FORWARD;
    for (uint32_t k = 0, of; k < whole->k; k += of) {
        of = nb_least(whole->k - k, r->v->depth);
        const double row = 2.0 * whole->n * of;
        const uint32_t fit = (uint32_t)(r->v->operations / row) / NB_TRAIN_TILE * NB_TRAIN_TILE,
                       band = fit ? fit : NB_TRAIN_TILE;
        for (uint32_t m = 0; m < whole->m; m += band) {
            struct push_train_gemm p = *whole;
            p.m = nb_least(whole->m - m, band);
            p.k = of;
            p.a += a_by_k ? m * p.lda + k : k * p.lda + m;
            p.b += b_by_k ? k : k * p.ldb;
            p.c += m * p.ldc;
            p.old = k ? p.c : p.old == NONE ? NONE : p.old + m * p.ldold;
            p.ldold = k ? p.ldc : p.ldold;
            p.bias = k + of < whole->k ? NONE : p.bias;
            nb_record(r, &(struct nb_train_dispatch){.shader = NB_TRAIN_GEMM,
                                                     .mode = mode,
                                                     .push = &p,
                                                     .bytes = sizeof(p),
                                                     .x = ceil_by(p.n, NB_TRAIN_TILE),
                                                     .y = ceil_by(p.m, NB_TRAIN_TILE),
                                                     .operations = row * p.m});
        }
    }
}

static void linear(struct nb_recording *r, const struct nb_step *s)
{
    const struct nb_placed *w = placed(r, s);
    multiply(r, TRAIN_FORWARD,
             &(struct push_train_gemm){.m = r->rows,
                                       .n = s->w->rows,
                                       .k = s->w->cols,
                                       .a = at(r, &s->in),
                                       .lda = s->in.stride,
                                       .b = w->matrix,
                                       .ldb = s->w->cols,
                                       .c = at(r, &s->out),
                                       .ldc = s->out.stride,
                                       .old = s->op->add ? at(r, &s->old) : NONE,
                                       .ldold = s->old.stride,
                                       .bias = w->bias});
}

static void sum_columns(struct nb_recording *r, uint32_t mode, const struct push_train_sums *p)
{
    nb_record(r, &(struct nb_train_dispatch){
                     .shader = NB_TRAIN_SUMS,
                     .mode = mode,
                     .push = p,
                     .bytes = sizeof(*p),
                     .x = ceil_by(p->each ? p->heads * p->dim : p->dim, TRAIN_COLUMNS),
                     .y = 1,
                     .operations = (double)p->rows * p->heads * p->dim});
}

// Of what was added to before: its gradient is the result's.
static void old_back(struct nb_recording *r, const struct nb_step *s);

static void linear_back(struct nb_recording *r, const struct nb_step *s)
{
    const struct nb_placed *w = placed(r, s);
    struct push_train_gemm p = {.m = s->w->rows,
                                .n = s->w->cols,
                                .k = r->rows,
                                .a = at(r, &s->out),
                                .lda = s->out.stride,
                                .b = at(r, &s->in),
                                .ldb = s->in.stride,
                                .c = w->matrix,
                                .ldc = s->w->cols,
                                .old = w->matrix,
                                .ldold = s->w->cols,
                                .bias = NONE};
    if (s->w->gradient)
        multiply(r, TRAIN_TO_WEIGHT, &p);
    p = (struct push_train_gemm){.m = r->rows,
                                 .n = s->w->cols,
                                 .k = s->w->rows,
                                 .a = at(r, &s->out),
                                 .lda = s->out.stride,
                                 .b = w->matrix,
                                 .ldb = s->w->cols,
                                 .c = at(r, &s->in),
                                 .ldc = s->in.stride,
                                 .old = at(r, &s->in),
                                 .ldold = s->in.stride,
                                 .bias = NONE};
    if (r->wanted[s->in.buffer])
        multiply(r, TRAIN_TO_INPUT, &p);
    if (s->bias && s->bias->gradient)
        sum_columns(r, TRAIN_SUM_BIAS,
                    &(struct push_train_sums){.rows = r->rows,
                                              .heads = 1,
                                              .dim = s->w->rows,
                                              .y = at(r, &s->out),
                                              .y1 = s->out.stride,
                                              .to = w->bias});
    old_back(r, s);
}

// --- NORM

static void norm_of(struct nb_recording *r, const struct nb_step *s, uint32_t mode)
{
    const struct nb_placed *w = placed(r, s);
    const struct push_train_norm p = {.rows = r->rows,
                                      .heads = s->op->heads,
                                      .dim = s->op->dim,
                                      .x = at(r, &s->in),
                                      .x1 = s->in.stride,
                                      .y = at(r, &s->out),
                                      .y1 = s->out.stride,
                                      .stat = at(r, &s->aux),
                                      .stat1 = s->aux.stride,
                                      .weight = w->weight,
                                      .weights1 = s->op->each ? s->op->dim : 0,
                                      .bias = w->bias,
                                      .layer = params(r)->arch->norm == NB_NORM_LAYER,
                                      .eps = params(r)->norm_eps};
    struct nb_train_dispatch d = {
        .shader = NB_TRAIN_NORM, .mode = mode, .push = &p, .bytes = sizeof(p)};
    nb_record_units(r, &d, (uint64_t)p.rows * p.heads, 1);
}

static void norm(struct nb_recording *r, const struct nb_step *s)
{
    norm_of(r, s, TRAIN_NORM);
}

static void norm_back(struct nb_recording *r, const struct nb_step *s)
{
    const struct nb_placed *w = placed(r, s);
    struct push_train_sums p = {.rows = r->rows,
                                .heads = s->op->heads,
                                .dim = s->op->dim,
                                .each = s->op->each,
                                .x = at(r, &s->in),
                                .x1 = s->in.stride,
                                .y = at(r, &s->out),
                                .y1 = s->out.stride,
                                .stat = at(r, &s->aux),
                                .stat1 = s->aux.stride,
                                .to = w->weight};
    if (s->weight && s->weight->gradient)
        sum_columns(r, TRAIN_SUM_NORM, &p);
    p.each = 0;
    p.to = w->bias;
    if (s->bias && s->bias->gradient)
        sum_columns(r, TRAIN_SUM_BIAS, &p);
    if (r->wanted[s->in.buffer])
        norm_of(r, s, TRAIN_NORM_BACK);
}

// --- Ops that make each number by itself

static void rows(struct nb_recording *r, uint32_t mode, const struct push_train_rows *p)
{
    struct nb_train_dispatch d = {
        .shader = NB_TRAIN_ROWS, .mode = mode, .push = p, .bytes = sizeof(*p)};
    nb_record_units(r, &d, (uint64_t)p->rows * p->width, TRAIN_LANES);
}

// From the input to the result, forward.
static struct push_train_rows along(const struct nb_recording *r, const struct nb_step *s)
{
    return (struct push_train_rows){.rows = r->rows,
                                    .width = s->out.width,
                                    .x = at(r, &s->in),
                                    .x1 = s->in.stride,
                                    .y = at(r, &s->out),
                                    .y1 = s->out.stride,
                                    .z = NONE,
                                    .old = at(r, &s->old),
                                    .old1 = s->old.stride,
                                    .q = NONE,
                                    .function = params(r)->arch->activation,
                                    .scale = s->op->scale,
                                    .cap = s->op->cap};
}

// From the result's gradient to the input's, to which it is added unless both are one.
static struct push_train_rows against(const struct nb_recording *r, const struct nb_step *s)
{
    struct push_train_rows p = along(r, s);
    p.x = at(r, &s->out);
    p.x1 = s->out.stride;
    p.y = at(r, &s->in);
    p.y1 = s->in.stride;
    p.old = nb_same_place(&s->in, &s->out) ? NONE : p.y;
    p.old1 = p.y1;
    return p;
}

static void old_back(struct nb_recording *r, const struct nb_step *s)
{
    if (!nb_is_somewhere(&s->old) || !r->wanted[s->old.buffer] || nb_same_place(&s->old, &s->out))
        return;
    rows(r, TRAIN_SUM_BACK,
         &(struct push_train_rows){.rows = r->rows,
                                   .width = s->out.width,
                                   .x = at(r, &s->out),
                                   .x1 = s->out.stride,
                                   .y = at(r, &s->old),
                                   .y1 = s->old.stride,
                                   .old = at(r, &s->old),
                                   .old1 = s->old.stride,
                                   .scale = 1});
}

static void add(struct nb_recording *r, const struct nb_step *s)
{
    const struct push_train_rows p = along(r, s);
    rows(r, TRAIN_SUM, &p);
}

static void add_back(struct nb_recording *r, const struct nb_step *s)
{
    const struct push_train_rows p = against(r, s);
    if (r->wanted[s->in.buffer])
        rows(r, TRAIN_SUM_BACK, &p);
    old_back(r, s);
}

static void cap(struct nb_recording *r, const struct nb_step *s)
{
    const struct push_train_rows p = along(r, s);
    rows(r, TRAIN_CAP, &p);
}

static void cap_back(struct nb_recording *r, const struct nb_step *s)
{
    struct push_train_rows p = against(r, s);
    p.p = at(r, &s->out);
    p.p1 = s->out.stride;
    rows(r, TRAIN_CAP_BACK, &p);
}

static void activate(struct nb_recording *r, const struct nb_step *s)
{
    struct push_train_rows p = along(r, s);
    p.z = at(r, &s->other);
    p.z1 = s->other.stride;
    rows(r, TRAIN_ACTIVATE, &p);
}

static void activate_back(struct nb_recording *r, const struct nb_step *s)
{
    struct push_train_rows p = against(r, s);
    p.p = p.y;
    p.p1 = p.y1;
    p.z = p.q = at(r, &s->other);
    p.z1 = p.q1 = s->other.stride;
    rows(r, TRAIN_ACTIVATE_BACK, &p);
}

static struct push_train_rows turned(const struct nb_recording *r, const struct nb_step *s,
                                     struct push_train_rows p)
{
    const struct nb_hparams *hp = params(r);
    p.width = s->op->heads * ((s->op->dim + 1) / 2);
    p.table = r->v->angles + s->op->rope * hp->rope_dims;
    p.table1 = hp->n_ropes * hp->rope_dims;
    p.dim = s->op->dim;
    p.rope_dims = hp->rope_dims;
    p.neox = hp->arch->rope_neox;
    return p;
}

static void rope(struct nb_recording *r, const struct nb_step *s)
{
    struct push_train_rows p = turned(r, s, along(r, s));
    p.old = NONE;
    rows(r, TRAIN_ROPE, &p);
}

static void rope_back(struct nb_recording *r, const struct nb_step *s)
{
    const struct push_train_rows p = turned(r, s, against(r, s));
    rows(r, TRAIN_ROPE_BACK, &p);
}

// --- EMBED, from rows that weights.c has sent behind the values

static void embed(struct nb_recording *r, const struct nb_step *s)
{
    struct push_train_rows p = along(r, s);
    p.x = nb_looked_at(r, s);
    p.x1 = s->out.width;
    p.old = s->op->add ? p.old : NONE;
    p.table = r->v->looked[s->op->lookup].index;
    rows(r, TRAIN_EMBED, &p);
}

static void embed_back(struct nb_recording *r, const struct nb_step *s)
{
    const struct nb_looked *l = &r->v->looked[s->op->lookup];
    struct push_train_rows p = along(r, s);
    p.rows = l->n;
    p.x = at(r, &s->out);
    p.x1 = s->out.stride;
    p.y = nb_looked_at(r, s);
    p.y1 = s->out.width;
    p.table = l->first;
    p.table1 = l->list;
    if (s->w->gradient)
        rows(r, TRAIN_EMBED_BACK, &p);
    old_back(r, s);
}

// --- ATTENTION

// A power of two, so that models share pipelines.
static uint32_t chunks_of(uint32_t dim)
{
    uint32_t chunks = 1;
    while (chunks * SIDE < dim)
        chunks *= 2;
    return chunks;
}

static void attend_in(struct nb_recording *r, const struct nb_step *s, uint32_t mode,
                      uint32_t heads)
{
    const struct nb_hparams *hp = params(r);
    struct push_train_attention p = {.tiles = r->v->tiles,
                                     .q = at(r, &s->in),
                                     .q1 = s->in.stride,
                                     .k = at(r, &s->other),
                                     .k1 = s->other.stride,
                                     .v = at(r, &s->third),
                                     .v1 = s->third.stride,
                                     .made = at(r, &s->out),
                                     .made1 = s->out.stride,
                                     .sum = at(r, &s->aux),
                                     .sum1 = s->aux.stride,
                                     .k_dim = hp->k_dim,
                                     .v_dim = hp->v_dim,
                                     .sharing = hp->n_heads / hp->n_kv_heads,
                                     .causal = hp->causal,
                                     .window = s->op->window,
                                     .scale = hp->attn_scale,
                                     .softcap = hp->attn_softcap};
    const uint32_t dim = hp->k_dim > hp->v_dim ? hp->k_dim : hp->v_dim;
    const double tile = 4.0 * TRAIN_QUERIES * r->v->longest * dim * hp->n_heads;
    const uint32_t fit = (uint32_t)(r->v->operations / tile), band = fit ? fit : 1;
    for (uint32_t i = 0, n; i < r->v->n_tiles; i += n, p.tiles += n * TRAIN_TILE_WORDS) {
        n = nb_least(r->v->n_tiles - i, band);
        nb_record(r, &(struct nb_train_dispatch){.shader = NB_TRAIN_ATTENTION,
                                                 .mode = mode,
                                                 .chunks = chunks_of(dim),
                                                 .push = &p,
                                                 .bytes = sizeof(p),
                                                 .x = n,
                                                 .y = heads,
                                                 .operations = tile * n});
    }
}

static void attend(struct nb_recording *r, const struct nb_step *s)
{
    attend_in(r, s, TRAIN_ATTEND, params(r)->n_heads);
}

static void attend_back(struct nb_recording *r, const struct nb_step *s)
{
    attend_in(r, s, TRAIN_ATTEND_QUERIES, params(r)->n_heads);
    attend_in(r, s, TRAIN_ATTEND_KEYS, params(r)->n_kv_heads);
}

// --- The table

typedef void record_fn(struct nb_recording *r, const struct nb_step *s);

static const struct {
    record_fn *forward, *backward;
} kinds[NB_OP_KINDS] = {
    [NB_OP_EMBED] = {embed, embed_back},
    [NB_OP_NORM] = {norm, norm_back},
    [NB_OP_LINEAR] = {linear, linear_back},
    [NB_OP_ROPE] = {rope, rope_back},
    [NB_OP_ATTENTION] = {attend, attend_back},
    [NB_OP_ACTIVATE] = {activate, activate_back},
    [NB_OP_ADD] = {add, add_back},
    [NB_OP_CAP] = {cap, cap_back},
};

bool nb_vulkan_has_kind(const struct nb_step *s)
{
    return s->kind == &nb_step_kinds[s->op->kind] && kinds[s->op->kind].forward;
}

void nb_record_forward(struct nb_recording *r, const struct nb_step *s)
{
    kinds[s->op->kind].forward(r, s);
}

void nb_record_backward(struct nb_recording *r, const struct nb_step *s)
{
    kinds[s->op->kind].backward(r, s);
}
