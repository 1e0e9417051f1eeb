// Buffers and submissions: one allocation for each buffer, because a model needs few.
#include <errno.h>
#include <string.h>

#include "engine/vulkan/device.h"

#define UPLOAD_BYTES (16u << 20)

// The first type with `want`, preferring one that has `best` as well; -1 when there is none.
static int memory_type(const struct nb_vulkan_device *d, uint32_t allowed,
                       VkMemoryPropertyFlags want, VkMemoryPropertyFlags best)
{
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < d->memory.memoryTypeCount; i++) {
            VkMemoryPropertyFlags flags = pass ? want : want | best;
            if (allowed >> i & 1 && (d->memory.memoryTypes[i].propertyFlags & flags) == flags)
                return (int)i;
        }
    return -1;
}

static int make_buffer(struct nb_vulkan_device *d, VkDeviceSize bytes, const void *next,
                       VkBuffer *ret)
{
    const VkBufferCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
        .pNext = next,
        .size = bytes,
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_UNIFORM_TEXEL_BUFFER_BIT |
                 VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    return nb_vk_errno(d->vk.CreateBuffer(d->device, &info, NULL, ret));
}

static int bind(struct nb_vulkan_device *d, struct nb_vulkan_buffer *b,
                const VkMemoryAllocateInfo *info)
{
    int rc = nb_vk_errno(d->vk.AllocateMemory(d->device, info, NULL, &b->memory));
    return rc < 0 ? rc : nb_vk_errno(d->vk.BindBufferMemory(d->device, b->buffer, b->memory, 0));
}

int nb_vulkan_buffer_init(struct nb_vulkan_device *d, VkDeviceSize bytes,
                          enum nb_vulkan_memory where, struct nb_vulkan_buffer *ret)
{
    struct nb_vulkan_buffer b = {.bytes = bytes};
    int rc = bytes > d->max_allocation ? -ENOMEM : make_buffer(d, bytes, NULL, &b.buffer);
    if (rc < 0)
        return rc;
    const VkMemoryPropertyFlags host =
        VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    VkMemoryRequirements need;
    d->vk.GetBufferMemoryRequirements(d->device, b.buffer, &need);
    int type = memory_type(d, need.memoryTypeBits, where == NB_VULKAN_HOST ? host : 0,
                           where == NB_VULKAN_HOST ? VK_MEMORY_PROPERTY_HOST_CACHED_BIT
                                                   : VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT);
    const VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                       .allocationSize = need.size,
                                       .memoryTypeIndex = (uint32_t)type};
    rc = type < 0 ? -ENOMEM : bind(d, &b, &info);
    if (rc == 0 && where == NB_VULKAN_HOST)
        rc = nb_vk_errno(d->vk.MapMemory(d->device, b.memory, 0, VK_WHOLE_SIZE, 0, &b.map));
    if (rc < 0)
        nb_vulkan_buffer_finish(d, &b);
    else
        *ret = b;
    return rc;
}

int nb_vulkan_buffer_import(struct nb_vulkan_device *d, void *host, VkDeviceSize bytes,
                            struct nb_vulkan_buffer *ret)
{
    const VkExternalMemoryHandleTypeFlagBits kind =
        VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT;
    VkMemoryHostPointerPropertiesEXT properties = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_HOST_POINTER_PROPERTIES_EXT};
    if (!d->can_import || bytes > d->max_allocation)
        return -ENOTSUP;
    if (d->vk.GetMemoryHostPointerPropertiesEXT(d->device, kind, host, &properties) != VK_SUCCESS)
        return -ENOTSUP;
    const VkExternalMemoryBufferCreateInfo external = {
        .sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO, .handleTypes = kind};
    struct nb_vulkan_buffer b = {.bytes = bytes};
    int rc = make_buffer(d, bytes, &external, &b.buffer);
    if (rc < 0)
        return rc;
    VkMemoryRequirements need;
    d->vk.GetBufferMemoryRequirements(d->device, b.buffer, &need);
    int type = memory_type(d, need.memoryTypeBits & properties.memoryTypeBits, 0,
                           VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT);
    const VkImportMemoryHostPointerInfoEXT import = {
        .sType = VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT,
        .handleType = kind,
        .pHostPointer = host};
    const VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                       .pNext = &import,
                                       .allocationSize = bytes,
                                       .memoryTypeIndex = (uint32_t)type};
    rc = type < 0 || need.size > bytes ? -ENOTSUP : bind(d, &b, &info);
    if (rc < 0)
        nb_vulkan_buffer_finish(d, &b);
    else
        *ret = b;
    return rc;
}

int nb_vulkan_buffer_upload(struct nb_vulkan_device *d, const struct nb_vulkan_buffer *to,
                            const void *from, VkDeviceSize bytes)
{
    struct nb_vulkan_buffer staging = {0};
    int rc = nb_vulkan_buffer_init(d, UPLOAD_BYTES, NB_VULKAN_HOST, &staging);
    for (VkDeviceSize at = 0; at < bytes && rc == 0; at += UPLOAD_BYTES) {
        VkDeviceSize n = bytes - at < UPLOAD_BYTES ? bytes - at : UPLOAD_BYTES;
        memcpy(staging.map, (const uint8_t *)from + at, n);
        VkCommandBuffer c;
        rc = nb_vulkan_begin(d, true, &c);
        if (rc < 0)
            break;
        d->vk.CmdCopyBuffer(c, staging.buffer, to->buffer, 1, &(VkBufferCopy){0, at, n});
        rc = nb_vulkan_run_once(d, c);
    }
    nb_vulkan_buffer_finish(d, &staging);
    return rc;
}

void nb_vulkan_buffer_finish(struct nb_vulkan_device *d, struct nb_vulkan_buffer *b)
{
    if (b->buffer)
        d->vk.DestroyBuffer(d->device, b->buffer, NULL);
    if (b->memory)
        d->vk.FreeMemory(d->device, b->memory, NULL);
    *b = (struct nb_vulkan_buffer){0};
}

int nb_vulkan_begin(struct nb_vulkan_device *d, bool once, VkCommandBuffer *ret)
{
    const VkCommandBufferAllocateInfo info = {.sType =
                                                  VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                              .commandPool = d->commands,
                                              .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                              .commandBufferCount = 1};
    VkCommandBuffer c;
    int rc = nb_vk_errno(d->vk.AllocateCommandBuffers(d->device, &info, &c));
    if (rc < 0)
        return rc;
    const VkCommandBufferBeginInfo begin = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
        .flags = once ? VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT : 0};
    rc = nb_vk_errno(d->vk.BeginCommandBuffer(c, &begin));
    if (rc < 0)
        d->vk.FreeCommandBuffers(d->device, d->commands, 1, &c);
    else
        *ret = c;
    return rc;
}

int nb_vulkan_run(struct nb_vulkan_device *d, uint32_t n, const VkCommandBuffer *commands)
{
    const VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                                 .commandBufferCount = n,
                                 .pCommandBuffers = commands};
    VkResult r = d->vk.QueueSubmit(d->queue, 1, &submit, d->fence);
    if (r == VK_SUCCESS)
        r = d->vk.WaitForFences(d->device, 1, &d->fence, VK_TRUE, UINT64_MAX);
    if (r == VK_SUCCESS)
        r = d->vk.ResetFences(d->device, 1, &d->fence);
    return nb_vk_errno(r);
}

int nb_vulkan_run_once(struct nb_vulkan_device *d, VkCommandBuffer commands)
{
    int rc = nb_vk_errno(d->vk.EndCommandBuffer(commands));
    if (rc == 0)
        rc = nb_vulkan_run(d, 1, &commands);
    d->vk.FreeCommandBuffers(d->device, d->commands, 1, &commands);
    return rc;
}
