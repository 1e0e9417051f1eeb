// Buffers: one allocation for each, because a model needs few.
#include <errno.h>
#include <sys/mman.h>

#include "engine/vulkan/device.h"

// The first type with `want`, preferring one that has `best` as well; -1 when there is none.
static int memory_type(const struct nb_vulkan_device *d, uint32_t allowed,
                       VkMemoryPropertyFlags want, VkMemoryPropertyFlags best)
{
    // Others need features of their own, or are protected.
    const VkMemoryPropertyFlags plain =
        VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT | VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
        VK_MEMORY_PROPERTY_HOST_COHERENT_BIT | VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < d->memory.memoryTypeCount; i++) {
            VkMemoryPropertyFlags flags = pass ? want : want | best,
                                  has = d->memory.memoryTypes[i].propertyFlags;
            if (allowed >> i & 1 && (has & flags) == flags && !(has & ~plain))
                return (int)i;
        }
    return -1;
}

static int make_buffer(struct nb_vulkan_device *d, VkDeviceSize bytes, const void *next,
                       VkBuffer *ret)
{
    // Shared between two families, or one's alone.
    const bool shared = d->copies != &d->compute;
    const uint32_t family[] = {d->compute.family, d->copies->family};
    const VkBufferCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
        .pNext = next,
        .size = bytes,
        .sharingMode = shared ? VK_SHARING_MODE_CONCURRENT : VK_SHARING_MODE_EXCLUSIVE,
        .queueFamilyIndexCount = shared ? 2 : 0,
        .pQueueFamilyIndices = family,
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_UNIFORM_TEXEL_BUFFER_BIT |
                 VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                 VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    return nb_vk_errno(d->vk.CreateBuffer(d->device, &info, NULL, ret));
}

static void take(struct nb_vulkan_device *d, struct nb_vulkan_buffer *b, uint64_t bytes)
{
    b->taken = bytes;
    d->taken += bytes;
}

// What is imported (with pNext) is not taken from the device.
static int bind(struct nb_vulkan_device *d, struct nb_vulkan_buffer *b,
                const VkMemoryAllocateInfo *info)
{
    int rc = nb_vk_errno(d->vk.AllocateMemory(d->device, info, NULL, &b->memory));
    if (rc == 0 && !info->pNext &&
        d->memory.memoryTypes[info->memoryTypeIndex].heapIndex == d->heap)
        take(d, b, info->allocationSize);
    return rc < 0 ? rc : nb_vk_errno(d->vk.BindBufferMemory(d->device, b->buffer, b->memory, 0));
}

static int init_in(struct nb_vulkan_device *d, VkDeviceSize bytes, VkMemoryPropertyFlags want,
                   VkMemoryPropertyFlags best, struct nb_vulkan_buffer *ret)
{
    struct nb_vulkan_buffer b = {.bytes = bytes};
    int rc = bytes > d->max_allocation ? -ENOMEM : make_buffer(d, bytes, NULL, &b.buffer);
    if (rc < 0)
        return rc;
    VkMemoryRequirements need;
    d->vk.GetBufferMemoryRequirements(d->device, b.buffer, &need);
    int type = memory_type(d, need.memoryTypeBits, want, best);
    const VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                       .allocationSize = need.size,
                                       .memoryTypeIndex = (uint32_t)type};
    rc = type < 0 ? -ENOMEM : bind(d, &b, &info);
    if (rc == 0 && want & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT)
        rc = nb_vk_errno(d->vk.MapMemory(d->device, b.memory, 0, VK_WHOLE_SIZE, 0, &b.map));
    if (rc < 0)
        nb_vulkan_buffer_finish(d, &b);
    else
        *ret = b;
    return rc;
}

int nb_vulkan_buffer_init(struct nb_vulkan_device *d, VkDeviceSize bytes,
                          enum nb_vulkan_memory where, struct nb_vulkan_buffer *ret)
{
    const VkMemoryPropertyFlags own = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
                                cached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT,
                                host = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
                                       VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    if (where == NB_VULKAN_DEVICE)
        return init_in(d, bytes, 0, own, ret);
    // The window through which the host sees the device's own memory may be small, and full.
    if (where == NB_VULKAN_TOLD && init_in(d, bytes, host | own, 0, ret) == 0)
        return 0;
    return init_in(d, bytes, host, cached, ret);
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

int nb_vulkan_buffer_lazy(struct nb_vulkan_device *d, VkDeviceSize bytes,
                          struct nb_vulkan_buffer *ret)
{
    if (!d->info.is_cpu || !d->can_import)
        return nb_vulkan_buffer_init(d, bytes, NB_VULKAN_DEVICE, ret);
    bytes = (bytes + d->import_alignment - 1) / d->import_alignment * d->import_alignment;
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED)
        return -errno;
    int rc = nb_vulkan_buffer_import(d, pages, bytes, ret);
    if (rc < 0)
        munmap(pages, bytes);
    if (rc < 0)
        return rc;
    ret->pages = pages;
    take(d, ret, bytes);
    return 0;
}

void nb_vulkan_buffer_finish(struct nb_vulkan_device *d, struct nb_vulkan_buffer *b)
{
    if (b->buffer)
        d->vk.DestroyBuffer(d->device, b->buffer, NULL);
    if (b->memory)
        d->vk.FreeMemory(d->device, b->memory, NULL);
    d->taken -= b->taken;
    if (b->pages)
        munmap(b->pages, b->bytes);
    *b = (struct nb_vulkan_buffer){0};
}
