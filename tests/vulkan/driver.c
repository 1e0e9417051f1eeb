// Runs small shaders of the tests' own on a device: what its driver does to numbers and to loops,
// and how fast it computes at best. One storage buffer each, apart from the engine's layouts.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/vulkan/device.h"
#include "tests/kernels/check.h"
#include "tests/vulkan/ops.h"

#include "arithmetic.spv.h"
#include "loop.spv.h"
#include "peak.spv.h"

#define VALUES      4096
#define PEAK_ROUNDS 1024
#define PEAK_UNITS  1024
#define PEAK_STEPS  (32 * 4) // of a round: peak.comp

// A shader with its buffer, ready to run.
struct small {
    struct nb_vulkan_device *d;
    VkDescriptorSetLayout set_layout;
    VkPipelineLayout layout;
    VkShaderModule module;
    VkPipeline pipeline;
    VkDescriptorPool pool;
    VkDescriptorSet set;
    VkQueryPool queries;
    struct nb_vulkan_buffer buffer;
};

static void finish(struct small *s)
{
    const struct nb_vk *vk = &s->d->vk;
    VkDevice d = s->d->device;
    vk->DestroyQueryPool(d, s->queries, NULL);
    vk->DestroyDescriptorPool(d, s->pool, NULL);
    vk->DestroyPipeline(d, s->pipeline, NULL);
    vk->DestroyShaderModule(d, s->module, NULL);
    vk->DestroyPipelineLayout(d, s->layout, NULL);
    vk->DestroyDescriptorSetLayout(d, s->set_layout, NULL);
    nb_vulkan_buffer_finish(s->d, &s->buffer);
}

static VkResult make_layouts(struct small *s)
{
    const struct nb_vk *vk = &s->d->vk;
    VkDevice d = s->d->device;
    const VkDescriptorSetLayoutBinding binding = {.descriptorType =
                                                      VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                                  .descriptorCount = 1,
                                                  .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
    const VkDescriptorSetLayoutCreateInfo set = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
        .bindingCount = 1,
        .pBindings = &binding};
    const VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1};
    const VkDescriptorPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                             .maxSets = 1,
                                             .poolSizeCount = 1,
                                             .pPoolSizes = &size};
    const VkQueryPoolCreateInfo queries = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                           .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                           .queryCount = 2};
    VkResult r = vk->CreateDescriptorSetLayout(d, &set, NULL, &s->set_layout);
    const VkPipelineLayoutCreateInfo layout = {.sType =
                                                   VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                               .setLayoutCount = 1,
                                               .pSetLayouts = &s->set_layout};
    if (r == VK_SUCCESS)
        r = vk->CreatePipelineLayout(d, &layout, NULL, &s->layout);
    if (r == VK_SUCCESS)
        r = vk->CreateQueryPool(d, &queries, NULL, &s->queries);
    return r == VK_SUCCESS ? vk->CreateDescriptorPool(d, &pool, NULL, &s->pool) : r;
}

static VkResult make_pipeline(struct small *s, const uint32_t *code, size_t bytes,
                              const uint32_t constants[2])
{
    const struct nb_vk *vk = &s->d->vk;
    const VkShaderModuleCreateInfo module = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = bytes, .pCode = code};
    VkResult r = vk->CreateShaderModule(s->d->device, &module, NULL, &s->module);
    if (r != VK_SUCCESS)
        return r;
    const VkSpecializationMapEntry entry[] = {{0, 0, 4}, {1, 4, 4}};
    const VkSpecializationInfo special = {2, entry, 8, constants};
    const VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = s->module,
                  .pName = "main",
                  .pSpecializationInfo = constants ? &special : NULL},
        .layout = s->layout};
    return vk->CreateComputePipelines(s->d->device, VK_NULL_HANDLE, 1, &info, NULL, &s->pipeline);
}

static VkResult make_set(struct small *s)
{
    const struct nb_vk *vk = &s->d->vk;
    const VkDescriptorSetAllocateInfo info = {.sType =
                                                  VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                              .descriptorPool = s->pool,
                                              .descriptorSetCount = 1,
                                              .pSetLayouts = &s->set_layout};
    VkResult r = vk->AllocateDescriptorSets(s->d->device, &info, &s->set);
    if (r != VK_SUCCESS)
        return r;
    const VkDescriptorBufferInfo what = {s->buffer.buffer, 0, VK_WHOLE_SIZE};
    const VkWriteDescriptorSet write = {.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                        .dstSet = s->set,
                                        .descriptorCount = 1,
                                        .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                        .pBufferInfo = &what};
    vk->UpdateDescriptorSets(s->d->device, 1, &write, 0, NULL);
    return VK_SUCCESS;
}

// `constants`: two of specialisation, or NULL. `data` goes into the buffer first.
static int init(struct small *s, struct nb_vulkan_device *d, const uint32_t *code, size_t bytes,
                const uint32_t *constants, const void *data, size_t data_bytes)
{
    *s = (struct small){.d = d};
    int rc = nb_vulkan_buffer_init(d, data_bytes, NB_VULKAN_HOST, &s->buffer);
    if (rc == 0)
        rc = nb_vk_errno(make_layouts(s));
    if (rc == 0)
        rc = nb_vk_errno(make_pipeline(s, code, bytes, constants));
    if (rc == 0)
        rc = nb_vk_errno(make_set(s));
    if (rc == 0)
        memcpy(s->buffer.map, data, data_bytes);
    else
        finish(s);
    return rc;
}

// Runs it over so many workgroups; returns the device's nanoseconds, or a negative errno.
static int64_t run(struct small *s, uint32_t groups)
{
    const struct nb_vk *vk = &s->d->vk;
    const VkPipelineStageFlagBits compute = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT;
    const VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                     .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                                     .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
    VkCommandBuffer c;
    uint64_t tick[2] = {0};
    int rc = nb_vulkan_begin(s->d, true, &c);
    if (rc < 0)
        return rc;
    vk->CmdResetQueryPool(c, s->queries, 0, 2);
    vk->CmdBindPipeline(c, VK_PIPELINE_BIND_POINT_COMPUTE, s->pipeline);
    vk->CmdBindDescriptorSets(c, VK_PIPELINE_BIND_POINT_COMPUTE, s->layout, 0, 1, &s->set, 0, NULL);
    vk->CmdWriteTimestamp(c, compute, s->queries, 0);
    vk->CmdDispatch(c, groups, 1, 1);
    vk->CmdPipelineBarrier(c, compute, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier, 0, NULL, 0,
                           NULL);
    vk->CmdWriteTimestamp(c, compute, s->queries, 1);
    rc = nb_vulkan_run_once(s->d, c);
    if (rc == 0)
        rc = nb_vk_errno(vk->GetQueryPoolResults(s->d->device, s->queries, 0, 2, sizeof(tick), tick,
                                                 sizeof(*tick), VK_QUERY_RESULT_64_BIT));
    return rc < 0 ? rc : (int64_t)nb_vulkan_elapsed(s->d, tick[0], tick[1]);
}

struct numbers {
    uint32_t n, pad[3];
    float in[VALUES][4], out[VALUES][4];
};

static bool same(float a, float b)
{
    uint32_t x, y; // the bits: -0 is not +0
    memcpy(&x, &a, sizeof(x));
    memcpy(&y, &b, sizeof(y));
    return x == y;
}

static void judge(const struct numbers *x, struct driver_facts *ret)
{
    ret->ieee = ret->fused = ret->unfused = true;
    for (uint32_t i = 0; i < VALUES; i++) {
        const float *v = x->in[i], *out = x->out[i];
        float product = v[0] * v[1];
        ret->fused &= same(out[0], fmaf(v[0], v[1], v[2]));
        ret->unfused &= same(out[0], product + v[2]);
        ret->ieee &= same(out[1], v[0] / v[1]) && same(out[2], sqrtf(fabsf(v[0]))) &&
                     same(out[3], v[2] * v[3]);
    }
}

static int probe_numbers(struct nb_vulkan_device *d, struct driver_facts *ret)
{
    struct numbers *x = calloc(1, sizeof(*x));
    struct small s;
    if (!x)
        return -ENOMEM;
    x->n = VALUES;
    for (uint32_t i = 0; i < VALUES; i++) {
        for (int j = 0; j < 3; j++)
            x->in[i][j] = random_float();
        x->in[i][3] = i % 2 ? 1e-39f : random_float();
    }
    int64_t rc = init(&s, d, arithmetic_spv, sizeof(arithmetic_spv), NULL, x, sizeof(*x));
    if (rc == 0) {
        rc = run(&s, VALUES / 8);
        memcpy(x, s.buffer.map, sizeof(*x));
        judge(x, ret);
        finish(&s);
    }
    free(x);
    return rc < 0 ? (int)rc : 0;
}

int driver_probe(struct nb_vulkan_device *d, struct driver_facts *ret)
{
    const uint32_t loop[] = {DRIVER_LOOP / 100, 100, 1, 0};
    struct small s;
    int64_t rc = init(&s, d, loop_spv, sizeof(loop_spv), NULL, loop, sizeof(loop));
    if (rc < 0)
        return (int)rc;
    rc = run(&s, 1);
    ret->loop = ((const uint32_t *)s.buffer.map)[3];
    finish(&s);
    return rc < 0 ? (int)rc : probe_numbers(d, ret);
}

static int peak(struct nb_vulkan_device *d, uint32_t whole, double *ret)
{
    const uint32_t constants[] = {d->info.is_cpu ? 8 : 64, whole};
    const uint32_t data[4 + 8] = {PEAK_ROUNDS, 0, 0, 0, 1, 1, 1, 1};
    struct small s;
    int64_t best = 0, ns = init(&s, d, peak_spv, sizeof(peak_spv), constants, data, sizeof(data));
    if (ns < 0)
        return (int)ns;
    for (int i = 0; i < 5 && ns >= 0; i++) {
        ns = run(&s, PEAK_UNITS / constants[0]);
        best = best == 0 || ns < best ? ns : best;
    }
    finish(&s);
    double ops = (double)PEAK_ROUNDS * PEAK_UNITS * PEAK_STEPS * (whole ? 4 : 2);
    *ret = ops / (double)best * 1e9;
    return ns < 0 ? (int)ns : 0;
}

int driver_peak(struct nb_vulkan_device *d, double *ret_integer, double *ret_float)
{
    int rc = peak(d, 1, ret_integer);
    return rc < 0 ? rc : peak(d, 0, ret_float);
}
