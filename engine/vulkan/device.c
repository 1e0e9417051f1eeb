// Making a Vulkan device ours.
#include "engine/vulkan/adapters.h"
#include "engine/vulkan/list.h"
#include "engine/vulkan/model.h"
#include "engine/vulkan/store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tensor/fail.h"

#define TEXEL_BYTES 16
#define MAX_WINDOW  (128u << 20)
#define LOCAL_GPU   64
#define TIMEOUT_MS  30000 // far above a submission's 5 ms: a CPU compiles shaders in it

static void read_limits(struct nb_vulkan_device *d, const struct nb_device_options *o)
{
    VkPhysicalDeviceExternalMemoryHostPropertiesEXT host = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT};
    VkPhysicalDeviceMaintenance3Properties m3 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES};
    if (d->can_import)
        m3.pNext = &host;
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                      .pNext = &m3};
    d->vk.GetPhysicalDeviceProperties2(d->physical, &p2);
    d->vk.GetPhysicalDeviceMemoryProperties(d->physical, &d->memory);
    d->heap = nb_vulkan_own_heap(&d->memory);
    d->memory_limit = o->memory_bytes;
    const VkPhysicalDeviceLimits *l = &p2.properties.limits;
    d->import_alignment = host.minImportedHostPointerAlignment;
    d->buffer_alignment =
        l->minTexelBufferOffsetAlignment > 64 ? l->minTexelBufferOffsetAlignment : 64;
    d->max_range = (VkDeviceSize)l->maxTexelBufferElements * TEXEL_BYTES;
    if (l->maxStorageBufferRange < d->max_range)
        d->max_range = l->maxStorageBufferRange;
    d->max_window = d->max_range < MAX_WINDOW ? d->max_range : MAX_WINDOW;
    if (o->window_bytes && o->window_bytes < d->max_window)
        d->max_window = o->window_bytes;
    d->max_buffer = d->max_allocation = m3.maxMemoryAllocationSize;
    if (o->buffer_bytes && o->buffer_bytes < d->max_buffer)
        d->max_buffer = o->buffer_bytes;
    d->tick_ns = (double)l->timestampPeriod;
    // Of what it imports, weights begin and end at pages.
    d->can_import = d->can_import && d->import_alignment <= (VkDeviceSize)sysconf(_SC_PAGESIZE);
    d->max_groups = l->maxComputeWorkGroupCount[0];
    d->max_groups_y = l->maxComputeWorkGroupCount[1];
    d->max_local = l->maxComputeWorkGroupInvocations < l->maxComputeWorkGroupSize[0]
                       ? l->maxComputeWorkGroupInvocations
                       : l->maxComputeWorkGroupSize[0];
    d->max_shared = l->maxComputeSharedMemorySize;
}

static int make_device(struct nb_vulkan_device *d, const struct nb_device_options *o)
{
    static const char *const import = VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME;
    static const char *const budget = VK_EXT_MEMORY_BUDGET_EXTENSION_NAME;
    d->has_budget = nb_vulkan_has_extension(&d->vk, d->physical, budget);
    d->can_import = d->info.unified && !d->info.writes_imports &&
                    nb_vulkan_has_extension(&d->vk, d->physical, import);
    read_limits(d, o);
    uint32_t family[2], bits;
    int rc = nb_vulkan_find_queues(&d->vk, d->physical, &family[0], &family[1], &bits);
    if (rc < 0)
        return rc;
    d->tick_mask = UINT64_MAX >> (64 - bits);
    static const float priority = 1;
    VkDeviceQueueCreateInfo queue[2];
    for (int i = 0; i < 2; i++)
        queue[i] = (VkDeviceQueueCreateInfo){.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                             .queueFamilyIndex = family[i],
                                             .queueCount = 1,
                                             .pQueuePriorities = &priority};
    VkPhysicalDeviceVulkan12Features features = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES, .timelineSemaphore = true};
    struct nb_tier_features of_tier;
    VkPhysicalDeviceFaultFeaturesEXT fault = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FAULT_FEATURES_EXT, .deviceFault = VK_TRUE};
    const char *extension[3 + NB_TIER_EXTENSIONS];
    uint32_t n_extensions = 0;
    if (d->can_import)
        extension[n_extensions++] = import;
    if (d->has_budget)
        extension[n_extensions++] = budget;
    if (nb_vulkan_has_extension(&d->vk, d->physical, VK_EXT_DEVICE_FAULT_EXTENSION_NAME)) {
        extension[n_extensions++] = VK_EXT_DEVICE_FAULT_EXTENSION_NAME;
        features.pNext = &fault;
    }
    nb_tier_enable(d->tier, &d->facts, &features, &of_tier, extension, &n_extensions);
    const VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                     .pNext = &features,
                                     .queueCreateInfoCount = family[0] == family[1] ? 1 : 2,
                                     .pQueueCreateInfos = queue,
                                     .enabledExtensionCount = n_extensions,
                                     .ppEnabledExtensionNames = extension};
    rc = nb_vk_errno(d->vk.CreateDevice(d->physical, &info, NULL, &d->device));
    if (rc == 0)
        rc = nb_vk_load_device(&d->vk, d->device);
    if (rc == 0)
        rc = nb_vulkan_queue_init(d, family[0], &d->compute);
    if (rc == 0 && family[0] != family[1]) {
        rc = nb_vulkan_queue_init(d, family[1], &d->transfer);
        d->copies = &d->transfer;
    }
    return rc;
}

VkDescriptorType nb_vulkan_descriptor(uint32_t binding)
{
    const uint32_t texels =
        1u << BIND_WEIGHTS | 1u << BIND_VECTORS | 1u << BIND_IN | 1u << BIND_ACT | 1u << BIND_KV;
    return texels >> binding & 1 ? VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER
                                 : VK_DESCRIPTOR_TYPE_STORAGE_BUFFER;
}

static int make_layout(struct nb_vulkan_device *d)
{
    VkDescriptorSetLayoutBinding binding[BINDINGS];
    for (uint32_t i = 0; i < BINDINGS; i++)
        binding[i] = (VkDescriptorSetLayoutBinding){.binding = i,
                                                    .descriptorType = nb_vulkan_descriptor(i),
                                                    .descriptorCount = 1,
                                                    .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
    const VkDescriptorSetLayoutCreateInfo set = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
        .bindingCount = BINDINGS,
        .pBindings = binding};
    VkResult r = d->vk.CreateDescriptorSetLayout(d->device, &set, NULL, &d->set_layout);
    if (r != VK_SUCCESS)
        return nb_vk_errno(r);
    const VkPushConstantRange push = {VK_SHADER_STAGE_COMPUTE_BIT, 0, PUSH_BYTES};
    const VkPipelineLayoutCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                             .setLayoutCount = 1,
                                             .pSetLayouts = &d->set_layout,
                                             .pushConstantRangeCount = 1,
                                             .pPushConstantRanges = &push};
    return nb_vk_errno(d->vk.CreatePipelineLayout(d->device, &info, NULL, &d->layout));
}

static int make_modules(struct nb_vulkan_device *d)
{
    int rc = 0;
    for (enum nb_module i = 0; i < NB_MODULES && rc == 0; i++)
        if (nb_tier_uses(d->tier, i))
            rc = nb_vulkan_module(d, &nb_shader_code[i], &d->module[i]);
    return rc;
}

static void vulkan_destroy(struct nb_device *base)
{
    struct nb_vulkan_device *d = (struct nb_vulkan_device *)base;
    if (!d)
        return;
    if (d->hangs) // its driver may wait for what never comes; the process ends soon
        return;
    if (d->device && d->vk.DestroyDevice) {
        nb_vulkan_clients_destroy(d);
        nb_vulkan_store_destroy(d);
        nb_vulkan_cache_finish(d);
        for (int i = 0; i < NB_MODULES; i++)
            d->vk.DestroyShaderModule(d->device, d->module[i], NULL);
        d->vk.DestroyPipelineLayout(d->device, d->layout, NULL);
        d->vk.DestroyDescriptorSetLayout(d->device, d->set_layout, NULL);
        nb_vulkan_queue_finish(d, &d->transfer);
        nb_vulkan_queue_finish(d, &d->compute);
        d->vk.DestroyDevice(d->device, NULL);
    }
    nb_vk_close(&d->vk);
    free(d);
}

static int open_index(struct nb_vulkan_device *d, const struct nb_device_options *o,
                      struct nb_error *error)
{
    VkPhysicalDevice p[NB_VULKAN_DEVICES];
    uint32_t n;
    int rc = nb_vk_open(&d->vk, error);
    if (rc < 0 || (rc = nb_vulkan_list(&d->vk, p, &n, error)) < 0)
        return rc;
    if (d->index >= n)
        return nb_fail(error, -ENODEV,
                       "there is no device vulkan%u: this machine has %u Vulkan device%s", d->index,
                       n, n == 1 ? "" : "s");
    d->physical = p[d->index];
    nb_vulkan_describe(&d->vk, d->physical, &d->info);
    if (d->info.fault[0])
        return nb_fail(error, -ENOTSUP, "vulkan%u (%s): %s", d->index, d->info.name, d->info.fault);
    nb_tier_read(&d->vk, d->physical, &d->facts);
    d->tier = nb_tier_best(&d->facts);
    struct nb_error why;
    if (o->tier && (rc = nb_tier_find(o->tier, &d->facts, &d->tier, &why)) < 0)
        return nb_fail(error, rc, "vulkan%u (%s): %s", d->index, d->info.name, why.text);
    if ((rc = make_device(d, o)) < 0 || (rc = make_layout(d)) < 0 || (rc = make_modules(d)) < 0 ||
        (rc = nb_vulkan_cache_init(d, o->cache, o->cache_bytes)) < 0 ||
        (rc = nb_vulkan_store_create(&d->store)) < 0)
        return nb_fail(error, rc, "vulkan%u (%s): %s", d->index, d->info.name, strerror(-rc));
    return 0;
}

int nb_vulkan_device_create(uint32_t index, const struct nb_device_options *options,
                            struct nb_device **ret, struct nb_error *ret_error)
{
    struct nb_vulkan_device *d = calloc(1, sizeof(*d));
    if (!d)
        return nb_fail(ret_error, -ENOMEM, "out of memory");
    d->base.ops = &nb_vulkan_ops;
    d->index = index;
    d->warm = options->warm;
    d->tile = options->tile <= NB_TIER_TILES ? options->tile : 0;
    d->copies = &d->compute;
    d->weights = options->weights;
    snprintf(d->weights_why, sizeof(d->weights_why), "as asked");
    d->timeout_ns = (uint64_t)(options->timeout_ms ? options->timeout_ms : TIMEOUT_MS) * 1000000;
    int rc = open_index(d, options, ret_error);
    if (rc < 0)
        vulkan_destroy(&d->base);
    else
        *ret = &d->base;
    return rc;
}

uint32_t nb_vulkan_local(const struct nb_vulkan_device *d, const struct nb_tier_variant *v)
{
    return v->local ? v->local : d->info.is_cpu ? d->facts.subgroup : LOCAL_GPU;
}

static enum nb_module module_of(const struct nb_tier_variant *v, uint32_t mode)
{
    if (v->finishes && mode >= MODE_FINISH)
        return v->finishing;
    if (v->rotating && (mode == MODE_ROPE || mode == MODE_ROPE_NEOX))
        return v->rotating;
    return v->module;
}

int nb_vulkan_pipeline(struct nb_vulkan_device *d, const struct nb_tier_variant *v,
                       const uint32_t constants[CONST_TIER], VkPipeline *ret)
{
    VkSpecializationMapEntry entry[CONSTANTS];
    uint32_t value[CONSTANTS];
    memcpy(value, constants, CONST_TIER * sizeof(*value));
    memcpy(value + CONST_TIER, d->facts.constants, sizeof(d->facts.constants));
    value[CONST_LOCAL] = nb_vulkan_local(d, v);
    for (uint32_t i = 0; i < CONSTANTS; i++)
        entry[i] = (VkSpecializationMapEntry){i, i * 4, 4};
    // Not another that the driver may like better for this shader: constants follow from the size.
    const VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO,
        .requiredSubgroupSize = d->facts.subgroup};
    const VkSpecializationInfo special = {CONSTANTS, entry, sizeof(value), value};
    const VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .pNext = v->full && d->facts.pins ? &size : NULL,
                  .flags = v->full ? VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT : 0,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = d->module[module_of(v, constants[CONST_MODE])],
                  .pName = "main",
                  .pSpecializationInfo = &special},
        .layout = d->layout};
    return nb_vk_errno(
        d->vk.CreateComputePipelines(d->device, d->cache.pipelines, 1, &info, NULL, ret));
}

static void vulkan_info(const struct nb_device *base, struct nb_device_info *ret)
{
    const struct nb_vulkan_device *d = (const struct nb_vulkan_device *)base;
    nb_vulkan_device_show(&d->info, d->index, ret);
    snprintf(ret->isa, sizeof(ret->isa), "%s", d->tier->name);
    nb_vulkan_memory(d, &ret->memory_used, &ret->memory_free);
    if (d->weights == NB_WEIGHTS_IMPORTED || d->weights == NB_WEIGHTS_COPIED)
        snprintf(ret->weights, sizeof(ret->weights), "%s: %s",
                 d->weights == NB_WEIGHTS_COPIED ? "copied" : "imported", d->weights_why);
}

const struct nb_device_ops nb_vulkan_ops = {
    .info = vulkan_info,
    .destroy = vulkan_destroy,
    .kv_block_bytes = nb_vulkan_kv_block_bytes,
    .kv_room = nb_vulkan_kv_room,
    .model_open = nb_vulkan_model_open,
    .model_close = nb_vulkan_model_close,
    .step = nb_vulkan_step,
    .prepare = nb_vulkan_prepare,
    .kv_clear = nb_vulkan_kv_clear,
    .adapter_open = nb_vulkan_adapter_open,
    .adapter_close = nb_vulkan_adapter_close,
    .times = nb_vulkan_times,
    .cache = nb_vulkan_cache_save,
    .fault = nb_vulkan_fault,
    .widest = nb_vulkan_widest,
    .matrix_open = nb_vulkan_matrix_open,
    .matrix_close = nb_vulkan_matrix_close,
    .gemm = nb_vulkan_gemm,
    .dequantize = nb_vulkan_dequantize,
};
