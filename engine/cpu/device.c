// The native CPU as a device: its memory and its threads. What a step does is in step.c.
#include "engine/cpu/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "machine/bounds.h"
#include "tensor/fail.h"

static void cpu_info(const struct nb_device *d, struct nb_device_info *ret)
{
    const struct nb_cpu_device *c = (const struct nb_cpu_device *)d;
    const char *why = nb_team_size(c->team) == c->allowed.threads ? c->allowed.why : "";
    *ret = (struct nb_device_info){.threads = nb_team_size(c->team),
                                   .memory_bytes = c->allowed.memory_bytes};
    snprintf(ret->name, sizeof(ret->name), "cpu");
    snprintf(ret->description, sizeof(ret->description), "native CPU, %u thread%s%s%s",
             ret->threads, ret->threads == 1 ? "" : "s", *why ? ": " : "", why);
    snprintf(ret->isa, sizeof(ret->isa), "%s", c->kernels->name);
}

static void cpu_destroy(struct nb_device *d)
{
    struct nb_cpu_device *c = (struct nb_cpu_device *)d;
    if (!c)
        return;
    nb_team_destroy(c->team);
    free(c->scratch);
    free(c);
}

// --- Memory: one mapping, laid out by walking the list of buffers twice (sizes, then addresses).

struct cursor {
    uint8_t *base; // NULL while sizes are counted
    size_t used;
};

static void *lay(struct cursor *c, size_t count, size_t size)
{
    void *p = c->base ? c->base + c->used : NULL;
    c->used += (count * size + 63) & ~(size_t)63;
    return p;
}

// Of the ops' quantized inputs, `rows` tokens.
static size_t act_bytes(const struct nb_device_model *m, uint32_t rows, bool gathered)
{
    size_t most = 64;
    for (uint32_t i = 0; i < m->plan->n_ops; i++) {
        const struct nb_op *op = &m->plan->ops[i];
        if (op->kind != NB_OP_LINEAR)
            continue;
        uint32_t n = gathered ? rows : nb_plan_rows(m->plan, op->in.value, rows);
        size_t bytes = nb_act_bytes(n, op->in.width);
        most = bytes > most ? bytes : most;
    }
    return most;
}

// Of a matrix of any type: one may be replaced by one of another.
static size_t gemm_scratch(const struct nb_kernels *k, const struct nb_packed *w)
{
    size_t most = 0;
    for (uint32_t type = 0; type < NB_TYPE_END; type++) {
        struct nb_packed p;
        if (!nb_layout_of(type) || nb_packed_init(&p, type, w->rows, w->cols) < 0)
            continue;
        size_t bytes = k->gemm_scratch(&p, NB_CPU_TOKEN_TILE);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static size_t kernel_scratch(const struct nb_device_model *m)
{
    const struct nb_kernels *k = m->device->kernels;
    const struct nb_hparams *hp = &m->plan->hp;
    size_t most = 0;
    // A thread may get any part of the heads that share a KV head, and fewer heads take more
    // queries at once: more rows, where the whole does not divide a chunk.
    for (uint32_t group = 1; group <= hp->n_heads / hp->n_kv_heads; group++) {
        size_t bytes = k->attn_scratch(&m->kv_form, NB_CPU_QUERY_TILE, group);
        most = bytes > most ? bytes : most;
    }
    for (uint32_t i = 0; i < m->plan->n_ops; i++) {
        size_t bytes = m->plan->ops[i].w ? gemm_scratch(k, &m->plan->ops[i].w->packed) : 0;
        most = bytes > most ? bytes : most;
    }
    return most;
}

static size_t most_products(const struct nb_device_model *m)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < m->n_stages; i++)
        most = m->stages[i].n_products > most ? m->stages[i].n_products : most;
    return most;
}

static struct nb_cpu_groups lay_groups(const struct nb_device_model *m, struct cursor *c)
{
    const struct nb_hparams *hp = &m->plan->hp;
    const size_t rows = (size_t)m->max_rows * hp->n_chosen;
    const size_t tiles = rows / NB_CPU_TOKEN_TILE + hp->n_experts;
    struct nb_cpu_groups g = {0};
    g.place = lay(c, rows, sizeof(*g.place));
    g.token = lay(c, rows, sizeof(*g.token));
    g.expert = lay(c, rows, sizeof(*g.expert));
    g.first = lay(c, hp->n_experts + 1, sizeof(*g.first));
    g.tile = lay(c, tiles, sizeof(*g.tile));
    return g;
}

static void lay_out(struct nb_device_model *m, struct cursor *c)
{
    const struct nb_plan *plan = m->plan;
    const struct nb_hparams *hp = &plan->hp;
    size_t rows = m->max_rows, tiles = (rows + NB_CPU_TOKEN_TILE - 1) / NB_CPU_TOKEN_TILE;
    size_t slots = hp->n_heads + hp->n_kv_heads, threads = nb_team_size(m->device->team);
    size_t few = nb_act_bytes(NB_CPU_FEW_ROWS, hp->embedding);
    for (uint32_t v = NB_VALUE_X; v < NB_VALUE_LOGITS; v++)
        m->value[v] =
            lay(c, nb_plan_rows(plan, (enum nb_value)v, m->max_rows) * (size_t)plan->width[v],
                sizeof(float));
    m->rope = lay(c, rows * hp->n_ropes * hp->rope_dims, sizeof(float));
    m->act = lay(c, 1, act_bytes(m, m->max_rows, false));
    m->expert = lay(c, rows * hp->n_chosen, sizeof(*m->expert));
    m->expert_weight = lay(c, rows * hp->n_chosen, sizeof(*m->expert_weight));
    m->all.chunk = lay(c, rows, sizeof(*m->all.chunk));
    m->wanted.chunk = lay(c, rows, sizeof(*m->wanted.chunk));
    m->all_runs.run = lay(c, rows, sizeof(*m->all_runs.run));
    m->wanted_runs.run = lay(c, rows, sizeof(*m->wanted_runs.run));
    m->head_done = lay(c, tiles * slots, sizeof(*m->head_done));
    m->scratch = lay(c, threads, sizeof(*m->scratch));
    size_t scratch = kernel_scratch(m), kv_pointers = hp->context / NB_KV_POSITIONS + 1;
    size_t act = act_bytes(m, NB_CPU_FEW_ROWS, true);
    size_t gathered = hp->n_experts ? act_bytes(m, NB_CPU_TOKEN_TILE, true) : 0;
    act = act > few ? act : few;
    for (size_t t = 0; t < threads; t++) {
        struct nb_cpu_scratch s = {lay(c, 1, act), lay(c, 1, gathered), lay(c, 1, scratch),
                                   lay(c, kv_pointers, sizeof(*s.kv)), lay_groups(m, c)};
        if (c->base)
            m->scratch[t] = s;
    }
    // Last, and mostly untouched: only steps that score many rows, or have adapters of high ranks,
    // reach far into it.
    m->value[NB_VALUE_LOGITS] = lay(c, rows * plan->width[NB_VALUE_LOGITS], sizeof(float));
    m->thin = lay(c, most_products(m) * rows * NB_ADAPTER_RANK, sizeof(float));
}

static int map_memory(struct nb_device_model *m)
{
    struct cursor c = {0};
    lay_out(m, &c);
    void *p = mmap(NULL, c.used, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -errno;
    m->memory = p;
    m->memory_bytes = c.used;
    c = (struct cursor){.base = p};
    lay_out(m, &c);
    (void)madvise(p, (size_t)((uint8_t *)m->value[NB_VALUE_LOGITS] - (uint8_t *)p), MADV_HUGEPAGE);
    return 0;
}

// A memfd, so that finished blocks can outlive a worker and be mapped by the next one.
static int map_kv(struct nb_device_model *m)
{
    size_t bytes = (size_t)m->kv_blocks * m->kv_block_bytes;
    m->kv_fd = memfd_create("nibble-kv", MFD_CLOEXEC);
    if (m->kv_fd < 0 || ftruncate(m->kv_fd, (off_t)bytes) < 0)
        return -errno;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->kv_fd, 0);
    if (p == MAP_FAILED)
        return -errno;
    m->kv = p;
    (void)madvise(p, bytes, MADV_HUGEPAGE);
    return 0;
}

static size_t cpu_kv_block_bytes(const struct nb_device *d, const struct nb_plan *plan)
{
    return nb_plan_kv_bytes(plan) * plan->n_layers;
}

static uint64_t cpu_kv_room(const struct nb_device *d, const struct nb_plan *plan,
                            uint32_t max_rows)
{
    return ((const struct nb_cpu_device *)d)->allowed.memory_bytes / 4;
}

static void cpu_model_close(struct nb_device_model *m)
{
    if (!m)
        return;
    if (m->memory)
        munmap(m->memory, m->memory_bytes);
    if (m->kv)
        munmap(m->kv, (size_t)m->kv_blocks * m->kv_block_bytes);
    if (m->kv_fd >= 0)
        close(m->kv_fd);
    free(m->stages);
    free(m);
}

static int cpu_model_open(struct nb_device *d, const struct nb_plan *plan,
                          const struct nb_device_model_options *options,
                          struct nb_device_model **ret, struct nb_error *ret_error)
{
    const struct nb_hparams *hp = &plan->hp;
    struct nb_device_model *m = calloc(1, sizeof(*m));
    if (!m)
        return nb_fail(ret_error, -ENOMEM, "out of memory");
    *m = (struct nb_device_model){.device = (struct nb_cpu_device *)d,
                                  .plan = plan,
                                  .max_rows = options->max_rows,
                                  .kv_blocks = options->kv_blocks,
                                  .kv_form = {plan->kv_type, hp->k_dim, hp->v_dim},
                                  .kv_fd = -1,
                                  .kv_block_bytes = cpu_kv_block_bytes(d, plan),
                                  .kv_layer_bytes = nb_plan_kv_bytes(plan),
                                  .kv_v_offset = hp->dim[NB_DIM_K] * nb_kv_bytes(plan->kv_type)};
    m->stages = calloc(plan->n_ops, sizeof(*m->stages));
    int rc = m->stages ? 0 : -ENOMEM;
    if (rc == 0) {
        m->n_stages = nb_cpu_stages(plan, m->stages);
        m->tail_values = nb_plan_tail_values(plan);
        rc = map_memory(m);
    }
    if (rc == 0)
        rc = map_kv(m);
    if (rc < 0) {
        char reason[NB_LIMIT_TEXT];
        nb_fail(ret_error, rc, "cannot map %zu MB of KV memory beside %zu MB for steps: %s",
                (m->kv_blocks * m->kv_block_bytes) >> 20, m->memory_bytes >> 20,
                nb_limit_reason(rc, reason));
        cpu_model_close(m);
        return rc;
    }
    *ret = m;
    return 0;
}

static int cpu_step(struct nb_device_model *m, const struct nb_rows *rows, float **ret_logits)
{
    nb_cpu_step_prepare(m, rows);
    nb_team_run(m->device->team, nb_cpu_step_thread, m);
    nb_cpu_step_finish(m, rows);
    if (rows->candidates)
        memset(rows->candidates, 0, rows->n_logits * sizeof(*rows->candidates));
    *ret_logits = m->value[NB_VALUE_LOGITS];
    return 0;
}

static int cpu_kv_clear(struct nb_device_model *m, uint32_t block)
{
    memset(m->kv + block * m->kv_block_bytes, 0, m->kv_block_bytes);
    return 0;
}

static void cpu_times(const struct nb_device_model *m, struct nb_op_time *ret)
{
    memcpy(ret, m->times, sizeof(m->times));
}

static const struct nb_device_ops cpu_ops = {
    .info = cpu_info,
    .destroy = cpu_destroy,
    .kv_block_bytes = cpu_kv_block_bytes,
    .kv_room = cpu_kv_room,
    .model_open = cpu_model_open,
    .model_close = cpu_model_close,
    .step = cpu_step,
    .kv_clear = cpu_kv_clear,
    .times = cpu_times,
    .matrix_open = nb_cpu_matrix_open,
    .matrix_close = nb_cpu_matrix_close,
    .gemm = nb_cpu_gemm,
    .dequantize = nb_cpu_dequantize,
};

int nb_cpu_device_create(uint32_t threads, const struct nb_cpu_allowed *allowed,
                         struct nb_device **ret)
{
    struct nb_cpu_device *c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    *c = (struct nb_cpu_device){.base.ops = &cpu_ops, .kernels = nb_kernels_best()};
    int rc = 0;
    if (allowed)
        c->allowed = *allowed;
    else
        rc = nb_cpu_allowed(&c->allowed);
    if (rc == 0)
        rc = nb_team_create(threads ? threads : c->allowed.threads, &c->team);
    if (rc < 0) {
        free(c);
        return rc;
    }
    *ret = &c->base;
    return 0;
}
