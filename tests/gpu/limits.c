// What a product is held against, measured on the device: reads of a buffer larger than its caches
// in three ways, and int8 products on registers alone, by dot products and by cooperative matrices.
// And what a dispatch costs, from wherever its size is read. It asserts nothing.
#include <getopt.h>
#include <string.h>

#include "engine/vulkan/list.h"
#include "tests/gpu/gpu.h"

#include "empty.spv.h"
#include "peak_dot.spv.h"
#include "peak_matrix.spv.h"
#include "read_address.spv.h"
#include "read_storage.spv.h"
#include "read_texels.spv.h"

#define RUNS       3
#define READERS    256 // of a workgroup: read.comp, peak_dot.comp
#define MATRIX     128 // peak_matrix.comp
#define EACH       64  // reads of an invocation
#define WINDOW     ((VkDeviceSize)128 << 20)
#define READ_BYTES ((VkDeviceSize)1 << 30)
#define CPU_BYTES  ((VkDeviceSize)64 << 20)
#define DISPATCHES 200
#define MAX_SHAPES 128

struct window {
    VkDescriptorSet set;
    VkBufferView view;
};

// What a command buffer of reads or of products does.
struct job {
    const struct gpu_kernel *kernel;
    struct window window[READ_BYTES / ((VkDeviceSize)16 << 20)];
    uint32_t n_windows, groups;
    VkDeviceSize bytes; // of a window
    uint64_t address;   // of the buffer, or 0
    uint32_t count;
};

static void launch(struct gpu *g, VkCommandBuffer c, const struct job *job, uint32_t window)
{
    const uint64_t address = job->address ? job->address + window * job->bytes : 0;
    const struct gpu_push push = {{(uint32_t)address, (uint32_t)(address >> 32)}, job->count};
    g->vk.CmdBindPipeline(c, VK_PIPELINE_BIND_POINT_COMPUTE, job->kernel->pipeline);
    g->vk.CmdBindDescriptorSets(c, VK_PIPELINE_BIND_POINT_COMPUTE, g->layout, 0, 1,
                                &job->window[window].set, 0, NULL);
    g->vk.CmdPushConstants(c, g->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof(push), &push);
    g->vk.CmdDispatch(c, job->groups, 1, 1);
}

static void fill(struct gpu *g, VkCommandBuffer c, void *user)
{
    const struct job *job = user;
    for (uint32_t i = 0; i < job->n_windows; i++)
        launch(g, c, job, i);
}

static double time_kernel(struct gpu *g, const uint32_t *code, size_t bytes, const uint32_t *shape,
                          const struct job *job)
{
    struct gpu_kernel kernel;
    struct job timed = *job;
    gpu_kernel_init(g, code, bytes, shape, &kernel);
    timed.kernel = &kernel;
    double t = gpu_time(g, fill, &timed, RUNS);
    gpu_kernel_finish(g, &kernel);
    return t;
}

// --- Reading

static VkDeviceSize window_bytes(const struct gpu *g)
{
    const VkPhysicalDeviceLimits *l = &g->properties.limits;
    VkDeviceSize most = (VkDeviceSize)l->maxTexelBufferElements * 16, window = WINDOW;
    most = most < l->maxStorageBufferRange ? most : l->maxStorageBufferRange;
    while (window > most)
        window /= 2;
    return window;
}

// As much as a quarter of the device's memory, and a gigabyte, allow.
static VkDeviceSize read_bytes(const struct gpu *g)
{
    VkDeviceSize quarter = g->memory.memoryHeaps[nb_vulkan_own_heap(&g->memory)].size / 4;
    VkDeviceSize bytes = g->is_cpu ? CPU_BYTES : READ_BYTES;
    while (bytes > quarter)
        bytes /= 2;
    return bytes;
}

static void measure_reads(struct gpu *g, struct gpu_limit *ret)
{
    struct job job = {.bytes = window_bytes(g), .count = EACH};
    struct gpu_buffer b;
    VkDeviceSize bytes = read_bytes(g);
    job.bytes = job.bytes < bytes ? job.bytes : bytes;
    job.n_windows = (uint32_t)(bytes / job.bytes);
    if (job.n_windows > sizeof(job.window) / sizeof(job.window[0]))
        job.n_windows = sizeof(job.window) / sizeof(job.window[0]);
    bytes = job.bytes * job.n_windows;
    job.groups = (uint32_t)(job.bytes / 16 / EACH / READERS);
    if (!gpu_buffer_init(g, bytes, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0, &b))
        gpu_fail("the device has no %llu MB of memory free", (unsigned long long)bytes >> 20);
    for (uint32_t i = 0; i < job.n_windows; i++)
        job.window[i].set = gpu_bind(g, &b, i * job.bytes, job.bytes, &job.window[i].view);
    const double n = (double)bytes;
    ret->texels = n / time_kernel(g, read_texels_spv, sizeof(read_texels_spv), NULL, &job);
    ret->storage = n / time_kernel(g, read_storage_spv, sizeof(read_storage_spv), NULL, &job);
    if (g->has_address && g->address_of) {
        const VkBufferDeviceAddressInfo where = {
            .sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO, .buffer = b.buffer};
        job.address = g->address_of(g->device, &where);
        ret->address = n / time_kernel(g, read_address_spv, sizeof(read_address_spv), NULL, &job);
    }
    for (uint32_t i = 0; i < job.n_windows; i++)
        g->vk.DestroyBufferView(g->device, job.window[i].view, NULL);
    gpu_buffer_finish(g, &b);
}

double gpu_limit_bandwidth(const struct gpu_limit *l)
{
    double best = l->texels > l->storage ? l->texels : l->storage;
    return best > l->address ? best : l->address;
}

// --- Multiplying

// Every shape of signed bytes to words that fills a subgroup; the fastest counts.
static double measure_matrices(struct gpu *g, struct job *job, bool tell)
{
    nb_coopmat_shapes list = (nb_coopmat_shapes)g->vk.get(g->vk.instance, NB_COOPMAT_SHAPES);
    struct nb_coopmat_shape all[MAX_SHAPES];
    uint32_t n = MAX_SHAPES, subgroup = g->facts.subgroup;
    double best = 0;
    for (uint32_t i = 0; i < MAX_SHAPES; i++)
        all[i] = (struct nb_coopmat_shape){.sType = (VkStructureType)NB_COOPMAT_SHAPE};
    if (!g->has_matrix || !list || list(g->physical, &n, all) < 0 || !subgroup)
        return 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct nb_coopmat_shape *s = &all[i];
        const uint32_t shape[] = {s->m, s->n, s->k};
        if (s->a != NB_COOPMAT_SINT8 || s->b != NB_COOPMAT_SINT8 || s->c != NB_COOPMAT_SINT32 ||
            s->result != NB_COOPMAT_SINT32 || s->saturates || s->scope != NB_COOPMAT_SUBGROUP)
            continue;
        double ops =
            2.0 * s->m * s->n * s->k * 4 * job->count * job->groups * ((double)MATRIX / subgroup);
        double speed = ops / time_kernel(g, peak_matrix_spv, sizeof(peak_matrix_spv), shape, job);
        if (tell)
            gpu_row(json_pack("{s:s, s:i, s:i, s:i, s:f}", "row", "matrix shape", "rows", (int)s->m,
                              "columns", (int)s->n, "depth", (int)s->k, "tops", speed * 1e-12));
        best = speed > best ? speed : best;
    }
    return best;
}

// What is known before the matrices, in which a driver may crash.
static void tell_limits(const struct gpu_limit *l)
{
    gpu_row(json_pack("{s:s, s:f, s:f, s:f, s:f}", "row", "limits", "texels_gb_s", l->texels * 1e-9,
                      "storage_gb_s", l->storage * 1e-9, "address_gb_s", l->address * 1e-9,
                      "dot_tops", l->dot * 1e-12));
}

static void measure_products(struct gpu *g, struct gpu_limit *ret, bool tell)
{
    struct job job = {
        .n_windows = 1, .groups = g->is_cpu ? 4 : 8192, .count = g->is_cpu ? 512 : 2048};
    struct gpu_buffer b;
    if (!gpu_buffer_init(g, 1 << 16, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0, &b))
        gpu_fail("the device has no memory free");
    job.window[0].set = gpu_bind(g, &b, 0, b.bytes, &job.window[0].view);
    if (g->has_dot) {
        const double ops = 32.0 * 8 * job.count * job.groups * READERS;
        ret->dot = ops / time_kernel(g, peak_dot_spv, sizeof(peak_dot_spv), NULL, &job);
    }
    // A driver that has matrices and takes another tier is not asked for them but by their own
    // part.
    if (tell)
        tell_limits(ret);
    if (tell || !strcmp(nb_tier_best(&g->facts)->name, "matrices"))
        ret->matrix = measure_matrices(g, &job, tell);
    g->vk.DestroyBufferView(g->device, job.window[0].view, NULL);
    gpu_buffer_finish(g, &b);
}

void gpu_limit_measure(uint32_t index, bool tell, struct gpu_limit *ret)
{
    struct gpu g;
    *ret = (struct gpu_limit){0};
    gpu_open(&g, index);
    measure_reads(&g, ret);
    measure_products(&g, ret, tell);
    gpu_close(&g);
}

static uint32_t device_of(int argc, char **argv)
{
    static const struct option longs[] = {{"device", required_argument, NULL, 'd'}, {0}};
    const char *name = "vulkan0";
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) >= 0;)
        name = c == 'd' ? optarg : NULL;
    return gpu_index(name);
}

int gpu_limits(int argc, char **argv)
{
    struct gpu_limit l;
    gpu_limit_measure(device_of(argc, argv), true, &l);
    return 0;
}

// --- Gaps

struct gaps {
    const struct gpu_kernel *kernel;
    struct window window;
    VkBuffer indirect; // or none: direct
};

static void dispatch_all(struct gpu *g, VkCommandBuffer c, void *user)
{
    const struct gaps *gaps = user;
    const VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                     .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                                     .dstAccessMask =
                                         VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT};
    g->vk.CmdBindPipeline(c, VK_PIPELINE_BIND_POINT_COMPUTE, gaps->kernel->pipeline);
    g->vk.CmdBindDescriptorSets(c, VK_PIPELINE_BIND_POINT_COMPUTE, g->layout, 0, 1,
                                &gaps->window.set, 0, NULL);
    for (uint32_t i = 0; i < DISPATCHES; i++) {
        if (gaps->indirect)
            g->vk.CmdDispatchIndirect(c, gaps->indirect, i * sizeof(VkDispatchIndirectCommand));
        else
            g->vk.CmdDispatch(c, 1, 1, 1);
        g->vk.CmdPipelineBarrier(c, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                                 VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0, 1, &barrier, 0, NULL, 0,
                                 NULL);
    }
}

static double time_gaps(struct gpu *g, struct gaps *gaps, VkBuffer indirect)
{
    gaps->indirect = indirect;
    return gpu_time(g, dispatch_all, gaps, RUNS) / DISPATCHES * 1e6;
}

// Workgroups of one for every dispatch, where the device can be handed them; microseconds, or none.
static json_t *indirect_from(struct gpu *g, struct gaps *gaps, VkMemoryPropertyFlags flags)
{
    struct gpu_buffer b;
    if (!gpu_buffer_init(g, DISPATCHES * sizeof(VkDispatchIndirectCommand), flags, 1, &b))
        return json_null();
    double us = time_gaps(g, gaps, b.buffer);
    gpu_buffer_finish(g, &b);
    return json_real(us);
}

int gpu_gaps(int argc, char **argv)
{
    const VkMemoryPropertyFlags host =
        VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    struct gpu g;
    struct gpu_kernel kernel;
    struct gpu_buffer b;
    gpu_open(&g, device_of(argc, argv));
    gpu_kernel_init(&g, empty_spv, sizeof(empty_spv), NULL, &kernel);
    if (!gpu_buffer_init(&g, 256, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0, &b))
        gpu_fail("the device has no memory free");
    struct gaps gaps = {.kernel = &kernel};
    gaps.window.set = gpu_bind(&g, &b, 0, b.bytes, &gaps.window.view);
    double direct = time_gaps(&g, &gaps, VK_NULL_HANDLE);
    gpu_row(json_pack("{s:s, s:i, s:f, s:o, s:o, s:o}", "row", "gaps", "dispatches", DISPATCHES,
                      "direct_us", direct, "indirect_from_system_us",
                      indirect_from(&g, &gaps, host | VK_MEMORY_PROPERTY_HOST_CACHED_BIT),
                      "indirect_from_device_us",
                      indirect_from(&g, &gaps, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT),
                      "indirect_from_mapped_device_us",
                      indirect_from(&g, &gaps, host | VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT)));
    g.vk.DestroyBufferView(g.device, gaps.window.view, NULL);
    gpu_buffer_finish(&g, &b);
    gpu_kernel_finish(&g, &kernel);
    gpu_close(&g);
    return 0;
}
