// Recording: pipelines, one set of the five buffers, dispatches behind each other, and copies.
#include <errno.h>
#include <string.h>

#include "grad/vulkan/room.h"

#define STAGING (16u << 20) // bytes that cross at once
#define BLOCK   8
#define DEPTH   16

static const struct nb_tier_variant variants[NB_TRAIN_SHADERS] = {
    [NB_TRAIN_ATTENTION] = {.module = NB_MODULE_TRAIN_ATTENTION, .local = TRAIN_TEAM},
    [NB_TRAIN_GEMM] = {.module = NB_MODULE_TRAIN_GEMM,
                       .local = NB_TRAIN_TILE / BLOCK * NB_TRAIN_TILE / BLOCK},
    [NB_TRAIN_NORM] = {.module = NB_MODULE_TRAIN_NORM, .local = TRAIN_LANES},
    [NB_TRAIN_ROWS] = {.module = NB_MODULE_TRAIN_ROWS, .local = TRAIN_LANES},
    [NB_TRAIN_SUMS] = {.module = NB_MODULE_TRAIN_SUMS, .local = TRAIN_TEAM},
};

int nb_record_open(struct nb_grad_vulkan *v)
{
    struct nb_vulkan_device *d = v->device;
    int rc = 0;
    v->pipelines.device = d;
    for (int i = 0; i < NB_TRAIN_SHADERS && rc == 0; i++) {
        const enum nb_module m = variants[i].module;
        if (!d->module[m])
            rc = nb_vulkan_module(d, &nb_shader_code[m], &d->module[m]);
    }
    return rc;
}

// --- Buffers

int nb_vulkan_fit(struct nb_grad_vulkan *v, size_t floats, enum nb_vulkan_memory where,
                  struct nb_vulkan_buffer *b)
{
    const VkDeviceSize bytes = (floats ? floats : 1) * sizeof(float);
    if (bytes <= b->bytes)
        return 0;
    if (bytes > v->device->max_range)
        return -E2BIG;
    nb_vulkan_buffer_finish(v->device, b);
    return nb_vulkan_buffer_init(v->device, bytes, where, b);
}

// --- Commands

static int begin(struct nb_recording *r)
{
    r->operations = 0;
    return r->rc = nb_vulkan_begin(r->v->device, true, &r->commands);
}

static int submit(struct nb_recording *r)
{
    if (r->commands && r->rc == 0)
        r->rc = nb_vulkan_run_once(r->v->device, r->commands);
    else if (r->commands && !r->v->device->hangs)
        nb_vulkan_release(r->v->device, &r->v->device->compute, &r->commands);
    r->commands = VK_NULL_HANDLE;
    return r->rc;
}

void nb_record_begin(struct nb_recording *r)
{
    struct nb_grad_vulkan *v = r->v;
    // A shader that does not use a buffer wants one there all the same.
    const struct nb_vulkan_buffer *all[BINDINGS] = {
        [BIND_TABLES] = v->tables.buffer ? &v->tables : &v->values,
        [BIND_VALUES] = &v->values,
        [BIND_GRADIENTS] = v->gradients.buffer ? &v->gradients : &v->values,
        [BIND_SPAN_WEIGHTS] = r->weights->buffer.buffer ? &r->weights->buffer : &v->values,
        [BIND_WEIGHT_GRADIENTS] = v->sums.buffer ? &v->sums : &v->values};
    r->rc = nb_vulkan_sets_init(v->device, 1, &r->sets);
    if (r->rc == 0)
        r->rc = nb_vulkan_sets_bind(v->device, &r->sets, NULL, all, &r->set);
    if (r->rc == 0)
        begin(r);
}

int nb_record_end(struct nb_recording *r)
{
    submit(r);
    if (r->sets.pool && !r->v->device->hangs)
        nb_vulkan_sets_finish(r->v->device, &r->sets);
    return r->rc;
}

// What comes after sees all that came before.
static void meet(const struct nb_recording *r)
{
    const VkPipelineStageFlags stages =
        VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
    const VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT,
                               .dstAccessMask =
                                   VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT};
    r->v->device->vk.CmdPipelineBarrier(r->commands, stages, stages, 0, 1, &b, 0, NULL, 0, NULL);
}

static VkPipeline pipeline_of(struct nb_recording *r, const struct nb_train_dispatch *d)
{
    struct nb_vulkan_pipelines *all = &r->v->pipelines;
    const uint32_t constants[CONST_TIER] = {[TRAIN_MODE] = d->mode,
                                            [TRAIN_TILE] = NB_TRAIN_TILE,
                                            [TRAIN_BLOCK] = BLOCK,
                                            [TRAIN_DEPTH] = DEPTH,
                                            [TRAIN_CHUNKS] = d->chunks};
    const int i = nb_vulkan_pipeline_name(all, &variants[d->shader], constants);
    r->rc = i < 0 ? i : 0;
    if (i >= 0 && !all->list[i].pipeline)
        r->rc = nb_vulkan_pipelines_make(all, (const uint16_t[]){(uint16_t)i}, 1, NULL, NULL);
    return r->rc == 0 ? all->list[i].pipeline : VK_NULL_HANDLE;
}

void nb_record(struct nb_recording *r, const struct nb_train_dispatch *d)
{
    const struct nb_vk *vk = &r->v->device->vk;
    VkPipelineLayout layout = r->v->device->layout;
    if (r->rc < 0)
        return;
    if (r->operations > 0 && r->operations + d->operations > r->v->operations && submit(r) == 0)
        begin(r);
    VkPipeline pipeline = r->rc == 0 ? pipeline_of(r, d) : VK_NULL_HANDLE;
    if (r->rc < 0)
        return;
    vk->CmdBindPipeline(r->commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
    vk->CmdBindDescriptorSets(r->commands, VK_PIPELINE_BIND_POINT_COMPUTE, layout, 0, 1, &r->set, 0,
                              NULL);
    vk->CmdPushConstants(r->commands, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, d->bytes, d->push);
    vk->CmdDispatch(r->commands, d->x, d->y, 1);
    meet(r);
    r->operations += d->operations;
}

void nb_record_units(struct nb_recording *r, struct nb_train_dispatch *d, uint64_t units,
                     uint32_t each)
{
    const uint64_t groups = (units + each - 1) / each, most = r->v->device->max_groups;
    d->y = (uint32_t)((groups + most - 1) / most);
    d->x = d->y ? (uint32_t)((groups + d->y - 1) / d->y) : 0;
    d->operations = (double)units;
    if (groups)
        nb_record(r, d);
}

void nb_record_copy(struct nb_recording *r, const struct nb_vulkan_buffer *from, size_t from_at,
                    const struct nb_vulkan_buffer *to, size_t to_at, size_t floats)
{
    const VkBufferCopy copy = {from_at * sizeof(float), to_at * sizeof(float),
                               floats * sizeof(float)};
    if (r->rc < 0 || floats == 0)
        return;
    r->v->device->vk.CmdCopyBuffer(r->commands, from->buffer, to->buffer, 1, &copy);
    meet(r);
}

void nb_record_zeros(struct nb_recording *r, const struct nb_vulkan_buffer *to)
{
    if (r->rc < 0)
        return;
    r->v->device->vk.CmdFillBuffer(r->commands, to->buffer, 0, VK_WHOLE_SIZE, 0);
    meet(r);
}

// --- Between the host and the device

static int cross(struct nb_grad_vulkan *v, const struct nb_vulkan_buffer *from, size_t from_at,
                 const struct nb_vulkan_buffer *to, size_t to_at, size_t floats)
{
    struct nb_recording r = {.v = v};
    if (begin(&r) == 0)
        nb_record_copy(&r, from, from_at, to, to_at, floats);
    return submit(&r);
}

static size_t piece_at(size_t done, size_t floats)
{
    const size_t most = STAGING / sizeof(float);
    return floats - done < most ? floats - done : most;
}

int nb_vulkan_send(struct nb_grad_vulkan *v, const float *x, size_t floats,
                   const struct nb_vulkan_buffer *to, size_t at)
{
    int rc = nb_vulkan_fit(v, piece_at(0, floats), NB_VULKAN_HOST, &v->staging);
    for (size_t done = 0, n; done < floats && rc == 0; done += n) {
        n = piece_at(done, floats);
        memcpy(v->staging.map, x + done, n * sizeof(*x));
        rc = cross(v, &v->staging, 0, to, at + done, n);
    }
    return rc;
}

// Calls `take` with pieces of a buffer.
static int bring(struct nb_grad_vulkan *v, const struct nb_vulkan_buffer *from, size_t at,
                 size_t floats, float *to, void (*take)(float *to, const float *x, size_t n))
{
    int rc = nb_vulkan_fit(v, piece_at(0, floats), NB_VULKAN_HOST, &v->staging);
    for (size_t done = 0, n; done < floats && rc == 0; done += n) {
        n = piece_at(done, floats);
        rc = cross(v, from, at + done, &v->staging, 0, n);
        if (rc == 0)
            take(to + done, v->staging.map, n);
    }
    return rc;
}

static void copy(float *to, const float *x, size_t n)
{
    memcpy(to, x, n * sizeof(*to));
}

static void add(float *to, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] += x[i];
}

int nb_vulkan_bring(struct nb_grad_vulkan *v, const struct nb_vulkan_buffer *from, size_t at,
                    size_t floats, float *to)
{
    return bring(v, from, at, floats, to, copy);
}

int nb_vulkan_add(struct nb_grad_vulkan *v, const struct nb_vulkan_buffer *from, size_t at,
                  size_t floats, float *to)
{
    return bring(v, from, at, floats, to, add);
}
