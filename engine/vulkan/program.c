// A plan as dispatches: which shaders compute each op, from where to where.
#include "engine/vulkan/program.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"

enum { COUNT_ROWS, COUNT_LOGITS }; // words of the step

static struct part whole(const struct nb_matrix *m, uint32_t column)
{
    return (struct part){m->w, m->bias, 0, (m->w->rows + 15) / 16, column};
}

// --- Inputs

static void inputs_wanted(const struct nb_op *op, bool *ret_float, bool *ret_quantized)
{
    *ret_float = *ret_quantized = false;
    for (int i = 0; i < 3; i++)
        if (op->m[i].w)
            *(nb_is_float(op->m[i].w) ? ret_float : ret_quantized) = true;
}

// Rows of `from`, or those that a table lists, normalized where the op has a norm and quantized
// where its matrices want that.
static struct nb_vulkan_dispatch *add_rows(struct builder *b, const struct nb_vulkan_buffer *from,
                                           const struct nb_vulkan_buffer *floats,
                                           const struct nb_vulkan_buffer *records, uint32_t gather,
                                           uint32_t mode)
{
    struct nb_device_model *m = b->m;
    const struct nb_op *op = &m->plan->ops[b->op];
    const bool norm = mode & MODE_NORM;
    uint32_t cols = mode == MODE_FLOAT ? m->plan->hp.embedding : op->m[0].w->cols;
    uint32_t width = nb_vulkan_pad(cols, 32);
    struct {
        uint32_t lanes, count, gather, cols, in4, out4, act4, norm;
        float eps;
    } data = {0,
              b->count,
              gather,
              cols,
              width / 4,
              width / 4,
              blocks_of(cols) * record_words4(op->terms),
              !norm         ? 0
              : b->finisher ? b->norm1
                            : nb_build_vector(m, op->norm, cols),
              m->plan->hp.norm_eps};
    struct nb_vulkan_dispatch *p = nb_build_add(b, NB_VULKAN_ROWS, 2);
    p->few_units = width / 32;
    nb_build_push(p, &data, sizeof(data));
    uint32_t c[NB_VULKAN_CONSTANTS] = {[CONST_TERMS] = mode & MODE_QUANTIZED ? op->terms : 1};
    c[CONST_MODE] = mode;
    nb_build_specialise(b, p, NB_SHADER_QUANTIZE, c);
    nb_build_bind(
        b, p, NULL,
        (const struct nb_vulkan_buffer *const[NB_VULKAN_BINDINGS]){[BIND_VECTORS] = &m->vectors,
                                                                   [BIND_IN] = from,
                                                                   [BIND_OUT2] = records,
                                                                   [BIND_FLOATS] = floats});
    return p;
}

// What the op's matrices read, unless the op before leaves it so.
static struct source input(struct builder *b, const struct nb_vulkan_buffer *from,
                           const struct nb_vulkan_buffer *records)
{
    struct nb_device_model *m = b->m;
    const struct nb_op *op = &m->plan->ops[b->op];
    const struct source source = {op->norm ? &m->normed : from, records,
                                  nb_vulkan_pad(op->m[0].w->cols, 32)};
    bool floats, quantized;
    inputs_wanted(op, &floats, &quantized);
    if (op->norm || quantized)
        add_rows(b, from, &m->normed, records, NONE,
                 (op->norm ? MODE_NORM : 0) | (op->norm && floats ? MODE_FLOAT : 0) |
                     (quantized ? MODE_QUANTIZED : 0))
            ->unless = b->finisher;
    return source;
}

// From here on the rows are those whose logits are wanted: no others are needed once the last layer
// has its keys and values.
static void begin_tail(struct builder *b)
{
    struct nb_device_model *m = b->m;
    m->tail_from = m->n_dispatches;
    b->count = COUNT_LOGITS;
    b->finisher = 0;
    add_rows(b, b->x, &m->tail, &m->act, m->tables.logits_row, MODE_FLOAT);
    b->x = &m->tail;
}

// The result of `part` in these rows, which becomes the next op's input where the dispatch can make
// it so: the tier's products do, the next op reads the same rows, and one dispatch makes them all.
static struct target finishing(struct builder *b, const struct part *part, uint32_t mode,
                               const struct nb_vulkan_buffer *rows, uint32_t width)
{
    struct nb_device_model *m = b->m;
    const struct nb_op *next = &m->plan->ops[b->op + 1];
    struct target t = {.rows = rows, .width = width, .mode = mode};
    b->finisher = 0;
    if (!m->device->tier->variant[NB_SHADER_GEMM][0].finishes || b->op + 1 == m->plan->n_ops ||
        (next->kind == NB_OP_HEAD && b->count == COUNT_ROWS) ||
        (mode == MODE_ADD && !next->norm) || // its input would go where others still read theirs
        nb_build_fitting(m, part->w, 0) != part->groups)
        return t;
    uint32_t cols = next->m[0].w->cols;
    bool floats, quantized;
    b->norm1 = next->norm ? nb_build_vector(m, next->norm, cols) : NONE;
    inputs_wanted(next, &floats, &quantized);
    const uint32_t more[] = {blocks_of(cols) * record_words4(next->terms),
                             floats && next->norm ? nb_vulkan_pad(cols, 32) / 4 : 0, next->terms,
                             b->norm1, cols};
    b->finisher = m->n_dispatches + 1;
    memcpy(t.more, more, sizeof(more));
    t.mode |= MODE_FINISH | (next->norm ? MODE_FINISH_NORM : 0);
    t.second = next->norm ? &m->act : &m->middle;
    t.floats = next->norm ? &m->normed : NULL;
    return t;
}

// --- Ops

static uint32_t width_x(const struct nb_device_model *m)
{
    return nb_vulkan_pad(m->plan->hp.embedding, 32);
}

static void add_embed(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    const struct nb_packed *w = op->m[0].w;
    uint32_t groups = (w->rows + 15) / 16;
    for (uint32_t g = 0, next; g < groups; g = next) {
        struct part part = {.w = w, .group0 = g, .groups = nb_build_fitting(m, w, g)};
        next = g + part.groups;
        struct window win;
        if (!nb_build_window_of(m, &part, 1, &win)) {
            b->rc = -EOVERFLOW; // nb_build_fitting sees to that
            return;
        }
        struct nb_vulkan_gemm_push d = {0};
        nb_build_describe(m, &part, 1, MODE_STORE, &win, &d);
        const uint32_t data[] = {0,         m->tables.token, d.weight1[0], g * 16,
                                 d.rows[0], w->cols,         d.stride1,    d.high4,
                                 d.scale2,  d.min2,          d.sub1,       width_x(m)};
        struct nb_vulkan_dispatch *p = nb_build_add(b, NB_VULKAN_ROWS, (w->cols + 31) / 32);
        p->beside = g > 0;
        nb_build_push(p, data, sizeof(data));
        uint32_t c[NB_VULKAN_CONSTANTS] = {0};
        nb_vulkan_constants(w, c);
        nb_build_specialise(b, p, NB_SHADER_EMBED, c);
        nb_build_bind(
            b, p, &win,
            (const struct nb_vulkan_buffer *const[NB_VULKAN_BINDINGS]){[BIND_OUT] = &m->x});
    }
}

// Columns of q, k and v in a row of the qkv buffer, each padded to whole row groups.
struct qkv {
    uint32_t k, v, width;
};

static struct qkv qkv_of(const struct nb_hparams *hp)
{
    struct qkv r;
    r.k = nb_vulkan_pad(hp->dim[NB_DIM_Q], 16);
    r.v = r.k + nb_vulkan_pad(hp->dim[NB_DIM_K], 16);
    r.width = nb_vulkan_pad(r.v + nb_vulkan_pad(hp->dim[NB_DIM_V], 16), 32);
    return r;
}

// Texels of the keys, or values, of a KV block: so many elements of a position.
static uint32_t kv_texels(const struct nb_plan *plan, uint32_t elements)
{
    return (uint32_t)(elements * nb_kv_bytes(plan->kv_type) / 16);
}

static uint32_t kv_mode(const struct nb_plan *plan)
{
    return plan->kv_type == NB_KV_Q8_0 ? MODE_CODES : 0;
}

static void add_rope(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    const struct nb_hparams *hp = &m->plan->hp;
    struct qkv at = qkv_of(hp);
    const uint32_t kv = hp->dim[NB_DIM_K] + hp->dim[NB_DIM_V];
    uint32_t lanes = hp->dim[NB_DIM_Q] / 2 + (kv_mode(m->plan) ? kv / NB_KV_GROUP : kv / 2);
    const uint32_t data[] = {lanes,
                             at.width,
                             at.k,
                             at.v,
                             hp->n_heads,
                             hp->n_kv_heads,
                             hp->k_dim,
                             hp->v_dim,
                             hp->rope_dims,
                             hp->arch->rope_neox,
                             m->tables.position,
                             m->tables.sequence,
                             m->tables.rope,
                             m->tables.blocks,
                             m->tables.block_stride,
                             kv_texels(m->plan, kv) * 4,
                             kv_texels(m->plan, hp->dim[NB_DIM_K]) * 4};
    struct nb_vulkan_dispatch *p = nb_build_add(b, NB_VULKAN_ROWS, lanes);
    nb_build_push(p, data, sizeof(data));
    uint32_t c[NB_VULKAN_CONSTANTS] = {[CONST_TERMS] = 1, [CONST_MODE] = kv_mode(m->plan)};
    nb_build_specialise(b, p, NB_SHADER_ROPE, c);
    nb_build_bind(b, p, NULL,
                  (const struct nb_vulkan_buffer *const[NB_VULKAN_BINDINGS]){
                      [BIND_IN] = &m->qkv,
                      [BIND_KV] = &m->step,
                      [BIND_OUT] = &m->qkv,
                      [BIND_OUT2] = &m->kv[op->layer - m->plan->first_layer]});
}

// Whether products turn queries and keys and write keys and values, by quads of rows that must be
// whole and in one dispatch with those they pair with. Codes need the largest of 32 elements first.
static bool turns_itself(const struct nb_device_model *m, const struct nb_op *op)
{
    const struct nb_hparams *hp = &m->plan->hp;
    bool whole = m->device->tier->turns && hp->k_dim % 8 == 0 && hp->rope_dims % 8 == 0 &&
                 m->plan->kv_type == NB_KV_F16;
    for (int i = 0; i < 3; i++)
        whole = whole && nb_build_fitting(m, op->m[i].w, 0) == (op->m[i].w->rows + 15) / 16;
    return whole;
}

static void add_qkv(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    struct qkv at = qkv_of(&m->plan->hp);
    const struct part parts[] = {whole(&op->m[0], 0), whole(&op->m[1], at.k),
                                 whole(&op->m[2], at.v)};
    const struct source from = input(b, b->x, &m->act);
    struct target to = {.rows = &m->qkv, .width = at.width};
    const bool turns = turns_itself(m, op);
    if (turns) {
        const struct nb_vulkan_tables *t = &m->tables;
        const uint32_t more[] = {t->position, t->sequence, t->rope / 4, t->blocks, t->block_stride};
        to.mode = m->plan->hp.arch->rope_neox ? MODE_ROPE_NEOX : MODE_ROPE;
        to.second = &m->kv[op->layer - m->plan->first_layer];
        memcpy(to.more, more, sizeof(more));
    }
    nb_build_products(b, parts, 3, &from, &to);
    if (!turns)
        add_rope(b, op);
}

// Query heads that an invocation covers: those of one KV head, or a part of them.
static uint32_t shared_heads(const struct nb_device_model *m)
{
    uint32_t share = m->plan->hp.n_heads / m->plan->hp.n_kv_heads, most = 4;
    if (!m->device->tier->turns)
        return 1;
    while (share % most)
        most--;
    return most;
}

static bool is_last_layer(const struct nb_plan *plan, const struct nb_op *op)
{
    return nb_plan_has(plan, NB_OP_HEAD) && op->layer + 1 == plan->first_layer + plan->n_layers;
}

// Attention quantizes its result itself, with the terms of the op that reads it.
static void add_attention(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    const struct nb_hparams *hp = &m->plan->hp;
    const struct nb_op *out = op + 1;
    const bool floats = nb_is_float(out->m[0].w), last = is_last_layer(m->plan, op);
    if (last)
        begin_tail(b);
    struct {
        uint32_t lanes, qkv1, out4, act4, sharing, k_dim, v_dim, position, sequence, table, stride;
        uint32_t block4, v_offset4, window;
        float scale, softcap;
        uint32_t terms, count, gather;
    } data = {hp->dim[NB_DIM_ATTN] / 32 / shared_heads(m),
              qkv_of(hp).width,
              hp->dim[NB_DIM_ATTN] / 4,
              hp->dim[NB_DIM_ATTN] / 32 * record_words4(out->terms),
              hp->n_heads / hp->n_kv_heads,
              hp->k_dim,
              hp->v_dim,
              m->tables.position,
              m->tables.sequence,
              m->tables.blocks,
              m->tables.block_stride,
              kv_texels(m->plan, hp->dim[NB_DIM_K] + hp->dim[NB_DIM_V]),
              kv_texels(m->plan, hp->dim[NB_DIM_K]),
              hp->window,
              hp->attn_scale,
              hp->attn_softcap,
              out->terms,
              b->count,
              last ? m->tables.logits_row : NONE};
    struct nb_vulkan_dispatch *p = nb_build_add(b, NB_VULKAN_ROWS, data.lanes);
    p->beside = last;
    p->teams = hp->n_heads;
    nb_build_push(p, &data, sizeof(data));
    uint32_t c[NB_VULKAN_CONSTANTS] = {[CONST_SHARE] = shared_heads(m)};
    c[CONST_TERMS] = m->device->tier->turns ? 1 : out->terms;
    c[CONST_MODE] = (floats ? MODE_FLOAT : MODE_QUANTIZED) |
                    (hp->attn_softcap > 0.0f ? MODE_CAP : 0) | kv_mode(m->plan);
    nb_build_specialise(b, p, NB_SHADER_ATTENTION, c);
    nb_build_bind(b, p, NULL,
                  (const struct nb_vulkan_buffer *const[NB_VULKAN_BINDINGS]){
                      [BIND_VECTORS] = &m->vectors,
                      [BIND_IN] = &m->qkv,
                      [BIND_OUT] = &m->attn,
                      [BIND_OUT2] = &m->middle,
                      [BIND_KV] = &m->kv[op->layer - m->plan->first_layer],
                      [BIND_FLOATS] = &m->attn});
}

static void add_out(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    const struct part part = whole(&op->m[0], 0);
    const struct source from = {&m->attn, &m->middle, op->m[0].w->cols};
    const struct target to = finishing(b, &part, MODE_ADD, b->x, width_x(m));
    nb_build_products(b, &part, 1, &from, &to);
}

static void add_gate_up(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    const struct source from = input(b, b->x, &m->act);
    uint32_t width = nb_vulkan_pad(m->plan->hp.ffn, 32);
    const struct part parts[] = {whole(&op->m[0], 0), whole(&op->m[1], 0)};
    struct window win;
    if (parts[0].w->layout == parts[1].w->layout && nb_build_window_of(m, parts, 2, &win)) {
        const struct target to = finishing(b, &parts[0], MODE_SWIGLU, &m->hidden, width);
        nb_build_product(b, parts, 2, &from, &to, false);
        return;
    }
    const struct target gate = {.rows = &m->hidden, .width = width};
    nb_build_products(b, &parts[0], 1, &from, &gate);
    const struct target up = finishing(b, &parts[1], MODE_SWIGLU_UP, &m->hidden, width);
    nb_build_products(b, &parts[1], 1, &from, &up);
}

static void add_down(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    const struct part part = whole(&op->m[0], 0);
    const struct source from = input(b, &m->hidden, &m->middle);
    const struct target to = finishing(b, &part, MODE_ADD, b->x, width_x(m));
    nb_build_products(b, &part, 1, &from, &to);
}

static void add_top(struct builder *b)
{
    struct nb_device_model *m = b->m;
    m->top = m->n_dispatches;
    const uint32_t data[] = {NB_VULKAN_STRIPES, m->tables.candidates, m->plan->hp.vocab,
                             nb_vulkan_pad(m->plan->hp.vocab, 16) / 4};
    struct nb_vulkan_dispatch *p = nb_build_add(b, NB_VULKAN_ROWS, NB_VULKAN_STRIPES);
    nb_build_push(p, data, sizeof(data));
    uint32_t c[NB_VULKAN_CONSTANTS] = {[CONST_TERMS] = 1};
    nb_build_specialise(b, p, NB_SHADER_TOP, c);
    nb_build_bind(b, p, NULL,
                  (const struct nb_vulkan_buffer *const[NB_VULKAN_BINDINGS]){
                      [BIND_IN] = &m->logits, [BIND_OUT] = &m->best});
}

static void add_head(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    if (b->count == COUNT_ROWS)
        begin_tail(b);
    const struct part part = whole(&op->m[0], 0);
    const struct source from = input(b, b->x, op->norm ? &m->act : &m->middle);
    const struct target to = {.rows = &m->logits, .width = nb_vulkan_pad(m->plan->hp.vocab, 16)};
    nb_build_products(b, &part, 1, &from, &to);
    add_top(b);
}

static void (*const add_op[NB_OP_KINDS])(struct builder *b, const struct nb_op *op) = {
    [NB_OP_EMBED] = add_embed, [NB_OP_QKV] = add_qkv,         [NB_OP_ATTENTION] = add_attention,
    [NB_OP_OUT] = add_out,     [NB_OP_GATE_UP] = add_gate_up, [NB_OP_DOWN] = add_down,
    [NB_OP_HEAD] = add_head,
};

// Norms and biases are read in each step, so they lie where the weights do.
static int load_vectors(struct nb_device_model *m)
{
    const VkDeviceSize most = 65536; // of one update
    VkCommandBuffer c;
    int rc = nb_vulkan_begin(m->device, true, &c);
    if (rc < 0)
        return rc;
    for (VkDeviceSize at = 0, n; at < m->vectors.bytes; at += n) {
        n = m->vectors.bytes - at < most ? m->vectors.bytes - at : most;
        m->device->vk.CmdUpdateBuffer(c, m->vectors.buffer, at, n, m->laid + at / sizeof(float));
    }
    rc = nb_vulkan_run_once(m->device, c);
    free(m->laid);
    m->laid = NULL;
    return rc;
}

int nb_vulkan_program(struct nb_device_model *m, char *ret_error, size_t error_size)
{
    struct builder b = {.m = m, .count = COUNT_ROWS, .x = &m->x};
    m->dispatches = calloc(NB_VULKAN_DISPATCHES, sizeof(*m->dispatches));
    if (!m->dispatches)
        return nb_fail(ret_error, error_size, -ENOMEM, "out of memory");
    b.rc = nb_vulkan_sets_init(m->device, NB_VULKAN_DISPATCHES, &m->sets);
    for (; b.op < m->plan->n_ops && b.rc == 0; b.op++)
        add_op[m->plan->ops[b.op].kind](&b, &m->plan->ops[b.op]);
    if (!nb_plan_has(m->plan, NB_OP_HEAD))
        m->tail_from = m->top = m->n_dispatches;
    if (b.rc == 0)
        b.rc = load_vectors(m);
    if (b.rc == 0)
        b.rc = nb_vulkan_pipelines_limit(m);
    if (b.rc == 0)
        b.rc = nb_vulkan_prepare_first(m);
    if (b.rc < 0)
        return nb_fail(ret_error, error_size, b.rc, "%s: cannot make the model's pipelines: %s",
                       m->device->info.name, strerror(-b.rc));
    return 0;
}
