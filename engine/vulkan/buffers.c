// How large a model's buffers are, and their making.
#include "engine/vulkan/buffers.h"

#include <errno.h>
#include <stdlib.h>

#include "engine/vulkan/stages.h"
#include "shaders/abi.h"

enum { BUFFERS = 9 + 2 * NB_VALUES }; // beside KV memory

uint32_t nb_vulkan_k_column(const struct nb_hparams *hp)
{
    return nb_vulkan_pad(hp->dim[NB_DIM_Q], NB_GROUP_ROWS);
}

uint32_t nb_vulkan_v_column(const struct nb_hparams *hp)
{
    return nb_vulkan_k_column(hp) + nb_vulkan_pad(hp->dim[NB_DIM_K], NB_GROUP_ROWS);
}

uint32_t nb_vulkan_stride(const struct nb_plan *plan, enum nb_value v)
{
    const struct nb_hparams *hp = &plan->hp;
    if (v == NB_VALUE_QKV)
        return nb_vulkan_pad(
            nb_vulkan_v_column(hp) + nb_vulkan_pad(hp->dim[NB_DIM_V], NB_GROUP_ROWS), 32);
    return nb_vulkan_pad(plan->width[v], v == NB_VALUE_LOGITS ? NB_GROUP_ROWS : 32);
}

size_t nb_vulkan_kv_bytes(const struct nb_plan *plan)
{
    const struct nb_hparams *hp = &plan->hp;
    return (size_t)hp->n_kv_heads * (nb_vulkan_k_dim(hp) + nb_vulkan_v_dim(hp)) *
           nb_kv_bytes(plan->kv_type);
}

// --- Sizes

static size_t count_vectors(const struct nb_plan *plan)
{
    const uint32_t pad = NB_VULKAN_VECTOR_PAD;
    size_t n = pad;
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct nb_op *op = &plan->ops[i];
        const uint32_t bias = op->w ? op->w->packed.rows : plan->hp.n_experts;
        n += op->weight ? nb_vulkan_pad(op->dim * (op->each ? op->heads : 1), pad) : 0;
        if (op->bias)
            n += (size_t)nb_vulkan_pad(op->kind == NB_OP_NORM ? op->dim : bias, pad) *
                 (op->w ? op->w->n : 1);
    }
    return n;
}

// The widest inputs of matrices in a buffer of records, of all rows.
static VkDeviceSize records_bytes(const struct nb_plan *plan, uint32_t rows, bool others)
{
    VkDeviceSize most = 16;
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct nb_op *op = &plan->ops[i];
        if (op->kind != NB_OP_LINEAR || nb_vulkan_records_of(op->in.value) != others)
            continue;
        VkDeviceSize bytes = (VkDeviceSize)nb_plan_rows(plan, op->in.value, rows) *
                             nb_vulkan_record_words4(op->in.width, op->terms) * 16;
        most = bytes > most ? bytes : most;
    }
    return most;
}

// Of a row: a count for whole rows of its tile (gemm.comp, gemv.glsl), or for each block that is
// quantized as it is made.
static uint32_t sync_bytes(const struct nb_plan *plan)
{
    return 4 * (plan->width[NB_VALUE_H] / 32 + 1);
}

struct sized {
    struct nb_vulkan_buffer *buffer;
    VkDeviceSize bytes;
    enum nb_vulkan_memory where;
};

static VkDeviceSize rows_bytes(const struct nb_plan *plan, enum nb_value v, uint32_t tokens)
{
    return (VkDeviceSize)nb_plan_rows(plan, v, tokens) * nb_vulkan_stride(plan, v) * sizeof(float);
}

static uint32_t list_values(struct nb_vulkan_buffers *b, const struct nb_plan *plan,
                            const struct nb_vulkan_extent *e, struct sized *ret)
{
    const uint32_t used = nb_vulkan_values(plan, false),
                   tail = plan->ends ? nb_plan_tail_values(plan) : 0;
    uint32_t n = 0;
    for (uint32_t v = NB_VALUE_X; v < NB_VALUE_LOGITS; v++) {
        if (used >> v & 1)
            ret[n++] = (struct sized){
                &b->value[v], rows_bytes(plan, (enum nb_value)v, e->padded_rows), NB_VULKAN_DEVICE};
        if (tail >> v & 1)
            ret[n++] = (struct sized){
                &b->tail[v], rows_bytes(plan, (enum nb_value)v, e->wanted_rows), NB_VULKAN_DEVICE};
    }
    return n;
}

// Returns how many.
static uint32_t list_buffers(struct nb_vulkan_buffers *b, const struct nb_plan *plan,
                             const struct nb_vulkan_extent *e, struct sized ret[BUFFERS])
{
    const uint32_t rows = e->padded_rows;
    const bool whole = plan->begins && plan->ends;
    const VkDeviceSize logits = plan->ends ? rows_bytes(plan, NB_VALUE_LOGITS, e->wanted_rows) : 0;
    const VkDeviceSize stripes = (VkDeviceSize)e->wanted_rows * STRIPES * sizeof(uint32_t);
    const struct sized list[] = {
        {&b->step, (VkDeviceSize)e->step_words * 4, NB_VULKAN_TOLD},
        {&b->vectors, count_vectors(plan) * sizeof(float), NB_VULKAN_DEVICE},
        {&b->records[0], records_bytes(plan, rows, false), NB_VULKAN_DEVICE},
        {&b->records[1], records_bytes(plan, rows, true), NB_VULKAN_DEVICE},
        {&b->choices, (VkDeviceSize)rows * plan->hp.n_chosen * 12, NB_VULKAN_DEVICE},
        {&b->sync, (VkDeviceSize)rows * sync_bytes(plan), NB_VULKAN_DEVICE},
        {&b->carry, whole ? 0 : rows_bytes(plan, NB_VALUE_X, rows), NB_VULKAN_HOST},
        {&b->value[NB_VALUE_LOGITS], logits, e->brings ? NB_VULKAN_DEVICE : NB_VULKAN_HOST},
        {&b->best,
         !logits     ? 0
         : e->brings ? logits
                     : stripes,
         NB_VULKAN_HOST},
        {&b->shown, plan->ends ? rows_bytes(plan, NB_VALUE_X, e->wanted_rows) : 0, NB_VULKAN_HOST},
    };
    const uint32_t n = sizeof(list) / sizeof(list[0]);
    for (uint32_t i = 0; i < n; i++)
        ret[i] = list[i];
    return n + list_values(b, plan, e, ret + n);
}

static uint64_t sum(const struct sized *list, uint32_t n)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < n; i++)
        bytes += list[i].bytes;
    return bytes;
}

uint64_t nb_vulkan_buffers_bytes(const struct nb_plan *plan, const struct nb_vulkan_extent *e)
{
    struct nb_vulkan_buffers b;
    struct sized list[BUFFERS];
    const uint32_t n = list_buffers(&b, plan, e, list);
    return sum(list, n);
}

// --- Making them

static int clear(struct nb_vulkan_device *d, const struct sized *list, uint32_t n,
                 const struct nb_vulkan_buffer *kv, uint32_t n_kv)
{
    VkCommandBuffer c;
    int rc = nb_vulkan_begin(d, true, &c);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < n; i++)
        if (list[i].bytes && list[i].where == NB_VULKAN_DEVICE)
            d->vk.CmdFillBuffer(c, list[i].buffer->buffer, 0, VK_WHOLE_SIZE, 0);
    for (uint32_t i = 0; i < n_kv; i++)
        if (!kv[i].pages)
            d->vk.CmdFillBuffer(c, kv[i].buffer, 0, VK_WHOLE_SIZE, 0);
    return nb_vulkan_run_once(d, c);
}

static int make(struct nb_vulkan_device *d, const struct sized *list, uint32_t n)
{
    int rc = 0;
    for (uint32_t i = 0; i < n && rc == 0; i++)
        if (list[i].bytes)
            rc = list[i].bytes > d->max_range
                     ? -E2BIG
                     : nb_vulkan_buffer_init(d, list[i].bytes, list[i].where, list[i].buffer);
    return rc;
}

int nb_vulkan_buffers_init(struct nb_vulkan_device *d, const struct nb_plan *plan,
                           const struct nb_vulkan_extent *e, struct nb_vulkan_buffers *b)
{
    struct sized list[BUFFERS];
    const uint32_t n = list_buffers(b, plan, e, list);
    b->kv = calloc(plan->n_layers, sizeof(*b->kv));
    if (!b->kv)
        return -ENOMEM;
    int rc = make(d, list, n);
    while (b->n_kv < plan->n_layers && rc == 0)
        rc = nb_vulkan_buffer_lazy(d, nb_vulkan_kv_bytes(plan) * e->kv_blocks, &b->kv[b->n_kv++]);
    return rc < 0 ? rc : clear(d, list, n, b->kv, b->n_kv);
}

void nb_vulkan_buffers_finish(struct nb_vulkan_device *d, struct nb_vulkan_buffers *b)
{
    struct nb_vulkan_buffer *const list[] = {&b->step,       &b->vectors, &b->records[0],
                                             &b->records[1], &b->choices, &b->sync,
                                             &b->carry,      &b->shown,   &b->best};
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++)
        nb_vulkan_buffer_finish(d, list[i]);
    for (uint32_t v = 0; v < NB_VALUES; v++) {
        nb_vulkan_buffer_finish(d, &b->value[v]);
        nb_vulkan_buffer_finish(d, &b->tail[v]);
    }
    for (uint32_t i = 0; i < b->n_kv; i++)
        nb_vulkan_buffer_finish(d, &b->kv[i]);
    free(b->kv);
    b->kv = NULL;
    b->n_kv = 0;
}

// --- With ops apart

static uint32_t list_apart(struct nb_vulkan_buffers *b, const struct nb_plan *plan,
                           const struct nb_vulkan_extent *e, struct sized ret[BUFFERS])
{
    const uint32_t more = nb_vulkan_values(plan, true) & ~nb_vulkan_values(plan, false);
    uint32_t n = 0;
    ret[n++] = (struct sized){&b->vectors, count_vectors(plan) * sizeof(float), NB_VULKAN_DEVICE};
    for (uint32_t v = NB_VALUE_X; v < NB_VALUE_LOGITS; v++)
        if (more >> v & 1)
            ret[n++] = (struct sized){
                &b->value[v], rows_bytes(plan, (enum nb_value)v, e->padded_rows), NB_VULKAN_DEVICE};
    return n;
}

uint64_t nb_vulkan_buffers_apart_bytes(const struct nb_plan *plan, const struct nb_vulkan_extent *e)
{
    struct nb_vulkan_buffers b;
    struct sized list[BUFFERS];
    const uint32_t n = list_apart(&b, plan, e, list);
    return sum(list, n);
}

int nb_vulkan_buffers_apart_init(struct nb_vulkan_device *d, const struct nb_plan *plan,
                                 const struct nb_vulkan_extent *e,
                                 const struct nb_vulkan_buffers *shared,
                                 struct nb_vulkan_buffers *b)
{
    struct sized list[BUFFERS];
    *b = *shared;
    b->vectors = (struct nb_vulkan_buffer){0};
    const uint32_t n = list_apart(b, plan, e, list);
    int rc = make(d, list, n);
    return rc < 0 ? rc : clear(d, list, n, NULL, 0);
}

void nb_vulkan_buffers_apart_finish(struct nb_vulkan_device *d,
                                    const struct nb_vulkan_buffers *shared,
                                    struct nb_vulkan_buffers *b)
{
    nb_vulkan_buffer_finish(d, &b->vectors);
    for (uint32_t v = 0; v < NB_VALUES; v++)
        if (b->value[v].buffer != shared->value[v].buffer)
            nb_vulkan_buffer_finish(d, &b->value[v]);
}
