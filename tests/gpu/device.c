// A Vulkan device by hand, for measurements: every feature that a shader of ours may ask for is
// enabled where the driver has it. What fails ends the program; nothing here is the engine's.
#include <stdlib.h>
#include <string.h>

#include "engine/vulkan/list.h"
#include "tensor/fail.h"
#include "tests/gpu/gpu.h"

#define MAX_SETS   128
#define TIMEOUT_NS UINT64_C(20000000000)

static void check(VkResult r, const char *call)
{
    if (r != VK_SUCCESS)
        gpu_fail("%s: %s", call, nb_vk_result_name(r));
}

// --- The device

struct features {
    VkPhysicalDeviceFeatures2 all;
    VkPhysicalDeviceVulkan12Features f12;
    VkPhysicalDeviceShaderIntegerDotProductFeatures dot;
    struct nb_coopmat_features matrix;
    const char *extension[2];
    uint32_t n;
};

static void read_features(struct gpu *g, struct features *f)
{
    *f = (struct features){
        .all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &f->f12},
        .f12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES},
        .dot = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES},
        .matrix = {.sType = (VkStructureType)NB_COOPMAT_FEATURES}};
    static const char *const dot = VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME;
    if (nb_vulkan_has_extension(&g->vk, g->physical, dot)) {
        f->extension[f->n++] = dot;
        f->dot.pNext = f->f12.pNext;
        f->f12.pNext = &f->dot;
    }
    if (nb_vulkan_has_extension(&g->vk, g->physical, NB_COOPMAT_EXTENSION)) {
        f->extension[f->n++] = NB_COOPMAT_EXTENSION;
        f->matrix.pNext = f->f12.pNext;
        f->f12.pNext = &f->matrix;
    }
    g->vk.GetPhysicalDeviceFeatures2(g->physical, &f->all);
    // Costs speed on some drivers, and nothing here reaches beyond a buffer.
    f->all.features.robustBufferAccess = VK_FALSE;
    f->matrix.cooperativeMatrixRobustBufferAccess = VK_FALSE;
    // Only debuggers have it, and the layer warns of it.
    f->f12.bufferDeviceAddressCaptureReplay = VK_FALSE;
    f->f12.bufferDeviceAddressMultiDevice = VK_FALSE;
    g->has_address = f->f12.bufferDeviceAddress;
    g->has_dot = f->dot.shaderIntegerDotProduct;
    g->has_matrix = f->matrix.cooperativeMatrix && f->f12.vulkanMemoryModel && f->f12.shaderInt8;
}

static uint32_t make_device(struct gpu *g)
{
    static const float priority = 1;
    struct features f;
    uint32_t family = 0, transfer, bits = 0;
    gpu_check(nb_vulkan_find_queues(&g->vk, g->physical, &family, &transfer, &bits), "a queue");
    g->tick_mask = bits < 64 ? (UINT64_C(1) << bits) - 1 : UINT64_MAX;
    read_features(g, &f);
    const VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                           .queueFamilyIndex = family,
                                           .queueCount = 1,
                                           .pQueuePriorities = &priority};
    const VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                     .pNext = &f.all,
                                     .queueCreateInfoCount = 1,
                                     .pQueueCreateInfos = &queue,
                                     .enabledExtensionCount = f.n,
                                     .ppEnabledExtensionNames = f.extension};
    check(g->vk.CreateDevice(g->physical, &info, NULL, &g->device), "vkCreateDevice");
    gpu_check(nb_vk_load_device(&g->vk, g->device), "the driver's functions");
    g->address_of = (PFN_vkGetBufferDeviceAddress)g->vk.GetDeviceProcAddr(
        g->device, "vkGetBufferDeviceAddress");
    g->vk.GetDeviceQueue(g->device, family, 0, &g->queue);
    return family;
}

static void make_layout(struct gpu *g)
{
    const VkDescriptorSetLayoutBinding binding[] = {
        {.binding = 0,
         .descriptorType = VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER,
         .descriptorCount = 1,
         .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT},
        {.binding = 1,
         .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
         .descriptorCount = 1,
         .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT}};
    const VkDescriptorSetLayoutCreateInfo set = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
        .bindingCount = 2,
        .pBindings = binding};
    check(g->vk.CreateDescriptorSetLayout(g->device, &set, NULL, &g->set_layout),
          "vkCreateDescriptorSetLayout");
    const VkPushConstantRange push = {VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof(struct gpu_push)};
    const VkPipelineLayoutCreateInfo layout = {.sType =
                                                   VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                               .setLayoutCount = 1,
                                               .pSetLayouts = &g->set_layout,
                                               .pushConstantRangeCount = 1,
                                               .pPushConstantRanges = &push};
    check(g->vk.CreatePipelineLayout(g->device, &layout, NULL, &g->layout),
          "vkCreatePipelineLayout");
}

static void make_pools(struct gpu *g, uint32_t family)
{
    const VkCommandPoolCreateInfo commands = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                              .queueFamilyIndex = family};
    const VkQueryPoolCreateInfo queries = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                           .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                           .queryCount = 2};
    const VkDescriptorPoolSize sizes[] = {{VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER, MAX_SETS},
                                          {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, MAX_SETS}};
    const VkDescriptorPoolCreateInfo sets = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                             .maxSets = MAX_SETS,
                                             .poolSizeCount = 2,
                                             .pPoolSizes = sizes};
    check(g->vk.CreateCommandPool(g->device, &commands, NULL, &g->commands), "vkCreateCommandPool");
    check(g->vk.CreateQueryPool(g->device, &queries, NULL, &g->queries), "vkCreateQueryPool");
    check(g->vk.CreateDescriptorPool(g->device, &sets, NULL, &g->sets), "vkCreateDescriptorPool");
}

void gpu_open(struct gpu *g, uint32_t index)
{
    VkPhysicalDevice p[NB_VULKAN_DEVICES];
    struct nb_error error = {""};
    uint32_t n = 0;
    *g = (struct gpu){0};
    if (nb_vk_open(&g->vk, &error) < 0 || nb_vulkan_list(&g->vk, p, &n, &error) < 0)
        gpu_fail("%s", error.text);
    if (index >= n)
        gpu_fail("there is no vulkan%u: this machine has %u Vulkan devices", index, n);
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
    g->physical = p[index];
    g->vk.GetPhysicalDeviceProperties2(g->physical, &p2);
    g->vk.GetPhysicalDeviceMemoryProperties(g->physical, &g->memory);
    g->properties = p2.properties;
    g->is_cpu = g->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
    nb_tier_read(&g->vk, g->physical, &g->facts);
    uint32_t family = make_device(g);
    make_layout(g);
    make_pools(g, family);
}

void gpu_close(struct gpu *g)
{
    g->vk.DestroyDescriptorPool(g->device, g->sets, NULL);
    g->vk.DestroyQueryPool(g->device, g->queries, NULL);
    g->vk.DestroyCommandPool(g->device, g->commands, NULL);
    g->vk.DestroyPipelineLayout(g->device, g->layout, NULL);
    g->vk.DestroyDescriptorSetLayout(g->device, g->set_layout, NULL);
    g->vk.DestroyDevice(g->device, NULL);
    nb_vk_close(&g->vk);
}

// --- Commands

static VkCommandBuffer begin(struct gpu *g)
{
    const VkCommandBufferAllocateInfo info = {.sType =
                                                  VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                              .commandPool = g->commands,
                                              .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                              .commandBufferCount = 1};
    const VkCommandBufferBeginInfo how = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    VkCommandBuffer c;
    check(g->vk.AllocateCommandBuffers(g->device, &info, &c), "vkAllocateCommandBuffers");
    check(g->vk.BeginCommandBuffer(c, &how), "vkBeginCommandBuffer");
    return c;
}

// A device that does not answer ends the program, as the engine gives it up.
static void submit(struct gpu *g, VkCommandBuffer c)
{
    const uint64_t done = 1;
    const VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                            .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    const VkSemaphoreCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO,
                                        .pNext = &type};
    const VkTimelineSemaphoreSubmitInfo timeline = {
        .sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
        .signalSemaphoreValueCount = 1,
        .pSignalSemaphoreValues = &done};
    VkSemaphore semaphore;
    check(g->vk.CreateSemaphore(g->device, &info, NULL, &semaphore), "vkCreateSemaphore");
    const VkSubmitInfo what = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                               .pNext = &timeline,
                               .commandBufferCount = 1,
                               .pCommandBuffers = &c,
                               .signalSemaphoreCount = 1,
                               .pSignalSemaphores = &semaphore};
    const VkSemaphoreWaitInfo wait = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                                      .semaphoreCount = 1,
                                      .pSemaphores = &semaphore,
                                      .pValues = &done};
    check(g->vk.QueueSubmit(g->queue, 1, &what, VK_NULL_HANDLE), "vkQueueSubmit");
    check(g->vk.WaitSemaphores(g->device, &wait, TIMEOUT_NS), "vkWaitSemaphores");
    g->vk.DestroySemaphore(g->device, semaphore, NULL);
}

double gpu_time(struct gpu *g, void (*fill)(struct gpu *g, VkCommandBuffer c, void *user),
                void *user, int runs)
{
    double best = 0;
    VkCommandBuffer c = begin(g);
    g->vk.CmdResetQueryPool(c, g->queries, 0, 2);
    g->vk.CmdWriteTimestamp(c, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, g->queries, 0);
    fill(g, c, user);
    g->vk.CmdWriteTimestamp(c, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, g->queries, 1);
    check(g->vk.EndCommandBuffer(c), "vkEndCommandBuffer");
    for (int i = 0; i <= runs; i++) { // the first compiles, on some drivers
        uint64_t tick[2] = {0};
        submit(g, c);
        check(g->vk.GetQueryPoolResults(g->device, g->queries, 0, 2, sizeof(tick), tick,
                                        sizeof(*tick), VK_QUERY_RESULT_64_BIT),
              "vkGetQueryPoolResults");
        double ticks = (double)((tick[1] - tick[0]) & g->tick_mask);
        double t = ticks * (double)g->properties.limits.timestampPeriod * 1e-9;
        best = i > 0 && (best == 0 || t < best) ? t : best;
    }
    g->vk.FreeCommandBuffers(g->device, g->commands, 1, &c);
    return best > 0 ? best : 1e-9;
}

// --- Buffers

static int memory_type(const struct gpu *g, uint32_t allowed, VkMemoryPropertyFlags flags)
{
    for (uint32_t i = 0; i < g->memory.memoryTypeCount; i++)
        if (allowed >> i & 1 && (g->memory.memoryTypes[i].propertyFlags & flags) == flags)
            return (int)i;
    return -1;
}

static void set_words(struct gpu *g, const struct gpu_buffer *b, uint32_t word)
{
    const VkMemoryBarrier written = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                     .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                                     .dstAccessMask =
                                         VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT};
    VkCommandBuffer c = begin(g);
    g->vk.CmdFillBuffer(c, b->buffer, 0, VK_WHOLE_SIZE, word);
    g->vk.CmdPipelineBarrier(c, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT,
                             0, 1, &written, 0, NULL, 0, NULL);
    check(g->vk.EndCommandBuffer(c), "vkEndCommandBuffer");
    submit(g, c);
    g->vk.FreeCommandBuffers(g->device, g->commands, 1, &c);
}

bool gpu_buffer_init(struct gpu *g, VkDeviceSize bytes, VkMemoryPropertyFlags flags, uint32_t word,
                     struct gpu_buffer *ret)
{
    const VkBufferCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
        .size = bytes,
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_UNIFORM_TEXEL_BUFFER_BIT |
                 VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT |
                 (g->has_address ? VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT : 0)};
    struct gpu_buffer b = {.bytes = bytes};
    VkMemoryRequirements need;
    check(g->vk.CreateBuffer(g->device, &info, NULL, &b.buffer), "vkCreateBuffer");
    g->vk.GetBufferMemoryRequirements(g->device, b.buffer, &need);
    const VkMemoryAllocateFlagsInfo address = {.sType =
                                                   VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                               .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
    int type = memory_type(g, need.memoryTypeBits, flags);
    const VkMemoryAllocateInfo memory = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                         .pNext = g->has_address ? &address : NULL,
                                         .allocationSize = need.size,
                                         .memoryTypeIndex = (uint32_t)type};
    if (type < 0 || g->vk.AllocateMemory(g->device, &memory, NULL, &b.memory) != VK_SUCCESS) {
        g->vk.DestroyBuffer(g->device, b.buffer, NULL);
        return false;
    }
    check(g->vk.BindBufferMemory(g->device, b.buffer, b.memory, 0), "vkBindBufferMemory");
    set_words(g, &b, word);
    *ret = b;
    return true;
}

void gpu_buffer_finish(struct gpu *g, struct gpu_buffer *b)
{
    g->vk.DestroyBuffer(g->device, b->buffer, NULL);
    g->vk.FreeMemory(g->device, b->memory, NULL);
    *b = (struct gpu_buffer){0};
}

VkDescriptorSet gpu_bind(struct gpu *g, const struct gpu_buffer *b, VkDeviceSize offset,
                         VkDeviceSize bytes, VkBufferView *ret_view)
{
    const VkDescriptorSetAllocateInfo info = {.sType =
                                                  VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                              .descriptorPool = g->sets,
                                              .descriptorSetCount = 1,
                                              .pSetLayouts = &g->set_layout};
    const VkBufferViewCreateInfo texels = {.sType = VK_STRUCTURE_TYPE_BUFFER_VIEW_CREATE_INFO,
                                           .buffer = b->buffer,
                                           .format = VK_FORMAT_R32G32B32A32_UINT,
                                           .offset = offset,
                                           .range = bytes};
    const VkDescriptorBufferInfo what = {b->buffer, offset, bytes};
    VkDescriptorSet set;
    check(g->vk.AllocateDescriptorSets(g->device, &info, &set), "vkAllocateDescriptorSets");
    check(g->vk.CreateBufferView(g->device, &texels, NULL, ret_view), "vkCreateBufferView");
    const VkWriteDescriptorSet write[] = {
        {.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
         .dstSet = set,
         .dstBinding = 0,
         .descriptorCount = 1,
         .descriptorType = VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER,
         .pTexelBufferView = ret_view},
        {.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
         .dstSet = set,
         .dstBinding = 1,
         .descriptorCount = 1,
         .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
         .pBufferInfo = &what}};
    g->vk.UpdateDescriptorSets(g->device, 2, write, 0, NULL);
    return set;
}

// --- Kernels

void gpu_kernel_init(struct gpu *g, const uint32_t *code, size_t bytes, const uint32_t *shape,
                     struct gpu_kernel *ret)
{
    static const VkSpecializationMapEntry entry[] = {
        {CONST_FRAGMENT_M, 0, 4}, {CONST_FRAGMENT_N, 4, 4}, {CONST_FRAGMENT_K, 8, 4}};
    const VkSpecializationInfo special = {3, entry, 12, shape};
    const VkShaderModuleCreateInfo module = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = bytes, .pCode = code};
    check(g->vk.CreateShaderModule(g->device, &module, NULL, &ret->module), "vkCreateShaderModule");
    const VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = ret->module,
                  .pName = "main",
                  .pSpecializationInfo = shape ? &special : NULL},
        .layout = g->layout};
    check(g->vk.CreateComputePipelines(g->device, VK_NULL_HANDLE, 1, &info, NULL, &ret->pipeline),
          "vkCreateComputePipelines");
}

void gpu_kernel_finish(struct gpu *g, struct gpu_kernel *k)
{
    g->vk.DestroyPipeline(g->device, k->pipeline, NULL);
    g->vk.DestroyShaderModule(g->device, k->module, NULL);
}
