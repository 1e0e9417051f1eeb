// A model's memory on a Vulkan device.
#include "engine/vulkan/model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tensor/fail.h"

#define MAX_VALUES 512u // of a head: shaders/attention_team.glsl
#define ROW_PAD    8    // the widest tile of tokens

size_t nb_vulkan_kv_block_bytes(const struct nb_device *d, const struct nb_plan *plan)
{
    return nb_plan_kv_bytes(plan) * plan->n_layers;
}

// --- Memory

static int check_model(const struct nb_device_model *m, char *error, size_t size)
{
    const struct nb_hparams *hp = &m->plan->hp;
    const char *name = m->device->info.name;
    if (hp->v_dim % 32 || hp->v_dim > MAX_VALUES || hp->k_dim % 2)
        return nb_fail(error, size, -ENOTSUP,
                       "heads of %u by %u: the Vulkan device wants values in blocks of 32, %u at "
                       "most; use the CPU",
                       hp->k_dim, hp->v_dim, MAX_VALUES);
    size_t kv = nb_plan_kv_bytes(m->plan) * m->kv_blocks;
    if (kv > m->device->max_range)
        return nb_fail(error, size, -ENOMEM,
                       "the KV cache takes %zu MB a layer and %s binds %llu MB at once: ask for "
                       "less KV memory",
                       kv >> 20, name, (unsigned long long)(m->device->max_range >> 20));
    return 0;
}

static size_t count_vectors(const struct nb_plan *plan)
{
    size_t n = NB_VULKAN_VECTOR_PAD;
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct nb_op *op = &plan->ops[i];
        n += op->norm ? nb_vulkan_pad(op->m[0].w->cols, NB_VULKAN_VECTOR_PAD) : 0;
        for (int j = 0; j < 3; j++)
            n += op->m[j].bias ? nb_vulkan_pad(op->m[j].w->rows, NB_VULKAN_VECTOR_PAD) : 0;
    }
    return n;
}

static void lay_tables(struct nb_device_model *m)
{
    const struct nb_hparams *hp = &m->plan->hp;
    struct nb_vulkan_tables *t = &m->tables;
    uint32_t at = 2, padded = nb_vulkan_pad(m->max_rows, 4);
    uint32_t *const rows[] = {&t->token, &t->position, &t->sequence, &t->logits_row,
                              &t->candidates};
    for (int i = 0; i < 5; i++, at += padded)
        *rows[i] = at;
    t->rope = nb_vulkan_pad(at, 4); // read as texels
    t->blocks = t->rope + m->max_rows * hp->rope_dims;
    t->block_stride = (hp->context + NB_VULKAN_KV_TILE - 1) / NB_VULKAN_KV_TILE;
    t->groups = t->blocks + m->max_rows * t->block_stride;
    t->words = nb_vulkan_pad(
        t->groups + NB_VULKAN_DISPATCHES * sizeof(VkDispatchIndirectCommand) / sizeof(uint32_t), 4);
}

static uint32_t widest_act(const struct nb_plan *plan)
{
    uint32_t most = 16;
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        uint32_t bytes = (plan->ops[i].m[0].w ? plan->ops[i].m[0].w->cols / 32 : 0) * 16 *
                         (1 + 2 * plan->ops[i].terms);
        most = bytes > most ? bytes : most;
    }
    return most;
}

// Of a row: the four words that gemm.comp's norm takes, or gemv.glsl's count for each block that is
// quantized as it is made.
static uint32_t sync_bytes(const struct nb_hparams *hp)
{
    uint32_t blocks = (hp->ffn + 31) / 32;
    return 4 * (blocks > 4 ? blocks : 4);
}

struct sized {
    struct nb_vulkan_buffer *buffer;
    VkDeviceSize bytes;
    enum nb_vulkan_memory where;
};
enum { BUFFERS = 14 }; // beside weights and KV memory

static void size_buffers(struct nb_device_model *m, struct sized ret[BUFFERS])
{
    const struct nb_hparams *hp = &m->plan->hp;
    const bool embed = nb_plan_has(m->plan, NB_OP_EMBED), head = nb_plan_has(m->plan, NB_OP_HEAD);
    lay_tables(m);
    VkDeviceSize row = (VkDeviceSize)m->padded_rows * sizeof(float);
    VkDeviceSize x = row * nb_vulkan_pad(hp->embedding, 32);
    VkDeviceSize logits = m->head_rows * sizeof(float) * nb_vulkan_pad(hp->vocab, 16);
    VkDeviceSize best = m->brings ? logits : m->head_rows * NB_VULKAN_STRIPES * sizeof(uint32_t);
    uint32_t qkv = nb_vulkan_pad(hp->dim[NB_DIM_Q], 16) + nb_vulkan_pad(hp->dim[NB_DIM_K], 16) +
                   nb_vulkan_pad(hp->dim[NB_DIM_V], 16);
    const struct sized list[BUFFERS] = {
        {&m->step, (VkDeviceSize)m->tables.words * 4, NB_VULKAN_HOST},
        {&m->vectors, count_vectors(m->plan) * sizeof(float), NB_VULKAN_DEVICE},
        {&m->x, x, NB_VULKAN_DEVICE},
        {&m->normed, x, NB_VULKAN_DEVICE},
        {&m->qkv, row * nb_vulkan_pad(qkv, 32), NB_VULKAN_DEVICE},
        {&m->attn, row * nb_vulkan_pad(hp->dim[NB_DIM_ATTN], 32), NB_VULKAN_DEVICE},
        {&m->hidden, row * nb_vulkan_pad(hp->ffn, 32), NB_VULKAN_DEVICE},
        {&m->act, (VkDeviceSize)m->padded_rows * widest_act(m->plan), NB_VULKAN_DEVICE},
        {&m->middle, (VkDeviceSize)m->padded_rows * widest_act(m->plan), NB_VULKAN_DEVICE},
        {&m->sync, (VkDeviceSize)m->padded_rows * sync_bytes(hp), NB_VULKAN_DEVICE},
        {&m->logits, head ? logits : 0, m->brings ? NB_VULKAN_DEVICE : NB_VULKAN_HOST},
        {&m->best, head ? best : 0, NB_VULKAN_HOST},
        {&m->tail, head ? m->head_rows * sizeof(float) * nb_vulkan_pad(hp->embedding, 32) : 0,
         NB_VULKAN_DEVICE},
        {&m->carry, head && embed ? 0 : x, NB_VULKAN_HOST},
    };
    memcpy(ret, list, sizeof(list));
}

static struct nb_device_model sized_model(const struct nb_vulkan_device *d,
                                          const struct nb_plan *plan, uint32_t max_rows)
{
    uint32_t padded = nb_vulkan_pad(max_rows, ROW_PAD);
    return (struct nb_device_model){
        .plan = plan,
        .max_rows = max_rows,
        .padded_rows = padded,
        .brings = d->tier->variant[NB_SHADER_TOP][0].team,
        .head_rows = padded < NB_VULKAN_HEAD_ROWS ? padded : NB_VULKAN_HEAD_ROWS};
}

uint64_t nb_vulkan_step_bytes(const struct nb_vulkan_device *d, const struct nb_plan *plan,
                              uint32_t max_rows)
{
    struct nb_device_model m = sized_model(d, plan, max_rows);
    struct sized list[BUFFERS];
    uint64_t bytes = 0;
    size_buffers(&m, list);
    for (int i = 0; i < BUFFERS; i++)
        bytes += list[i].bytes;
    return bytes;
}

static int make_buffers(struct nb_device_model *m)
{
    const struct nb_hparams *hp = &m->plan->hp;
    struct nb_vulkan_device *d = m->device;
    struct sized list[BUFFERS];
    size_buffers(m, list);
    int rc = 0;
    for (int i = 0; i < BUFFERS && rc == 0; i++)
        if (list[i].bytes)
            rc = list[i].bytes > d->max_range
                     ? -E2BIG
                     : nb_vulkan_buffer_init(d, list[i].bytes, list[i].where, list[i].buffer);
    m->kv = calloc(m->plan->n_layers, sizeof(*m->kv));
    m->laid = calloc(count_vectors(m->plan), sizeof(float));
    if (!m->kv || !m->laid)
        return -ENOMEM;
    for (uint32_t i = 0; i < m->plan->n_layers && rc == 0; i++)
        rc = nb_vulkan_buffer_lazy(d, nb_plan_kv_bytes(m->plan) * m->kv_blocks, &m->kv[i]);
    m->host_logits_bytes = (size_t)m->max_rows * hp->vocab * sizeof(float);
    void *p = mmap(NULL, m->host_logits_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -errno;
    m->host_logits = p;
    return rc;
}

// Columns past a row's last are read as zeros, and stay so.
static int clear_buffers(struct nb_device_model *m)
{
    const struct nb_vulkan_buffer *const list[] = {
        &m->x, &m->normed, &m->qkv, &m->attn, &m->hidden, &m->act, &m->middle, &m->sync, &m->tail};
    VkCommandBuffer c;
    int rc = nb_vulkan_begin(m->device, true, &c);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++)
        if (list[i]->buffer)
            m->device->vk.CmdFillBuffer(c, list[i]->buffer, 0, VK_WHOLE_SIZE, 0);
    for (uint32_t i = 0; i < m->plan->n_layers; i++)
        if (!m->kv[i].pages)
            m->device->vk.CmdFillBuffer(c, m->kv[i].buffer, 0, VK_WHOLE_SIZE, 0);
    return nb_vulkan_run_once(m->device, c);
}

// Of the body at most two for each op, where every op is a submission of its own; then the head's.
static int make_queries(struct nb_device_model *m)
{
    const VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                        .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                        .queryCount = 2 * m->plan->n_ops};
    m->ticks = calloc(info.queryCount, sizeof(*m->ticks));
    m->op_ns = calloc(m->plan->n_ops, sizeof(*m->op_ns));
    if (!m->ticks || !m->op_ns)
        return -ENOMEM;
    return nb_vk_errno(m->device->vk.CreateQueryPool(m->device->device, &info, NULL, &m->queries));
}

void nb_vulkan_model_close(struct nb_device_model *m)
{
    if (!m)
        return;
    struct nb_vulkan_device *d = m->device;
    if (d->hangs) {
        d->left = m;
        return;
    }
    for (uint32_t i = 0; i < NB_VULKAN_BUCKETS; i++)
        nb_vulkan_recordings_forget(m, i);
    nb_vulkan_tune_end(m);
    d->vk.DestroyQueryPool(d->device, m->queries, NULL);
    nb_vulkan_sets_finish(d, &m->sets);
    nb_vulkan_pipelines_destroy(m);
    nb_vulkan_weights_finish(m);
    struct nb_vulkan_buffer *const list[] = {
        &m->vectors, &m->step,   &m->x,    &m->normed, &m->qkv,  &m->attn, &m->hidden,
        &m->act,     &m->middle, &m->sync, &m->logits, &m->best, &m->tail, &m->carry};
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++)
        nb_vulkan_buffer_finish(d, list[i]);
    for (uint32_t i = 0; m->kv && i < m->plan->n_layers; i++)
        nb_vulkan_buffer_finish(d, &m->kv[i]);
    if (m->host_logits)
        munmap(m->host_logits, m->host_logits_bytes);
    free(m->kv);
    free(m->laid);
    free(m->ticks);
    free(m->op_ns);
    free(m->dispatches);
    free(m);
}

static int refuse_memory(const struct nb_device_model *m, int rc, char *error, size_t size)
{
    const struct nb_vulkan_device *d = m->device;
    return nb_fail(error, size, rc,
                   "%s: no memory for %zu MB of weights, steps of %u rows and %u KV blocks: %s",
                   d->info.name, nb_vulkan_weights_bytes(m) >> 20, m->max_rows, m->kv_blocks,
                   strerror(-rc));
}

int nb_vulkan_model_open(struct nb_device *d, const struct nb_plan *plan,
                         const struct nb_device_model_options *options,
                         struct nb_device_model **ret, char *ret_error, size_t error_size)
{
    struct nb_device_model *m = calloc(1, sizeof(*m));
    const uint32_t max_rows = options->max_rows;
    if (!m)
        return nb_fail(ret_error, error_size, -ENOMEM, "out of memory");
    *m = sized_model((struct nb_vulkan_device *)d, plan, max_rows);
    m->device = (struct nb_vulkan_device *)d;
    m->kv_blocks = options->kv_blocks;
    nb_vulkan_doing(m->device, "opening a model");
    int rc = check_model(m, ret_error, error_size);
    if (rc == 0)
        rc = nb_vulkan_check_loops(m, ret_error, error_size);
    if (rc == 0)
        rc = nb_vulkan_weights_cut(m, ret_error, error_size);
    if (rc == 0) {
        nb_vulkan_weights_choose(m);
        rc = nb_vulkan_budget_check(m, ret_error, error_size);
    }
    if (rc == 0) {
        if ((rc = nb_vulkan_weights_load(m, options)) < 0 || (rc = make_buffers(m)) < 0 ||
            (rc = clear_buffers(m)) < 0 || (rc = make_queries(m)) < 0)
            refuse_memory(m, rc, ret_error, error_size);
        else
            rc = nb_vulkan_program(m, ret_error, error_size);
    }
    if (rc < 0 && m->device->gone)
        nb_fail(ret_error, error_size, rc, "%s", m->device->fault);
    if (rc < 0)
        nb_vulkan_model_close(m);
    else
        *ret = m;
    return rc;
}
