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
        memcpy(group + w->scale + 2 * i, &extreme_halves[random_below(7)], 2);
        if (w->layout->has_min)
            memcpy(group + w->min + 2 * i, &extreme_halves[random_below(7)], 2);
    }
}

static const struct nb_packed *matrix(struct op_plan *p, uint32_t type, uint32_t rows,
                                      uint32_t cols, bool sane)
{
    static const int codes[] = {-1, 0x00, 0xff, -1, -1};
    struct nb_packed *w = &p->w[p->n_w++];
    if (nb_packed_init(w, type, rows, cols) < 0)
        abort();
    uint8_t *data = take(p, nb_packed_bytes(w));
    w->data = data;
    for (uint32_t g = 0; g * 16 < rows; g++) {
        uint32_t kind = sane ? 0 : g % 5;
        struct matrix m = random_matrix(type, 16, cols, codes[kind], false);
        memcpy(data + g * w->stride, m.data, w->stride);
        if (kind == 3)
            extreme_scales(w, data + g * w->stride);
        free(m.data);
    }
    return w;
}

static void put_float(struct nb_packed *w, uint32_t row, uint32_t k, float x)
{
    uint8_t *group = (uint8_t *)(uintptr_t)w->data + row / 16 * w->stride;
    memcpy(group + ((size_t)k * 16 + row % 16) * sizeof(x), &x, sizeof(x));
}

static struct nb_packed *zeros(struct op_plan *p, uint32_t rows, uint32_t cols)
{
    struct nb_packed *w = &p->w[p->n_w++];
    if (nb_packed_init(w, NB_TYPE_F32, rows, cols) < 0)
        abort();
    w->data = take(p, nb_packed_bytes(w)); // fresh pages
    return w;
}

static const struct nb_packed *identity(struct op_plan *p, uint32_t n)
{
    struct nb_packed *w = zeros(p, n, n);
    for (uint32_t i = 0; i < n; i++)
        put_float(w, i, i, 1.0f);
    return w;
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

static const struct nb_packed *inputs(struct op_plan *p, uint32_t cols, bool sane)
{
    struct nb_packed *w = zeros(p, OP_TOKENS, cols);
    float *x = buffer(cols * sizeof(*x));
    for (uint32_t t = 0; t < OP_TOKENS; t++) {
        fill_token(x, cols, t, sane);
        for (uint32_t k = 0; k < cols; k++)
            put_float(w, t, k, x[k]);
    }
    free(x);
    return w;
}

// --- Plans

static struct nb_op *add(struct op_plan *p, enum nb_op_kind kind, const struct op_case *c,
                         uint32_t normed)
{
    struct nb_op *op = &p->ops[p->plan.n_ops++];
    *op = (struct nb_op){.kind = kind, .terms = c->terms};
    if (normed && c->norm)
        op->norm = vector(p, normed);
    return op;
}

static void put(struct op_plan *p, struct nb_op *op, int i, const struct nb_packed *w, bool bias)
{
    op->m[i].w = w;
    op->m[i].bias = bias ? vector(p, w->rows) : NULL;
}

static void add_attention(struct op_plan *p, const struct op_case *c)
{
    const struct nb_hparams *hp = &p->plan.hp;
    struct nb_op *qkv = add(p, NB_OP_QKV, c, hp->embedding);
    put(p, qkv, 0, matrix(p, c->type, hp->dim[NB_DIM_Q], hp->embedding, c->sane), c->bias);
    put(p, qkv, 1, matrix(p, c->type, hp->dim[NB_DIM_K], hp->embedding, c->sane), c->bias);
    put(p, qkv, 2, matrix(p, c->type2, hp->dim[NB_DIM_V], hp->embedding, c->sane), c->bias);
    add(p, NB_OP_ATTENTION, c, 0);
    struct nb_op *out = add(p, NB_OP_OUT, c, 0);
    put(p, out, 0, matrix(p, c->type, hp->embedding, hp->dim[NB_DIM_ATTN], c->sane), c->bias);
}

static void add_ffn(struct op_plan *p, const struct op_case *c)
{
    const struct nb_hparams *hp = &p->plan.hp;
    struct nb_op *gate_up = add(p, NB_OP_GATE_UP, c, hp->embedding);
    put(p, gate_up, 0, matrix(p, c->type, hp->ffn, hp->embedding, c->sane), c->bias);
    put(p, gate_up, 1, matrix(p, c->type2, hp->ffn, hp->embedding, c->sane), c->bias);
    struct nb_op *down = add(p, NB_OP_DOWN, c, 0);
    put(p, down, 0, matrix(p, c->type, hp->embedding, hp->ffn, c->sane), c->bias);
}

static void describe(struct op_plan *p, const struct op_case *c)
{
    struct nb_hparams *hp = &p->plan.hp;
    p->arch = (struct nb_arch){.name = "harness", .rope_neox = c->neox};
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
                              .window = c->window,
                              .norm_eps = 1e-5f,
                              .attn_scale = 0.125f,
                              .attn_softcap = c->softcap,
                              .rope_scale = 1};
    const uint32_t dims[NB_DIM_COUNT] = {[NB_DIM_EMBEDDING] = hp->embedding,
                                         [NB_DIM_VOCAB] = hp->vocab,
                                         [NB_DIM_Q] = hp->n_heads * hp->k_dim,
                                         [NB_DIM_K] = hp->n_kv_heads * hp->k_dim,
                                         [NB_DIM_V] = hp->n_kv_heads * hp->v_dim,
                                         [NB_DIM_ATTN] = hp->n_heads * hp->v_dim,
                                         [NB_DIM_FFN] = hp->ffn};
    memcpy(hp->dim, dims, sizeof(dims));
    hp->rope_freq = take(p, hp->rope_dims * sizeof(double));
    for (uint32_t i = 0; i < hp->rope_dims / 2; i++)
        hp->rope_freq[i] = 1.0 / (1 + i);
}

void op_plan_init(struct op_plan *p, const struct op_case *c)
{
    *p = (struct op_plan){.bytes = MEMORY};
    p->memory = mmap(NULL, p->bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p->memory == MAP_FAILED)
        abort();
    describe(p, c);
    p->plan.ops = p->ops;
    p->plan.kv_type = c->kv_type;
    p->plan.n_layers = 1;
    struct nb_op *embed = add(p, NB_OP_EMBED, c, 0);
    put(p, embed, 0,
        c->embeds ? matrix(p, c->type, OP_TOKENS, c->embedding, false)
                  : inputs(p, c->embedding, c->sane),
        false);
    if (c->middle == MIDDLE_FFN)
        add_ffn(p, c);
    if (c->middle == MIDDLE_ATTENTION)
        add_attention(p, c);
    struct nb_op *head = add(p, NB_OP_HEAD, c, c->vocab ? c->embedding : 0);
    put(p, head, 0,
        c->vocab ? matrix(p, c->type, c->vocab, c->embedding, c->sane) : identity(p, c->embedding),
        c->vocab && c->bias);
}

void op_plan_finish(struct op_plan *p)
{
    munmap(p->memory, p->bytes);
}
