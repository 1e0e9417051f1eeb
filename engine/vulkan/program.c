// A plan as dispatches: which shader, specialised how, over which window of the weights.
#include "engine/vulkan/model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"

#define MAX_DISPATCHES 4096
#define MAX_VIEWS      (MAX_DISPATCHES * 4)
#define NONE           0xffffffffu

enum { COUNT_ROWS, COUNT_LOGITS }; // words of the step

// A window of the packed weights.
struct window {
    const struct nb_vulkan_piece *piece;
    VkDeviceSize offset, bytes; // in the piece
};

// Row groups of one matrix, and the column of the result where they begin.
struct part {
    const struct nb_packed *w;
    const float *bias;
    uint32_t group0, groups, column;
};

struct builder {
    struct nb_device_model *m;
    uint32_t op; // under way
    uint32_t count;
    int rc;
};

static bool is_float(const struct nb_packed *w)
{
    return w->layout->planes <= NB_PLANES_BF16;
}

static uint32_t record_words4(uint32_t terms)
{
    return 1 + 2 * terms;
}

// --- Pipelines and sets

// The device's tier says how many tokens each of the tiles has, and in which module.
static void specialise(struct builder *b, struct nb_vulkan_dispatch *p, enum nb_shader shader,
                       uint32_t c[NB_VULKAN_CONSTANTS])
{
    p->shader = shader;
    for (uint32_t t = 0; t < NB_TIER_TILES; t++) {
        const struct nb_tier_variant *v = &b->m->device->tier->variant[shader][t];
        c[CONST_TOKENS] = v->tokens;
        int i = nb_vulkan_pipeline_name(b->m, v, c);
        if (i < 0)
            b->rc = i;
        else
            p->pipeline[t] = (uint16_t)i;
    }
}

void nb_vulkan_constants(const struct nb_packed *w, uint32_t c[NB_VULKAN_CONSTANTS])
{
    const struct nb_layout *l = w->layout;
    c[CONST_PLANES] = l->planes;
    c[CONST_CODEBOOK] = l->codebook;
    c[CONST_SUB] = l->sub;
    c[CONST_OFFSET] = l->offset;
    c[CONST_SCALE_BLOCK] = l->scale_block ? l->scale_block : 32;
    if (l->sub == NB_SUB_F32 && l->scale_block == w->cols)
        c[CONST_SCALE_BLOCK] = NB_MAX_COLS;    // one pipeline for rows of any length
    c[CONST_GROUP] = l->group == 16 ? 16 : 32; // a group of 64 is two of 32 with one scale
    c[CONST_HAS_MIN] = l->has_min;
    c[CONST_SUB_BYTES] = l->sub_bytes;
    c[CONST_TERMS] = 1;
}

static VkBufferView texels(struct builder *b, const VkDescriptorBufferInfo *what)
{
    struct nb_device_model *m = b->m;
    const VkBufferViewCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_VIEW_CREATE_INFO,
                                         .buffer = what->buffer,
                                         .format = VK_FORMAT_R32G32B32A32_UINT,
                                         .offset = what->offset,
                                         .range = what->range};
    VkBufferView view = VK_NULL_HANDLE;
    if (b->rc == 0 && m->n_views == MAX_VIEWS)
        b->rc = -EOVERFLOW;
    if (b->rc == 0)
        b->rc = nb_vk_errno(m->device->vk.CreateBufferView(m->device->device, &info, NULL, &view));
    if (b->rc == 0)
        m->views[m->n_views++] = view;
    return view;
}

// A set with these buffers, the step's, and a window of the weights where there is one.
static void bind(struct builder *b, struct nb_vulkan_dispatch *p, const struct window *weights,
                 const struct nb_vulkan_buffer *const buffers[NB_VULKAN_BINDINGS])
{
    struct nb_device_model *m = b->m;
    const struct nb_vk *vk = &m->device->vk;
    const VkDescriptorSetAllocateInfo info = {.sType =
                                                  VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                              .descriptorPool = m->sets,
                                              .descriptorSetCount = 1,
                                              .pSetLayouts = &m->device->set_layout};
    if (b->rc == 0)
        b->rc = nb_vk_errno(vk->AllocateDescriptorSets(m->device->device, &info, &p->set));
    if (b->rc < 0)
        return;
    VkDescriptorBufferInfo what[NB_VULKAN_BINDINGS];
    VkBufferView views[NB_VULKAN_BINDINGS];
    VkWriteDescriptorSet write[NB_VULKAN_BINDINGS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < NB_VULKAN_BINDINGS; i++) {
        const struct nb_vulkan_buffer *buffer = i == BIND_STEP ? &m->step : buffers[i];
        if (i == BIND_WEIGHTS && weights)
            what[i] = (VkDescriptorBufferInfo){weights->piece->buffer.buffer, weights->offset,
                                               weights->bytes};
        else if (buffer)
            what[i] = (VkDescriptorBufferInfo){buffer->buffer, 0, VK_WHOLE_SIZE};
        else
            continue;
        write[n] = (VkWriteDescriptorSet){.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                          .dstSet = p->set,
                                          .dstBinding = i,
                                          .descriptorCount = 1,
                                          .descriptorType = nb_vulkan_descriptor(i),
                                          .pBufferInfo = &what[i],
                                          .pTexelBufferView = &views[i]};
        if (write[n++].descriptorType == VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER)
            views[i] = texels(b, &what[i]);
    }
    if (b->rc == 0)
        vk->UpdateDescriptorSets(m->device->device, n, write, 0, NULL);
}

static struct nb_vulkan_dispatch *add(struct builder *b, enum nb_vulkan_shape shape, uint32_t units)
{
    struct nb_device_model *m = b->m;
    if (m->n_dispatches == MAX_DISPATCHES)
        b->rc = -EOVERFLOW;
    // After an error the last one serves for the rest; nothing of it is used.
    struct nb_vulkan_dispatch *p = &m->dispatches[b->rc < 0 ? 0 : m->n_dispatches++];
    *p = (struct nb_vulkan_dispatch){
        .op = b->op, .shape = shape, .units = units, .few_units = units, .teams = 1};
    return p;
}

static void push(struct nb_vulkan_dispatch *p, const void *data, size_t bytes)
{
    memcpy(p->push, data, bytes);
}

// Vectors lie one after the other in a buffer of their own: they are small.
static uint32_t vector(struct nb_device_model *m, const float *v, uint32_t n)
{
    uint32_t at = m->n_vectors;
    memcpy((float *)m->vectors.map + at, v, n * sizeof(*v));
    m->n_vectors += nb_vulkan_pad(n, NB_VULKAN_VECTOR_PAD);
    return at;
}

// --- Products

static const uint8_t *begin_of(const struct part *p)
{
    return p->w->data + p->group0 * p->w->stride;
}

// How many row groups from `group` on one window can hold.
static uint32_t fitting(const struct nb_device_model *m, const struct nb_packed *w, uint32_t group)
{
    const uint8_t *at = w->data + group * w->stride;
    const struct nb_vulkan_piece *piece = nb_vulkan_piece_of(m, at);
    uint64_t room = (uint64_t)(piece->from + piece->bytes - at),
             most = m->device->max_window - m->device->buffer_alignment;
    uint64_t fit = (room < most ? room : most) / w->stride;
    uint32_t left = (w->rows + 15) / 16 - group;
    return fit < left ? (uint32_t)fit : left;
}

// The window that holds all parts. False when no one does.
static bool window_of(const struct nb_device_model *m, const struct part *p, uint32_t n,
                      struct window *ret)
{
    const struct nb_vulkan_piece *piece = nb_vulkan_piece_of(m, begin_of(p));
    VkDeviceSize low = UINT64_MAX, high = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (nb_vulkan_piece_of(m, begin_of(&p[i])) != piece)
            return false;
        VkDeviceSize at = (VkDeviceSize)(begin_of(&p[i]) - piece->from);
        VkDeviceSize end = at + p[i].groups * (VkDeviceSize)p[i].w->stride;
        low = at < low ? at : low;
        high = end > high ? end : high;
    }
    low -= low % m->device->buffer_alignment;
    *ret = (struct window){piece, low, high - low};
    return high <= piece->bytes && high - low <= m->device->max_window;
}

static void describe(struct nb_device_model *m, const struct part *parts, uint32_t n, uint32_t mode,
                     const struct window *win, struct nb_vulkan_gemm_push *ret)
{
    const struct nb_packed *w = parts[0].w;
    ret->cols = w->cols;
    ret->stride1 = (uint32_t)(w->stride / 4);
    ret->high4 = (uint32_t)(w->high / 16);
    ret->scale2 = (uint32_t)(w->scale / 8);
    ret->min2 = (uint32_t)(w->min / 8);
    ret->sub1 = (uint32_t)(w->sub / 4);
    for (uint32_t i = 0; i < 3; i++) {
        ret->first[i] = ret->groups;
        if (i >= n)
            continue;
        const struct part *p = &parts[i];
        uint32_t done = p->group0 * 16, left = p->w->rows - done;
        ret->weight1[i] = (uint32_t)((size_t)(begin_of(p) - win->piece->from - win->offset) / 4);
        ret->column4[i] = (p->column + done) / 4;
        ret->rows[i] = left < p->groups * 16 ? left : p->groups * 16;
        ret->bias[i] = p->bias ? vector(m, p->bias + done, ret->rows[i]) : NONE;
        if (mode != MODE_SWIGLU || i == 0)
            ret->groups += p->groups;
    }
}

// One dispatch of parts that share a type and a window.
static void product(struct builder *b, const struct part *parts, uint32_t n, uint32_t mode,
                    const struct nb_vulkan_buffer *in, uint32_t in_width,
                    const struct nb_vulkan_buffer *out, uint32_t out_width, bool beside)
{
    struct nb_device_model *m = b->m;
    const struct nb_op *op = &m->plan->ops[b->op];
    const struct nb_packed *w = parts[0].w;
    struct window win;
    window_of(m, parts, n, &win);
    struct nb_vulkan_gemm_push data = {.count = b->count, .out4 = out_width / 4};
    data.in4 = is_float(w) ? in_width / 4 : w->cols / 32 * record_words4(op->terms);
    describe(m, parts, n, mode, &win, &data);
    struct nb_vulkan_dispatch *p = add(b, NB_VULKAN_TOKENS, data.groups * 4);
    p->beside = beside;
    push(p, &data, sizeof(data));
    uint32_t c[NB_VULKAN_CONSTANTS] = {0};
    nb_vulkan_constants(w, c);
    c[CONST_TERMS] = is_float(w) ? 1 : op->terms;
    c[CONST_MODE] = mode;
    specialise(b, p, is_float(w) ? NB_SHADER_GEMM_FLOATS : NB_SHADER_GEMM, c);
    bind(b, p, &win,
         (const struct nb_vulkan_buffer *const[NB_VULKAN_BINDINGS]){
             [BIND_VECTORS] = &m->vectors, [BIND_IN] = in, [BIND_ACT] = &m->act, [BIND_OUT] = out});
}

// All row groups of the matrices, side by side in the result: as few dispatches as types and
// windows allow.
static void products(struct builder *b, const struct part *parts, uint32_t n, uint32_t mode,
                     const struct nb_vulkan_buffer *in, uint32_t in_width,
                     const struct nb_vulkan_buffer *out, uint32_t out_width)
{
    struct part run[3];
    struct window win;
    uint32_t n_run = 0;
    bool beside = false;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t groups = parts[i].groups;
        for (uint32_t g = 0, next; g < groups; g = next) {
            struct part p = parts[i];
            p.group0 = g;
            p.groups = fitting(b->m, p.w, g);
            next = g + p.groups;
            run[n_run] = p;
            if (n_run > 0 &&
                (run[0].w->layout != p.w->layout || !window_of(b->m, run, n_run + 1, &win))) {
                product(b, run, n_run, mode, in, in_width, out, out_width, beside);
                beside = true;
                run[0] = p;
                n_run = 0;
            }
            if (++n_run == 3 || (next == groups && i + 1 == n)) {
                product(b, run, n_run, mode, in, in_width, out, out_width, beside);
                beside = true;
                n_run = 0;
            }
        }
    }
}

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
            *(is_float(op->m[i].w) ? ret_float : ret_quantized) = true;
}

// Normalizes and quantizes what the op's matrices read; returns where their floats are.
static const struct nb_vulkan_buffer *input(struct builder *b, const struct nb_vulkan_buffer *from,
                                            uint32_t gather)
{
    struct nb_device_model *m = b->m;
    const struct nb_op *op = &m->plan->ops[b->op];
    uint32_t cols = op->m[0].w->cols, width = nb_vulkan_pad(cols, 32);
    bool floats, quantized;
    inputs_wanted(op, &floats, &quantized);
    if (!op->norm && !quantized)
        return from;
    struct {
        uint32_t lanes, count, gather, cols, in4, out4, act4, norm;
        float eps;
    } data = {0,
              b->count,
              gather,
              cols,
              width / 4,
              width / 4,
              cols / 32 * record_words4(op->terms),
              op->norm ? vector(m, op->norm, cols) : 0,
              m->plan->hp.norm_eps};
    struct nb_vulkan_dispatch *p = add(b, NB_VULKAN_ROWS, 2);
    p->few_units = width / 32;
    push(p, &data, sizeof(data));
    uint32_t c[NB_VULKAN_CONSTANTS] = {[CONST_TERMS] = op->terms};
    c[CONST_MODE] = (op->norm ? MODE_NORM : 0) | (op->norm && floats ? MODE_FLOAT : 0) |
                    (quantized ? MODE_QUANTIZED : 0);
    specialise(b, p, NB_SHADER_QUANTIZE, c);
    bind(b, p, NULL,
         (const struct nb_vulkan_buffer *const[NB_VULKAN_BINDINGS]){[BIND_VECTORS] = &m->vectors,
                                                                    [BIND_IN] = from,
                                                                    [BIND_OUT] = &m->normed,
                                                                    [BIND_OUT2] = &m->act});
    return op->norm ? &m->normed : from;
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
        struct part part = {.w = w, .group0 = g, .groups = fitting(m, w, g)};
        next = g + part.groups;
        struct window win;
        window_of(m, &part, 1, &win);
        struct nb_vulkan_gemm_push d = {0};
        describe(m, &part, 1, MODE_STORE, &win, &d);
        const uint32_t data[] = {0,         m->tables.token, d.weight1[0], g * 16,
                                 d.rows[0], w->cols,         d.stride1,    d.high4,
                                 d.scale2,  d.min2,          d.sub1,       width_x(m)};
        struct nb_vulkan_dispatch *p = add(b, NB_VULKAN_ROWS, (w->cols + 31) / 32);
        p->beside = g > 0;
        push(p, data, sizeof(data));
        uint32_t c[NB_VULKAN_CONSTANTS] = {0};
        nb_vulkan_constants(w, c);
        specialise(b, p, NB_SHADER_EMBED, c);
        bind(b, p, &win,
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

static void add_rope(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    const struct nb_hparams *hp = &m->plan->hp;
    struct qkv at = qkv_of(hp);
    uint32_t pairs = (hp->dim[NB_DIM_Q] + hp->dim[NB_DIM_K] + hp->dim[NB_DIM_V]) / 2;
    uint32_t block = (hp->dim[NB_DIM_K] + hp->dim[NB_DIM_V]) * 16;
    const uint32_t data[] = {pairs,
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
                             block,
                             hp->dim[NB_DIM_K] * 16};
    struct nb_vulkan_dispatch *p = add(b, NB_VULKAN_ROWS, pairs);
    push(p, data, sizeof(data));
    uint32_t c[NB_VULKAN_CONSTANTS] = {[CONST_TERMS] = 1};
    specialise(b, p, NB_SHADER_ROPE, c);
    bind(b, p, NULL,
         (const struct nb_vulkan_buffer *const[NB_VULKAN_BINDINGS]){
             [BIND_IN] = &m->qkv,
             [BIND_KV] = &m->step,
             [BIND_OUT] = &m->qkv,
             [BIND_OUT2] = &m->kv[op->layer - m->plan->first_layer]});
}

static void add_qkv(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    struct qkv at = qkv_of(&m->plan->hp);
    const struct part parts[] = {whole(&op->m[0], 0), whole(&op->m[1], at.k),
                                 whole(&op->m[2], at.v)};
    const struct nb_vulkan_buffer *in = input(b, &m->x, NONE);
    products(b, parts, 3, MODE_STORE, in, width_x(m), &m->qkv, at.width);
    add_rope(b, op);
}

// Attention quantizes its result itself, with the terms of the op that reads it.
static void add_attention(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    const struct nb_hparams *hp = &m->plan->hp;
    const struct nb_op *out = op + 1;
    struct {
        uint32_t lanes, qkv1, out4, act4, sharing, k_dim, v_dim, position, sequence, table, stride;
        uint32_t block4, v_offset4, window;
        float scale, softcap;
    } data = {hp->dim[NB_DIM_ATTN] / 32,
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
              (hp->dim[NB_DIM_K] + hp->dim[NB_DIM_V]) * 4,
              hp->dim[NB_DIM_K] * 4,
              hp->window,
              hp->attn_scale,
              hp->attn_softcap};
    struct nb_vulkan_dispatch *p = add(b, NB_VULKAN_ROWS, data.lanes);
    p->teams = hp->n_heads;
    push(p, &data, sizeof(data));
    uint32_t c[NB_VULKAN_CONSTANTS] = {[CONST_TERMS] = out->terms};
    c[CONST_MODE] = is_float(out->m[0].w) ? MODE_FLOAT : MODE_QUANTIZED;
    specialise(b, p, NB_SHADER_ATTENTION, c);
    bind(b, p, NULL,
         (const struct nb_vulkan_buffer *const[NB_VULKAN_BINDINGS]){
             [BIND_IN] = &m->qkv,
             [BIND_OUT] = &m->attn,
             [BIND_OUT2] = &m->act,
             [BIND_KV] = &m->kv[op->layer - m->plan->first_layer]});
}

static void add_out(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    const struct part part = whole(&op->m[0], 0);
    products(b, &part, 1, MODE_ADD, &m->attn, op->m[0].w->cols, &m->x, width_x(m));
}

static void add_gate_up(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    const struct nb_vulkan_buffer *in = input(b, &m->x, NONE);
    uint32_t width = nb_vulkan_pad(m->plan->hp.ffn, 32);
    const struct part parts[] = {whole(&op->m[0], 0), whole(&op->m[1], 0)};
    struct window win;
    if (parts[0].w->layout == parts[1].w->layout && window_of(m, parts, 2, &win)) {
        product(b, parts, 2, MODE_SWIGLU, in, width_x(m), &m->hidden, width, false);
        return;
    }
    products(b, &parts[0], 1, MODE_STORE, in, width_x(m), &m->hidden, width);
    products(b, &parts[1], 1, MODE_SWIGLU_UP, in, width_x(m), &m->hidden, width);
}

static void add_down(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    const struct part part = whole(&op->m[0], 0);
    const struct nb_vulkan_buffer *in = input(b, &m->hidden, NONE);
    products(b, &part, 1, MODE_ADD, in, nb_vulkan_pad(op->m[0].w->cols, 32), &m->x, width_x(m));
}

static void add_top(struct builder *b)
{
    struct nb_device_model *m = b->m;
    m->top = m->n_dispatches;
    const uint32_t data[] = {NB_VULKAN_STRIPES, m->tables.candidates, m->plan->hp.vocab,
                             nb_vulkan_pad(m->plan->hp.vocab, 16) / 4};
    struct nb_vulkan_dispatch *p = add(b, NB_VULKAN_ROWS, NB_VULKAN_STRIPES);
    push(p, data, sizeof(data));
    uint32_t c[NB_VULKAN_CONSTANTS] = {[CONST_TERMS] = 1};
    specialise(b, p, NB_SHADER_TOP, c);
    bind(b, p, NULL,
         (const struct nb_vulkan_buffer *const[NB_VULKAN_BINDINGS]){
             [BIND_IN] = &m->logits, [BIND_OUT] = &m->best});
}

static void add_head(struct builder *b, const struct nb_op *op)
{
    struct nb_device_model *m = b->m;
    m->head = m->n_dispatches;
    b->count = COUNT_LOGITS;
    const struct part part = whole(&op->m[0], 0);
    const struct nb_vulkan_buffer *in = input(b, &m->x, m->tables.logits_row);
    products(b, &part, 1, MODE_STORE, in, width_x(m), &m->logits,
             nb_vulkan_pad(m->plan->hp.vocab, 16));
    add_top(b);
}

static void (*const add_op[NB_OP_KINDS])(struct builder *b, const struct nb_op *op) = {
    [NB_OP_EMBED] = add_embed, [NB_OP_QKV] = add_qkv,         [NB_OP_ATTENTION] = add_attention,
    [NB_OP_OUT] = add_out,     [NB_OP_GATE_UP] = add_gate_up, [NB_OP_DOWN] = add_down,
    [NB_OP_HEAD] = add_head,
};

int nb_vulkan_program(struct nb_device_model *m, char *ret_error, size_t error_size)
{
    struct builder b = {.m = m, .count = COUNT_ROWS};
    const VkDescriptorPoolSize size[] = {
        {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, MAX_DISPATCHES * NB_VULKAN_BINDINGS},
        {VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER, MAX_DISPATCHES * NB_VULKAN_BINDINGS}};
    const VkDescriptorPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                             .maxSets = MAX_DISPATCHES,
                                             .poolSizeCount = 2,
                                             .pPoolSizes = size};
    m->dispatches = calloc(MAX_DISPATCHES, sizeof(*m->dispatches));
    m->views = calloc(MAX_VIEWS, sizeof(*m->views));
    if (!m->views || !m->dispatches)
        return nb_fail(ret_error, error_size, -ENOMEM, "out of memory");
    const struct nb_vk *vk = &m->device->vk;
    b.rc = nb_vk_errno(vk->CreateDescriptorPool(m->device->device, &pool, NULL, &m->sets));
    for (; b.op < m->plan->n_ops && b.rc == 0; b.op++)
        add_op[m->plan->ops[b.op].kind](&b, &m->plan->ops[b.op]);
    if (!nb_plan_has(m->plan, NB_OP_HEAD))
        m->head = m->top = m->n_dispatches;
    if (b.rc == 0)
        b.rc = nb_vulkan_tune(m);
    if (b.rc < 0)
        return nb_fail(ret_error, error_size, b.rc, "%s: cannot make the model's pipelines: %s",
                       m->device->info.name, strerror(-b.rc));
    return 0;
}
