// Opening a model on a Vulkan device, and closing it.
#include "engine/vulkan/model.h"

#include "engine/vulkan/adapters.h"

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
    return nb_vulkan_kv_bytes(plan) * plan->n_layers;
}

static int check_model(const struct nb_device_model *m, struct nb_error *error)
{
    const struct nb_hparams *hp = &m->plan->hp;
    const char *name = m->device->info.name;
    if (hp->v_dim > MAX_VALUES)
        return nb_fail(error, -ENOTSUP,
                       "values of %u in a head: the Vulkan device takes %u at most; use the CPU",
                       hp->v_dim, MAX_VALUES);
    size_t kv = nb_vulkan_kv_bytes(m->plan) * m->extent.kv_blocks;
    if (kv > m->device->max_range)
        return nb_fail(error, -ENOMEM,
                       "the KV cache takes %zu MB a layer and %s binds %llu MB at once: ask for "
                       "less KV memory",
                       kv >> 20, name, (unsigned long long)(m->device->max_range >> 20));
    return 0;
}

static struct nb_vulkan_extent extent_of(const struct nb_vulkan_device *d,
                                         const struct nb_plan *plan, uint32_t max_rows,
                                         struct nb_vulkan_tables *ret_tables)
{
    const uint32_t padded = nb_vulkan_pad(max_rows, ROW_PAD);
    nb_vulkan_tables_lay(plan, max_rows, ret_tables);
    return (struct nb_vulkan_extent){
        .max_rows = max_rows,
        .padded_rows = padded,
        .wanted_rows = padded < NB_VULKAN_WANTED_ROWS ? padded : NB_VULKAN_WANTED_ROWS,
        .step_words = ret_tables->words,
        .brings = d->tier->variant[NB_SHADER_TOP][0].team};
}

uint64_t nb_vulkan_step_bytes(const struct nb_vulkan_device *d, const struct nb_plan *plan,
                              uint32_t max_rows)
{
    struct nb_vulkan_tables tables;
    const struct nb_vulkan_extent e = extent_of(d, plan, max_rows, &tables);
    return nb_vulkan_buffers_bytes(plan, &e);
}

static int map_logits(struct nb_device_model *m)
{
    m->host_logits_bytes = (size_t)m->extent.max_rows * m->plan->hp.vocab * sizeof(float);
    void *p = mmap(NULL, m->host_logits_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -errno;
    m->host_logits = p;
    return 0;
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
    nb_vulkan_adapters_finish(m);
    nb_vulkan_recordings_finish(m);
    nb_vulkan_tune_end(m);
    nb_vulkan_sets_finish(d, &m->sets);
    nb_vulkan_pipelines_finish(&m->pipelines);
    nb_vulkan_weights_finish(d, &m->weights);
    nb_vulkan_buffers_finish(d, &m->buffers);
    if (m->host_logits)
        munmap(m->host_logits, m->host_logits_bytes);
    free(m->program.dispatches);
    free(m);
}

static int refuse_memory(const struct nb_device_model *m, int rc, struct nb_error *error)
{
    const struct nb_vulkan_device *d = m->device;
    return nb_fail(error, rc,
                   "%s: no memory for %zu MB of weights, steps of %u rows and %u KV blocks: %s",
                   d->info.name, nb_vulkan_weights_bytes(&m->weights) >> 20, m->extent.max_rows,
                   m->extent.kv_blocks, strerror(-rc));
}

static int cut_weights(struct nb_device_model *m, struct nb_error *error)
{
    const struct nb_matrix **list = calloc(m->plan->n_matrices + 1, sizeof(*list));
    if (!list)
        return nb_fail(error, -ENOMEM, "out of memory");
    const uint32_t n = nb_plan_list_matrices(m->plan, list);
    int rc = nb_vulkan_weights_cut(m->device, list, n, &m->weights, error);
    free(list);
    return rc;
}

static int take_memory(struct nb_device_model *m, const struct nb_device_model_options *options,
                       struct nb_error *error)
{
    struct nb_vulkan_device *d = m->device;
    int rc;
    if ((rc = nb_vulkan_weights_load(d, &m->weights, options)) < 0 ||
        (rc = nb_vulkan_buffers_init(d, m->plan, &m->extent, &m->buffers)) < 0 ||
        (rc = map_logits(m)) < 0 || (rc = nb_vulkan_recordings_init(m)) < 0)
        return refuse_memory(m, rc, error);
    return 0;
}

int nb_vulkan_model_open(struct nb_device *base, const struct nb_plan *plan,
                         const struct nb_device_model_options *options,
                         struct nb_device_model **ret, struct nb_error *ret_error)
{
    struct nb_vulkan_device *d = (struct nb_vulkan_device *)base;
    struct nb_device_model *m = calloc(1, sizeof(*m));
    if (!m)
        return nb_fail(ret_error, -ENOMEM, "out of memory");
    *m = (struct nb_device_model){.device = d, .plan = plan, .pipelines = {.device = d}};
    m->extent = extent_of(d, plan, options->max_rows, &m->tables);
    m->extent.kv_blocks = options->kv_blocks;
    nb_vulkan_doing(d, "opening a model");
    int rc = check_model(m, ret_error);
    if (rc == 0)
        rc = nb_vulkan_check_loops(m, ret_error);
    if (rc == 0)
        rc = cut_weights(m, ret_error);
    if (rc == 0) {
        nb_vulkan_weights_choose(d, &m->weights);
        rc = nb_vulkan_budget_check(m, ret_error);
    }
    if (rc == 0)
        rc = take_memory(m, options, ret_error);
    if (rc == 0)
        rc = nb_vulkan_program_make(m, ret_error);
    if (rc < 0 && d->gone)
        nb_fail(ret_error, rc, "%s", d->fault);
    if (rc < 0)
        nb_vulkan_model_close(m);
    else
        *ret = m;
    return rc;
}
