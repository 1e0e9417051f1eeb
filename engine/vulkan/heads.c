// Queries, keys and values: RoPE, the KV cache, and attention.
#include <string.h>

#include "engine/vulkan/builder.h"

// Texels of the keys, or values, of a KV block: so many elements of a position.
static uint32_t kv_texels(const struct nb_plan *plan, uint32_t elements)
{
    return (uint32_t)(elements * nb_kv_bytes(plan->kv_type) / 16);
}

static uint32_t k_texels(const struct nb_plan *plan)
{
    return kv_texels(plan, plan->hp.n_kv_heads * nb_vulkan_k_dim(&plan->hp));
}

static uint32_t v_texels(const struct nb_plan *plan)
{
    return kv_texels(plan, plan->hp.n_kv_heads * nb_vulkan_v_dim(&plan->hp));
}

static uint32_t kv_mode(const struct nb_plan *plan)
{
    static const uint32_t modes[NB_KV_TYPES] = {
        [NB_KV_Q8_0] = MODE_CODES, [NB_KV_F32] = MODE_FLOATS};
    const bool odd = plan->hp.k_dim % 2 || plan->hp.v_dim % 2;
    return modes[plan->kv_type] | (odd ? MODE_ODD : 0);
}

static const struct nb_vulkan_buffer *kv_of(const struct builder *b, const struct nb_op *op)
{
    return &b->m->buffers.kv[op->layer - b->m->plan->first_layer];
}

// --- RoPE and KV

// Products do it by quads of rows that must be whole and in one dispatch with those they pair with.
// Codes need the largest of 32 elements first.
bool build_rotates(const struct builder *b, struct target *ret)
{
    const struct nb_device_model *m = b->m;
    const struct nb_plan *plan = m->plan;
    const struct nb_hparams *hp = &plan->hp;
    const uint32_t at = b->stage.first + b->stage.n, gemms = b->stage.n_gemms;
    const struct nb_op *first = op_of(b, b->stage.has_norm), *rope = &plan->ops[at];
    if (m->apart || !m->device->tier->rotates || at >= plan->n_ops || rope->kind != NB_OP_ROPE ||
        nb_vulkan_stage_at(plan, at, false).n != 3 || hp->k_dim % 8 || hp->rope_dims % 8 ||
        hp->v_dim % 32 || plan->kv_type != NB_KV_F16 || b->k != nb_vulkan_k_column(hp) ||
        b->v != nb_vulkan_v_column(hp))
        return false;
    uint32_t width = 0;
    for (uint32_t i = 0; i < gemms; i++) {
        const struct nb_packed *w = &first[i].w->packed;
        width += first[i].out.width;
        if (first[i].out.value != NB_VALUE_QKV ||
            nb_vulkan_fitting(m->device, &m->weights, w, 0) != nb_vulkan_groups(w))
            return false;
    }
    if (width != hp->dim[NB_DIM_QKV])
        return false;
    const struct nb_vulkan_tables *t = &m->tables;
    ret->mode = hp->arch->rope_neox ? MODE_ROPE_NEOX : MODE_ROPE;
    ret->second = kv_of(b, rope);
    ret->more[ROTATE_POSITION1] = t->position;
    ret->more[ROTATE_SEQUENCE1] = t->sequence;
    ret->more[ROTATE_ROPE4] = (t->rope + rope->rope * hp->rope_dims) / 4;
    ret->more[ROTATE_BLOCKS1] = t->blocks;
    ret->more[ROTATE_STRIDE1] = t->block_stride;
    ret->more[ROTATE_ROPES4] = t->ropes / 4;
    return true;
}

// RoPE of queries or keys alone, KV alone, or all three at once.
void build_heads(struct builder *b)
{
    struct nb_device_model *m = b->m;
    const struct nb_plan *plan = m->plan;
    const struct nb_hparams *hp = &plan->hp;
    const struct nb_vulkan_tables *t = &m->tables;
    const struct nb_op *op = op_of(b, 0);
    const bool rotates = op->kind == NB_OP_ROPE, stores = !rotates || b->stage.n == 3;
    const uint32_t pairs = rotates ? op->heads * ((op->dim + 1) / 2) : 0;
    struct push_rope push = {.lanes = pairs,
                             .qkv1 = nb_vulkan_stride(plan, NB_VALUE_QKV),
                             .q1 = rotates ? build_column(b, &op->in) : 0,
                             .k1 = b->k,
                             .v1 = b->v,
                             .heads = rotates ? op->heads : 0,
                             .kv_heads = hp->n_kv_heads,
                             .k_dim = hp->k_dim,
                             .v_dim = hp->v_dim,
                             .rope_dims = rotates ? hp->rope_dims : 0,
                             .neox = rotates && hp->arch->rope_neox,
                             .position1 = t->position,
                             .sequence1 = t->sequence,
                             .rope1 = t->rope + (rotates ? op->rope * hp->rope_dims : 0),
                             .ropes1 = t->ropes,
                             .table1 = t->blocks,
                             .table_stride = t->block_stride,
                             .block1 = (k_texels(plan) + v_texels(plan)) * 4,
                             .v_offset1 = k_texels(plan) * 4};
    if (stores)
        push.lanes += plan->kv_type == NB_KV_Q8_0
                          ? (hp->dim[NB_DIM_K] + hp->dim[NB_DIM_V]) / NB_KV_GROUP
                          : hp->n_kv_heads * ((hp->k_dim + 1) / 2 + (hp->v_dim + 1) / 2);
    struct nb_vulkan_dispatch *p = build_add(b, NB_VULKAN_ROWS, NB_VALUE_QKV, push.lanes);
    build_push(p, &push, sizeof(push));
    uint32_t c[CONST_TIER] = {[CONST_TERMS] = 1, [CONST_MODE] = kv_mode(plan)};
    build_specialise(b, p, NB_SHADER_ROPE, c);
    const struct nb_vulkan_buffer *qkv = build_buffer(b, NB_VALUE_QKV);
    build_bind(b, p, NULL,
               (bindings){[BIND_IN] = qkv,
                          [BIND_KV] = &m->buffers.step,
                          [BIND_OUT] = qkv,
                          [BIND_OUT2] = kv_of(b, op)});
}

// --- Attention

// Query heads that an invocation covers: those of one KV head, or a part of them.
static uint32_t shared_heads(const struct nb_device_model *m)
{
    uint32_t share = m->plan->hp.n_heads / m->plan->hp.n_kv_heads, most = 4;
    if (!m->device->tier->rotates)
        return 1;
    while (share % most)
        most--;
    return most;
}

// The op that reads the result quantized, where nothing else reads it: attention makes it so.
static const struct nb_op *quantized_reader(const struct nb_plan *plan, uint32_t i)
{
    const struct nb_op *op = &plan->ops[i], *next = op + 1;
    const bool reads = i + 1 < plan->n_ops && next->kind == NB_OP_LINEAR &&
                       next->in.value == op->out.value && next->scaled == NB_INPUT_BLOCK &&
                       !nb_is_float(&next->w->packed);
    return reads && plan->hp.v_dim % 32 == 0 && !nb_plan_is_read(plan, i + 2, op->out.value) ? next
                                                                                             : NULL;
}

void build_attention(struct builder *b, bool beside)
{
    struct nb_device_model *m = b->m;
    const struct nb_plan *plan = m->plan;
    const struct nb_hparams *hp = &plan->hp;
    const struct nb_vulkan_tables *t = &m->tables;
    const struct nb_op *op = op_of(b, 0),
                       *reader = m->apart ? NULL : quantized_reader(plan, b->stage.first);
    const enum nb_value v = op->out.value;
    const bool of = nb_vulkan_records_of(v), wanted = b->count == STEP_WANTED;
    const uint32_t terms = reader ? reader->terms : 1;
    const struct push_attention push = {
        .lanes = hp->n_heads / shared_heads(m) * (nb_vulkan_v_dim(hp) / 32),
        .qkv1 = nb_vulkan_stride(plan, NB_VALUE_QKV),
        .out4 = nb_vulkan_stride(plan, v) / 4,
        .act4 = nb_vulkan_record_words4(hp->dim[NB_DIM_ATTN], terms),
        .sharing = hp->n_heads / hp->n_kv_heads,
        .k_dim = hp->k_dim,
        .v_dim = hp->v_dim,
        .end1 = t->end,
        .sequence1 = t->sequence,
        .table1 = t->blocks,
        .table_stride = t->block_stride,
        .block4 = k_texels(plan) + v_texels(plan),
        .v_offset4 = k_texels(plan),
        .window = op->window,
        .scale = hp->attn_scale,
        .softcap = hp->attn_softcap,
        .terms = terms,
        .count = b->count,
        .gather1 = wanted ? t->wanted : NONE};
    struct nb_vulkan_dispatch *p = build_add(b, NB_VULKAN_ROWS, v, push.lanes);
    p->beside = beside;
    p->teams = hp->n_heads;
    build_push(p, &push, sizeof(push));
    uint32_t c[CONST_TIER] = {[CONST_SHARE] = shared_heads(m)};
    c[CONST_TERMS] = m->device->tier->rotates ? 1 : terms;
    c[CONST_MODE] = (reader ? MODE_QUANTIZED : MODE_FLOAT) |
                    (hp->attn_softcap > 0.0f ? MODE_CAP : 0) | kv_mode(plan);
    build_specialise(b, p, NB_SHADER_ATTENTION, c);
    const struct nb_vulkan_buffer *out = build_buffer(b, v);
    build_bind(b, p, NULL,
               (bindings){[BIND_VECTORS] = &m->buffers.vectors,
                          [BIND_IN] = &m->buffers.value[NB_VALUE_QKV],
                          [BIND_OUT] = out,
                          [BIND_OUT2] = &m->buffers.records[of],
                          [BIND_KV] = kv_of(b, op),
                          [BIND_FLOATS] = out});
    if (reader) {
        b->made[of].value = v;
        b->made[of].as = reader;
    }
}
