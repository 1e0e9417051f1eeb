// Makes the harness's plans: weights of random and of extreme codes and scales, inputs of every
// mood.
#include "tests/vulkan/ops.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/kernels/check.h"

#define MEMORY   ((size_t)1 << 30) // reserved, not used
#define N_MOODS  10
#define PAGE_PAD 64

static void *take(struct op_plan *p, size_t bytes)
{
    void *at = p->memory + p->used;
    p->used += (bytes + PAGE_PAD - 1) / PAGE_PAD * PAGE_PAD;
    if (p->used > p->bytes)
        abort();
    return at;
}

// --- Weights: each row group of a matrix has its own kind of codes and scales.

static const uint16_t extreme_halves[] = {0x0000, 0x8000, 0x7bff, 0xfbff, 0x0400, 0x8400, 0x3c00};

static void extreme_scales(const struct nb_packed *w, uint8_t *group)
{
    uint32_t block = w->layout->scale_block, n = block ? w->cols / block * 16 : 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint16_t half = extreme_halves[random_below(7)];
        const float single = nb_f16_to_f32(half);
        if (w->layout->sub == NB_SUB_F32)
            memcpy(group + w->scale + 4 * i, &single, 4);
        else
            memcpy(group + w->scale + 2 * i, &half, 2);
        if (w->layout->has_min)
            memcpy(group + w->min + 2 * i, &extreme_halves[random_below(7)], 2);
    }
}

// Rows past a matrix's last are zeros, as packing has them.
static void clear_rows(const struct nb_packed *w, uint8_t *group, uint32_t rows)
{
    const uint32_t bytes = nb_type_info(w->layout->type)->bytes;
    for (size_t k = 0; !w->layout->scale_block && rows < 16 && k < w->cols; k++)
        memset(group + (k * 16 + rows) * bytes, 0, (16 - rows) * bytes);
}

static struct nb_packed *new_matrix(struct op_plan *p, uint32_t type, uint32_t rows, uint32_t cols,
                                    uint32_t n, struct nb_matrix **ret)
{
    struct nb_matrix *m = &p->w[p->n_w++];
    if (p->n_w > OP_MATRICES || nb_packed_init(&m->packed, type, rows, cols) < 0)
        abort();
    m->n = n;
    m->apart = nb_packed_bytes(&m->packed);
    m->packed.data = take(p, n * m->apart); // fresh pages
    *ret = m;
    return &m->packed;
}

static void fill_groups(const struct nb_packed *w, uint8_t *data, bool sane)
{
    static const int codes[] = {-1, 0x00, 0xff, -1, -1};
    for (uint32_t g = 0; g * 16 < w->rows; g++) {
        uint32_t kind = sane ? 0 : g % 5;
        struct matrix m = random_matrix(w->layout->type, 16, w->cols, codes[kind], false);
        memcpy(data + g * w->stride, m.data, w->stride);
        if (kind == 3)
            extreme_scales(w, data + g * w->stride);
        clear_rows(w, data + g * w->stride, w->rows - g * 16);
        free(m.data);
    }
}

// `n` of them, one for each expert.
static struct nb_matrix *matrices(struct op_plan *p, uint32_t type, uint32_t rows, uint32_t cols,
                                  uint32_t n, bool sane)
{
    struct nb_matrix *m;
    const struct nb_packed *w = new_matrix(p, type, rows, cols, n, &m);
    for (uint32_t e = 0; e < n; e++)
        fill_groups(w, (uint8_t *)(uintptr_t)w->data + e * m->apart, sane);
    return m;
}

struct nb_packed op_plan_factor(struct op_plan *p, uint32_t type, uint32_t rows, uint32_t cols,
                                bool sane)
{
    struct nb_packed w;
    if (nb_packed_init(&w, type, rows, cols) < 0)
        abort();
    uint8_t *data = take(p, nb_packed_bytes(&w));
    fill_groups(&w, data, sane);
    w.data = data;
    return w;
}

static void put_float(struct nb_packed *w, uint32_t row, uint32_t k, float x)
{
    uint8_t *group = (uint8_t *)(uintptr_t)w->data + row / 16 * w->stride;
    memcpy(group + ((size_t)k * 16 + row % 16) * sizeof(x), &x, sizeof(x));
}

static struct nb_matrix *identity(struct op_plan *p, uint32_t n)
{
    struct nb_matrix *m;
    struct nb_packed *w = new_matrix(p, NB_TYPE_F32, n, n, 1, &m);
    for (uint32_t i = 0; i < n; i++)
        put_float(w, i, i, 1.0f);
    return m;
}

static float *vector(struct op_plan *p, uint32_t n)
{
    float *v = take(p, n * sizeof(*v));
    fill_floats(v, n, SANE);
    return v;
}

// --- Inputs

const char *op_token_mood(uint32_t token)
{
    static const char *const names[N_MOODS] = {
        "sane",      "sane",       "zeros",    "plus and minus one", "denormal",
        "all equal", "an outlier", "tiny max", "whole numbers",      "large"};
    return names[token % N_MOODS];
}

static float outlier(uint32_t k)
{
    return k % 32 == 7 ? 1e4f : 1e-3f * random_float();
}

static void fill_token(float *x, uint32_t n, uint32_t token, bool sane)
{
    uint32_t mood = sane ? 0 : token % N_MOODS;
    float one = random_float();
    fill_floats(x, n, mood == 2 ? ZEROS : mood == 3 ? EXTREME : mood == 4 ? DENORMAL : SANE);
    for (uint32_t k = 0; k < n; k++)
        x[k] = mood == 5   ? one
               : mood == 6 ? outlier(k)
               : mood == 7 ? x[k] * 3e-31f
               : mood == 8 ? (float)((int)random_below(255) - 127)
               : mood == 9 ? x[k] * 1e15f
                           : x[k];
    for (uint32_t k = 0; mood == 2 && k < n; k += 3)
        x[k] = -0.0f;
    for (uint32_t k = 0; mood == 8 && k < n; k += 32)
        x[k] = 127; // the scale is then 1
}

static struct nb_matrix *inputs(struct op_plan *p, uint32_t cols, bool sane)
{
    struct nb_matrix *m;
    struct nb_packed *w = new_matrix(p, NB_TYPE_F32, OP_TOKENS, cols, 1, &m);
    float *x = buffer(cols * sizeof(*x));
    for (uint32_t t = 0; t < OP_TOKENS; t++) {
        fill_token(x, cols, t, sane);
        for (uint32_t k = 0; k < cols; k++)
            put_float(w, t, k, x[k]);
    }
    free(x);
    return m;
}

// --- Ops

static struct nb_slice slice(const struct op_plan *p, enum nb_value v)
{
    static const enum nb_dim width_of[NB_VALUES] = {
        [NB_VALUE_X] = NB_DIM_EMBEDDING,   [NB_VALUE_N] = NB_DIM_EMBEDDING,
        [NB_VALUE_O] = NB_DIM_EMBEDDING,   [NB_VALUE_QKV] = NB_DIM_QKV,
        [NB_VALUE_Q] = NB_DIM_Q,           [NB_VALUE_K] = NB_DIM_K,
        [NB_VALUE_V] = NB_DIM_V,           [NB_VALUE_A] = NB_DIM_ATTN,
        [NB_VALUE_GU] = NB_DIM_FFN_TWICE,  [NB_VALUE_H] = NB_DIM_FFN,
        [NB_VALUE_UP] = NB_DIM_FFN,        [NB_VALUE_ROUTER] = NB_DIM_EXPERTS,
        [NB_VALUE_E_H] = NB_DIM_FFN,       [NB_VALUE_E_UP] = NB_DIM_FFN,
        [NB_VALUE_E_O] = NB_DIM_EMBEDDING, [NB_VALUE_LOGITS] = NB_DIM_VOCAB};
    const uint32_t *dim = p->plan.hp.dim;
    const bool part = v == NB_VALUE_Q || v == NB_VALUE_K || v == NB_VALUE_V;
    return (struct nb_slice){.value = part ? NB_VALUE_QKV : v,
                             .at = v == NB_VALUE_K   ? dim[NB_DIM_Q]
                                   : v == NB_VALUE_V ? dim[NB_DIM_Q] + dim[NB_DIM_K]
                                                     : 0,
                             .width = dim[width_of[v]],
                             .stride = dim[part ? NB_DIM_QKV : width_of[v]]};
}

static struct nb_op *add(struct op_plan *p, const struct op_case *c, enum nb_op_kind kind,
                         enum nb_value in, enum nb_value other, enum nb_value out)
{
    struct nb_plan *plan = &p->plan;
    struct nb_op *op = &p->ops[plan->n_ops++];
    if (plan->n_ops > OP_OPS)
        abort();
    *op = (struct nb_op){.kind = kind, .terms = c->terms, .scale = 1.0f, .rope = NB_NO_ROPE};
    op->scaled = c->scaled;
    op->range = c->range;
    struct nb_slice *const slices[] = {&op->in, &op->other, &op->out};
    const enum nb_value values[] = {in, other, out};
    for (int i = 0; i < 3; i++) {
        if (values[i] == NB_VALUE_NONE)
            continue;
        *slices[i] = slice(p, values[i]);
        if (slices[i]->stride > plan->width[slices[i]->value])
            plan->width[slices[i]->value] = slices[i]->stride;
    }
    op->heads = 1;
    op->dim = op->in.width;
    return op;
}

static void add_norm(struct op_plan *p, const struct op_case *c, enum nb_value in,
                     enum nb_value out)
{
    struct nb_op *op = add(p, c, NB_OP_NORM, in, NB_VALUE_NONE, out);
    op->weight = c->weightless ? NULL : vector(p, op->dim);
    op->bias = c->norm_kind == NB_NORM_LAYER && c->bias ? vector(p, op->dim) : NULL;
}

static void add_head_norm(struct op_plan *p, const struct op_case *c, enum nb_value v,
                          uint32_t heads)
{
    struct nb_op *op = add(p, c, NB_OP_NORM, v, NB_VALUE_NONE, v);
    op->heads = c->head_norm == HEAD_NORM_ROW ? 1 : heads;
    op->dim = op->in.width / op->heads;
    op->each = c->head_norm == HEAD_NORM_EACH;
    op->weight = vector(p, op->each ? op->in.width : op->dim);
}

static struct nb_op *add_linear(struct op_plan *p, const struct op_case *c, uint32_t type,
                                enum nb_value in, enum nb_value out)
{
    struct nb_op *op = add(p, c, NB_OP_LINEAR, in, NB_VALUE_NONE, out);
    const bool experts = nb_value_is_of_experts(in) || nb_value_is_of_experts(out);
    const uint32_t n = experts ? c->experts : 1;
    op->w = matrices(p, type, op->out.width, op->in.width, n, c->sane);
    op->bias = c->bias ? vector(p, n * op->out.width) : NULL;
    return op;
}

// To the residual stream.
static void add_result(struct op_plan *p, const struct op_case *c, enum nb_value in)
{
    if (!c->apart) {
        add_linear(p, c, c->type, in, NB_VALUE_X)->add = true;
        return;
    }
    add_linear(p, c, c->type, in, NB_VALUE_O);
    add_norm(p, c, NB_VALUE_O, NB_VALUE_O);
    add(p, c, NB_OP_ADD, NB_VALUE_O, NB_VALUE_NONE, NB_VALUE_X)->scale = c->scale ? c->scale : 1;
}

// --- Plans

static void set_section(struct op_plan *p, uint32_t from, enum nb_section section)
{
    for (; from < p->plan.n_ops; from++)
        p->ops[from].section = section;
}

static void add_rope(struct op_plan *p, const struct op_case *c, enum nb_value v, uint32_t heads)
{
    struct nb_op *op = add(p, c, NB_OP_ROPE, v, NB_VALUE_NONE, v);
    op->heads = heads;
    op->dim = p->plan.hp.k_dim;
    op->rope = p->plan.hp.n_ropes - 1;
}

static void add_attention(struct op_plan *p, const struct op_case *c, enum nb_value from)
{
    const struct nb_hparams *hp = &p->plan.hp;
    uint32_t first = p->plan.n_ops;
    if (c->norm)
        add_norm(p, c, NB_VALUE_X, NB_VALUE_N);
    if (c->fused) {
        add_linear(p, c, c->type, from, NB_VALUE_QKV);
    } else {
        add_linear(p, c, c->type, from, NB_VALUE_Q);
        add_linear(p, c, c->type, from, NB_VALUE_K);
        add_linear(p, c, c->type2, from, NB_VALUE_V);
    }
    if (c->head_norm) {
        add_head_norm(p, c, NB_VALUE_Q, hp->n_heads);
        add_head_norm(p, c, NB_VALUE_K, hp->n_kv_heads);
    }
    if (!c->still) {
        add_rope(p, c, NB_VALUE_Q, hp->n_heads);
        add_rope(p, c, NB_VALUE_K, hp->n_kv_heads);
    }
    add(p, c, NB_OP_KV, NB_VALUE_K, NB_VALUE_V, NB_VALUE_NONE);
    set_section(p, first, NB_SECTION_QKV);
    p->plan.tail = first = p->plan.n_ops;
    add(p, c, NB_OP_ATTENTION, NB_VALUE_Q, NB_VALUE_NONE, NB_VALUE_A)->window = c->window;
    set_section(p, first, NB_SECTION_ATTENTION);
    add_result(p, c, NB_VALUE_A);
    set_section(p, first + 1, NB_SECTION_OUT);
}

// H holds the gate, and GU both; what they make goes on in H.
static void add_inner(struct op_plan *p, const struct op_case *c, enum nb_value from)
{
    if (c->fused && !c->gateless) {
        add_linear(p, c, c->type, from, NB_VALUE_GU);
        struct nb_op *act = add(p, c, NB_OP_ACTIVATE, NB_VALUE_GU, NB_VALUE_GU, NB_VALUE_H);
        act->in.width = act->other.width = act->other.at = act->out.width;
        return;
    }
    add_linear(p, c, c->type, from, NB_VALUE_H);
    if (!c->gateless)
        add_linear(p, c, c->type2, from, NB_VALUE_UP);
    add(p, c, NB_OP_ACTIVATE, NB_VALUE_H, c->gateless ? NB_VALUE_NONE : NB_VALUE_UP, NB_VALUE_H);
}

static void add_ffn(struct op_plan *p, const struct op_case *c, enum nb_value from)
{
    uint32_t first = p->plan.n_ops;
    if (c->norm && !c->parallel)
        add_norm(p, c, NB_VALUE_X, NB_VALUE_N);
    add_inner(p, c, from);
    set_section(p, first, NB_SECTION_GATE_UP);
    first = p->plan.n_ops;
    add_result(p, c, NB_VALUE_H);
    set_section(p, first, NB_SECTION_DOWN);
}

static void add_experts(struct op_plan *p, const struct op_case *c, enum nb_value from)
{
    uint32_t first = p->plan.n_ops;
    struct op_case router = *c;
    if (c->norm)
        add_norm(p, c, NB_VALUE_X, NB_VALUE_N);
    router.bias = false;
    struct nb_op *scores = add_linear(p, &router, NB_TYPE_F32, from, NB_VALUE_ROUTER);
    float *bias = c->score_bias ? vector(p, c->experts) : NULL;
    for (uint32_t e = 0; bias && e < c->experts; e++)
        bias[e] += c->score_bias;
    scores->bias = bias;
    struct nb_op *route = add(p, c, NB_OP_ROUTE, NB_VALUE_ROUTER, NB_VALUE_NONE, NB_VALUE_NONE);
    route->bias = c->choice_bias ? vector(p, c->experts) : NULL;
    add_linear(p, c, c->type, from, NB_VALUE_E_H);
    if (!c->gateless)
        add_linear(p, c, c->type2, from, NB_VALUE_E_UP);
    add(p, c, NB_OP_ACTIVATE, NB_VALUE_E_H, c->gateless ? NB_VALUE_NONE : NB_VALUE_E_UP,
        NB_VALUE_E_H);
    set_section(p, first, NB_SECTION_GATE_UP);
    first = p->plan.n_ops;
    add_linear(p, c, c->type, NB_VALUE_E_H, NB_VALUE_E_O);
    add(p, c, NB_OP_COMBINE, NB_VALUE_E_O, NB_VALUE_NONE, NB_VALUE_X)->scale =
        c->scale ? c->scale : 1;
    set_section(p, first, NB_SECTION_DOWN);
}

static void add_embedding(struct op_plan *p, const struct op_case *c)
{
    static const enum nb_lookup more[] = {NB_LOOKUP_POSITION, NB_LOOKUP_FIRST};
    struct nb_op *op = add(p, c, NB_OP_EMBED, NB_VALUE_NONE, NB_VALUE_NONE, NB_VALUE_X);
    op->w = c->embeds ? matrices(p, c->type, OP_TOKENS, c->embedding, 1, false)
                      : inputs(p, c->embedding, c->sane);
    op->scale = c->scale ? c->scale : 1;
    for (int i = 0; i < 2 && c->positions; i++) {
        op = add(p, c, NB_OP_EMBED, NB_VALUE_NONE, NB_VALUE_NONE, NB_VALUE_X);
        op->w = matrices(p, c->type, p->plan.hp.context, c->embedding, 1, true);
        op->lookup = more[i];
        op->add = true;
    }
    set_section(p, 0, NB_SECTION_EMBED);
}

static void add_head(struct op_plan *p, const struct op_case *c)
{
    const uint32_t first = p->plan.n_ops;
    const bool normed = c->vectors || (c->vocab && c->norm);
    if (p->plan.tail == 0)
        p->plan.tail = first;
    p->plan.result = normed ? first : first - 1;
    if (normed)
        add_norm(p, c, NB_VALUE_X, NB_VALUE_N);
    if (c->vocab) {
        add_linear(p, c, c->type, normed ? NB_VALUE_N : NB_VALUE_X, NB_VALUE_LOGITS);
    } else {
        struct nb_op *op = add(p, c, NB_OP_LINEAR, normed ? NB_VALUE_N : NB_VALUE_X, NB_VALUE_NONE,
                               NB_VALUE_LOGITS);
        op->w = identity(p, c->embedding);
    }
    if (c->logit_scale || c->logit_cap) {
        struct nb_op *op = add(p, c, NB_OP_CAP, NB_VALUE_LOGITS, NB_VALUE_NONE, NB_VALUE_LOGITS);
        op->scale = c->logit_scale ? c->logit_scale : 1;
        op->cap = c->logit_cap;
    }
    set_section(p, first, NB_SECTION_HEAD);
}

static void describe_ropes(struct op_plan *p, const struct op_case *c)
{
    struct nb_hparams *hp = &p->plan.hp;
    hp->n_ropes = c->ropes ? c->ropes : 1;
    for (uint32_t r = 0; r < hp->n_ropes; r++) {
        hp->rope[r].scale = 1;
        hp->rope[r].freq = take(p, hp->rope_dims * sizeof(double));
        for (uint32_t i = 0; i < hp->rope_dims / 2; i++)
            hp->rope[r].freq[i] = 1.0 / (1 + i + r);
    }
}

static void describe(struct op_plan *p, const struct op_case *c)
{
    struct nb_hparams *hp = &p->plan.hp;
    p->arch = (struct nb_arch){
        .name = "harness", .norm = c->norm_kind, .activation = c->activation, .rope_neox = c->neox};
    *hp = (struct nb_hparams){.arch = &p->arch,
                              .vocab = c->vocab ? c->vocab : c->embedding,
                              .context = c->context ? c->context : OP_TOKENS,
                              .n_layers = 1,
                              .embedding = c->embedding,
                              .ffn = c->ffn ? c->ffn : 32,
                              .n_heads = c->heads ? c->heads : 1,
                              .n_kv_heads = c->kv_heads ? c->kv_heads : 1,
                              .k_dim = c->k_dim ? c->k_dim : 32,
                              .v_dim = c->v_dim ? c->v_dim : 32,
                              .rope_dims = c->rope_dims ? c->rope_dims : 2,
                              .norm_eps = 1e-5f,
                              .attn_scale = 0.125f,
                              .attn_softcap = c->softcap,
                              .causal = !c->bidirectional,
                              .n_experts = c->experts,
                              .n_chosen = c->chosen,
                              .gating = c->gating,
                              .expert_weights_norm = c->weights_norm,
                              .expert_weights_scale = c->scale ? c->scale : 1};
    const uint32_t q = hp->n_heads * hp->k_dim, k = hp->n_kv_heads * hp->k_dim,
                   v = hp->n_kv_heads * hp->v_dim;
    const uint32_t dims[NB_DIM_COUNT] = {[NB_DIM_EMBEDDING] = hp->embedding,
                                         [NB_DIM_VOCAB] = hp->vocab,
                                         [NB_DIM_Q] = q,
                                         [NB_DIM_K] = k,
                                         [NB_DIM_V] = v,
                                         [NB_DIM_QKV] = q + k + v,
                                         [NB_DIM_ATTN] = hp->n_heads * hp->v_dim,
                                         [NB_DIM_FFN] = hp->ffn,
                                         [NB_DIM_FFN_TWICE] = 2 * hp->ffn,
                                         [NB_DIM_EXPERTS] = c->experts};
    memcpy(hp->dim, dims, sizeof(dims));
    describe_ropes(p, c);
}

void op_plan_init(struct op_plan *p, const struct op_case *c)
{
    const enum nb_value from = c->norm ? NB_VALUE_N : NB_VALUE_X;
    *p = (struct op_plan){.bytes = MEMORY};
    p->memory = mmap(NULL, p->bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p->memory == MAP_FAILED)
        abort();
    describe(p, c);
    p->plan.ops = p->ops;
    p->plan.matrices = p->w;
    p->plan.kv_type = c->kv_type;
    p->plan.n_layers = 1;
    p->plan.begins = p->plan.ends = true;
    add_embedding(p, c);
    if (c->middle == MIDDLE_ATTENTION || c->middle == MIDDLE_BOTH)
        add_attention(p, c, from);
    if (c->middle == MIDDLE_FFN || c->middle == MIDDLE_BOTH)
        add_ffn(p, c, from);
    if (c->middle == MIDDLE_EXPERTS)
        add_experts(p, c, from);
    add_head(p, c);
    p->plan.n_matrices = p->n_w;
}

void op_plan_finish(struct op_plan *p)
{
    munmap(p->memory, p->bytes);
}
