// A model's memory on a Vulkan device, and its steps.
#include "engine/vulkan/model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tensor/fail.h"

#define KV_TILE 32
#define ROW_PAD 8 // the widest tile of tokens

static size_t layer_block_bytes(const struct nb_hparams *hp)
{
    return ((size_t)hp->dim[NB_DIM_K] + hp->dim[NB_DIM_V]) * KV_TILE * sizeof(uint16_t);
}

size_t nb_vulkan_kv_block_bytes(const struct nb_plan *plan)
{
    return layer_block_bytes(&plan->hp) * plan->n_layers;
}

// --- Memory

static int check_model(const struct nb_device_model *m, char *error, size_t size)
{
    const struct nb_hparams *hp = &m->plan->hp;
    const char *name = m->device->info.name;
    if (hp->v_dim % 32 || hp->k_dim % 2)
        return nb_fail(error, size, -ENOTSUP,
                       "heads of %u by %u: the Vulkan device wants values in blocks of 32; use the "
                       "CPU",
                       hp->k_dim, hp->v_dim);
    size_t kv = layer_block_bytes(hp) * m->kv_blocks;
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
    uint32_t at = 2;
    uint32_t *const rows[] = {&t->token, &t->position, &t->sequence, &t->logits_row};
    for (int i = 0; i < 4; i++, at += m->max_rows)
        *rows[i] = at;
    t->rope = at;
    t->blocks = at + m->max_rows * hp->rope_dims;
    t->block_stride = (hp->context + KV_TILE - 1) / KV_TILE;
    t->words = nb_vulkan_pad(t->blocks + m->max_rows * t->block_stride, 4);
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

static int make_buffers(struct nb_device_model *m)
{
    const struct nb_hparams *hp = &m->plan->hp;
    struct nb_vulkan_device *d = m->device;
    lay_tables(m);
    VkDeviceSize row = (VkDeviceSize)m->padded_rows * sizeof(float);
    uint32_t qkv = nb_vulkan_pad(hp->dim[NB_DIM_Q], 16) + nb_vulkan_pad(hp->dim[NB_DIM_K], 16) +
                   nb_vulkan_pad(hp->dim[NB_DIM_V], 16);
    const struct {
        struct nb_vulkan_buffer *buffer;
        VkDeviceSize bytes;
        enum nb_vulkan_memory where;
    } list[] = {
        {&m->step, (VkDeviceSize)m->tables.words * 4, NB_VULKAN_HOST},
        {&m->vectors, count_vectors(m->plan) * sizeof(float), NB_VULKAN_HOST},
        {&m->x, row * nb_vulkan_pad(hp->embedding, 32), NB_VULKAN_DEVICE},
        {&m->normed, row * nb_vulkan_pad(hp->embedding, 32), NB_VULKAN_DEVICE},
        {&m->qkv, row * nb_vulkan_pad(qkv, 32), NB_VULKAN_DEVICE},
        {&m->attn, row * nb_vulkan_pad(hp->dim[NB_DIM_ATTN], 32), NB_VULKAN_DEVICE},
        {&m->hidden, row * nb_vulkan_pad(hp->ffn, 32), NB_VULKAN_DEVICE},
        {&m->act, (VkDeviceSize)m->padded_rows * widest_act(m->plan), NB_VULKAN_DEVICE},
        {&m->logits, (VkDeviceSize)m->head_rows * nb_vulkan_pad(hp->vocab, 16) * sizeof(float),
         NB_VULKAN_HOST},
    };
    int rc = 0;
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]) && rc == 0; i++)
        rc = list[i].bytes > d->max_range
                 ? -E2BIG
                 : nb_vulkan_buffer_init(d, list[i].bytes, list[i].where, list[i].buffer);
    m->kv = calloc(m->plan->n_layers, sizeof(*m->kv));
    if (!m->kv)
        return -ENOMEM;
    for (uint32_t i = 0; i < m->plan->n_layers && rc == 0; i++)
        rc = nb_vulkan_buffer_lazy(d, layer_block_bytes(hp) * m->kv_blocks, &m->kv[i]);
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
    const struct nb_vulkan_buffer *const list[] = {&m->x,    &m->normed, &m->qkv,
                                                   &m->attn, &m->hidden, &m->act};
    VkCommandBuffer c;
    int rc = nb_vulkan_begin(m->device, true, &c);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++)
        m->device->vk.CmdFillBuffer(c, list[i]->buffer, 0, VK_WHOLE_SIZE, 0);
    for (uint32_t i = 0; i < m->plan->n_layers; i++)
        if (!m->kv[i].pages)
            m->device->vk.CmdFillBuffer(c, m->kv[i].buffer, 0, VK_WHOLE_SIZE, 0);
    return nb_vulkan_run_once(m->device, c);
}

static int make_queries(struct nb_device_model *m)
{
    const VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                        .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                        .queryCount = m->plan->n_ops + 2};
    return nb_vk_errno(m->device->vk.CreateQueryPool(m->device->device, &info, NULL, &m->queries));
}

static void free_commands(struct nb_device_model *m)
{
    for (uint32_t i = 0; i < NB_VULKAN_BUCKETS; i++) {
        nb_vulkan_release(m->device, &m->device->compute, &m->body_commands[i]);
        nb_vulkan_release(m->device, &m->device->compute, &m->head_commands[i]);
    }
}

void nb_vulkan_model_close(struct nb_device_model *m)
{
    if (!m || m->device->hangs)
        return;
    struct nb_vulkan_device *d = m->device;
    free_commands(m);
    d->vk.DestroyQueryPool(d->device, m->queries, NULL);
    d->vk.DestroyDescriptorPool(d->device, m->sets, NULL);
    for (uint32_t i = 0; i < m->n_views; i++)
        d->vk.DestroyBufferView(d->device, m->views[i], NULL);
    nb_vulkan_pipelines_destroy(m);
    nb_vulkan_weights_finish(m);
    struct nb_vulkan_buffer *const list[] = {&m->vectors, &m->step,   &m->x,   &m->normed, &m->qkv,
                                             &m->attn,    &m->hidden, &m->act, &m->logits};
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++)
        nb_vulkan_buffer_finish(d, list[i]);
    for (uint32_t i = 0; m->kv && i < m->plan->n_layers; i++)
        nb_vulkan_buffer_finish(d, &m->kv[i]);
    if (m->host_logits)
        munmap(m->host_logits, m->host_logits_bytes);
    free(m->kv);
    free(m->views);
    free(m->dispatches);
    free(m);
}

int nb_vulkan_model_open(struct nb_device *d, const struct nb_plan *plan,
                         const struct nb_device_model_options *options,
                         struct nb_device_model **ret, char *ret_error, size_t error_size)
{
    struct nb_device_model *m = calloc(1, sizeof(*m));
    const uint32_t max_rows = options->max_rows;
    if (!m)
        return nb_fail(ret_error, error_size, -ENOMEM, "out of memory");
    *m = (struct nb_device_model){.device = (struct nb_vulkan_device *)d,
                                  .plan = plan,
                                  .max_rows = max_rows,
                                  .padded_rows = nb_vulkan_pad(max_rows, ROW_PAD),
                                  .kv_blocks = options->kv_blocks,
                                  .head_rows = max_rows < NB_VULKAN_HEAD_ROWS
                                                   ? nb_vulkan_pad(max_rows, ROW_PAD)
                                                   : NB_VULKAN_HEAD_ROWS};
    int rc = check_model(m, ret_error, error_size);
    if (rc == 0)
        rc = nb_vulkan_weights_cut(m, ret_error, error_size);
    if (rc == 0) {
        if ((rc = nb_vulkan_weights_load(m, options)) < 0 || (rc = make_buffers(m)) < 0 ||
            (rc = clear_buffers(m)) < 0 || (rc = make_queries(m)) < 0)
            nb_fail(ret_error, error_size, rc,
                    "%s: no memory for %zu MB of weights, steps of %u rows and %u KV blocks: %s",
                    m->device->info.name, nb_vulkan_weights_bytes(m) >> 20, max_rows, m->kv_blocks,
                    strerror(-rc));
        else
            rc = nb_vulkan_program(m, ret_error, error_size);
    }
    if (rc < 0)
        nb_vulkan_model_close(m);
    else
        *ret = m;
    return rc;
}

// --- Steps

static void write_step(struct nb_device_model *m, const struct nb_rows *rows)
{
    const struct nb_vulkan_tables *t = &m->tables;
    const struct nb_hparams *hp = &m->plan->hp;
    uint32_t *word = m->step.map;
    word[0] = rows->n;
    memcpy(word + t->token, rows->token, rows->n * sizeof(*word));
    memcpy(word + t->position, rows->position, rows->n * sizeof(*word));
    memcpy(word + t->sequence, rows->sequence, rows->n * sizeof(*word));
    for (uint32_t i = 0; i < rows->n; i++) {
        nb_rope_row(hp, rows->position[i], (float *)(word + t->rope + i * hp->rope_dims));
        uint32_t s = rows->sequence[i];
        if (i + 1 == rows->n || rows->sequence[i + 1] != s)
            memcpy(word + t->blocks + s * t->block_stride, rows->blocks[s],
                   (rows->position[i] / KV_TILE + 1) * sizeof(*word));
    }
}

static void count_time(struct nb_device_model *m, uint32_t first, uint32_t n, uint32_t op)
{
    uint64_t *tick = calloc(n, sizeof(*tick));
    const struct nb_vk *vk = &m->device->vk;
    if (tick && vk->GetQueryPoolResults(m->device->device, m->queries, first, n, n * sizeof(*tick),
                                        tick, sizeof(*tick), VK_QUERY_RESULT_64_BIT) == VK_SUCCESS)
        for (uint32_t i = 1; i < n; i++, op++)
            m->times[m->plan->ops[op].kind].ns +=
                (uint64_t)((double)(tick[i] - tick[i - 1]) * m->device->tick_ns);
    free(tick);
}

static void count_dispatches(struct nb_device_model *m, uint32_t from, uint32_t to)
{
    for (; from < to; from++)
        m->times[m->plan->ops[m->dispatches[from].op].kind].dispatches++;
}

// Logits of rows [first, first + n) of those wanted, with the body before them when it has not run.
static int run(struct nb_device_model *m, const struct nb_rows *rows, uint32_t first, uint32_t n)
{
    uint32_t *word = m->step.map, n_commands = 0;
    VkCommandBuffer commands[2];
    int rc = 0;
    word[1] = n;
    if (n)
        memcpy(word + m->tables.logits_row, rows->logits_row + first, n * sizeof(*word));
    if (first == 0)
        rc = nb_vulkan_commands(m, nb_vulkan_bucket(rows->n), false, &commands[n_commands++]);
    if (n && rc == 0)
        rc = nb_vulkan_commands(m, nb_vulkan_bucket(n), true, &commands[n_commands++]);
    if (rc == 0)
        rc = nb_vulkan_run(m->device, n_commands, commands);
    if (rc < 0)
        return rc;
    const uint32_t vocab = m->plan->hp.vocab, width = nb_vulkan_pad(vocab, 16);
    for (uint32_t i = 0; i < n; i++)
        memcpy(m->host_logits + (size_t)(first + i) * vocab,
               (const float *)m->logits.map + (size_t)i * width, vocab * sizeof(float));
    if (first == 0) {
        count_time(m, 0, m->plan->n_ops, 0);
        count_dispatches(m, 0, m->head);
    }
    if (n) {
        count_time(m, m->plan->n_ops, 2, m->plan->n_ops - 1);
        count_dispatches(m, m->head, m->n_dispatches);
    }
    return 0;
}

int nb_vulkan_step(struct nb_device_model *m, const struct nb_rows *rows, float **ret_logits)
{
    write_step(m, rows);
    uint32_t first = 0;
    do {
        uint32_t left = rows->n_logits - first, n = left < m->head_rows ? left : m->head_rows;
        int rc = run(m, rows, first, n);
        if (rc < 0)
            return rc;
        first += n;
    } while (first < rows->n_logits);
    *ret_logits = m->host_logits;
    return 0;
}

void nb_vulkan_kv_clear(struct nb_device_model *m, uint32_t block)
{
    size_t bytes = layer_block_bytes(&m->plan->hp);
    VkCommandBuffer c;
    if (nb_vulkan_begin(m->device, true, &c) < 0)
        return;
    for (uint32_t i = 0; i < m->plan->n_layers; i++)
        m->device->vk.CmdFillBuffer(c, m->kv[i].buffer, block * bytes, bytes, 0);
    (void)nb_vulkan_run_once(m->device, c);
}

void nb_vulkan_times(const struct nb_device_model *m, struct nb_op_time *ret)
{
    memcpy(ret, m->times, sizeof(m->times));
}
