// Which Vulkan devices there are, and whether the engine can use them: asked of the drivers without
// making a device.
#include "engine/vulkan/list.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "engine/vulkan/device.h"
#include "tensor/fail.h"

#define MAX_EXTENSIONS 512
#define MAX_FAMILIES   16
#define PROBE_BYTES    4096

bool nb_vulkan_has_extension(const struct nb_vk *vk, VkPhysicalDevice p, const char *name)
{
    uint32_t n = MAX_EXTENSIONS;
    VkExtensionProperties *e = calloc(n, sizeof(*e));
    bool found = false;
    if (e)
        vk->EnumerateDeviceExtensionProperties(p, NULL, &n, e);
    for (uint32_t i = 0; e && i < n && !found; i++)
        found = !strcmp(e[i].extensionName, name);
    free(e);
    return found;
}

// Steps beside a desktop's drawing share no queue with it where there is one that only computes.
int nb_vulkan_choose_queues(const VkQueueFamilyProperties *q, uint32_t n, uint32_t *ret_compute,
                            uint32_t *ret_transfer)
{
    const VkQueueFlags both = VK_QUEUE_COMPUTE_BIT | VK_QUEUE_GRAPHICS_BIT;
    uint32_t alone = n, drawing = n, transfer = n;
    for (uint32_t i = n; i-- > 0;) {
        if (q[i].queueFlags & VK_QUEUE_COMPUTE_BIT && q[i].timestampValidBits)
            *(q[i].queueFlags & VK_QUEUE_GRAPHICS_BIT ? &drawing : &alone) = i;
        if (q[i].queueFlags & VK_QUEUE_TRANSFER_BIT && !(q[i].queueFlags & both))
            transfer = i;
    }
    uint32_t compute = alone < n ? alone : drawing;
    if (compute >= n)
        return -ENOTSUP;
    *ret_compute = compute;
    *ret_transfer = transfer < n ? transfer : compute;
    return 0;
}

int nb_vulkan_find_queues(const struct nb_vk *vk, VkPhysicalDevice p, uint32_t *ret_compute,
                          uint32_t *ret_transfer, uint32_t *ret_timestamp_bits)
{
    VkQueueFamilyProperties q[MAX_FAMILIES];
    uint32_t n = 0;
    vk->GetPhysicalDeviceQueueFamilyProperties(p, &n, NULL);
    n = n < MAX_FAMILIES ? n : MAX_FAMILIES;
    vk->GetPhysicalDeviceQueueFamilyProperties(p, &n, q);
    int rc = nb_vulkan_choose_queues(q, n, ret_compute, ret_transfer);
    if (rc == 0)
        *ret_timestamp_bits = q[*ret_compute].timestampValidBits;
    return rc;
}

// The bindings of device.c's set, all of one stage: what is read as texels counts as sampled
// images.
const char *nb_vulkan_lacking(const VkPhysicalDeviceLimits *l)
{
    uint32_t texels = 0, buffers = 0;
    for (uint32_t i = 0; i < BINDINGS; i++)
        if (nb_vulkan_descriptor(i) == VK_DESCRIPTOR_TYPE_STORAGE_BUFFER)
            buffers++;
        else
            texels++;
    if (l->maxPerStageDescriptorStorageBuffers < buffers ||
        l->maxDescriptorSetStorageBuffers < buffers)
        return "it binds fewer storage buffers to a shader than our five";
    if (l->maxPerStageDescriptorSampledImages < texels || l->maxDescriptorSetSampledImages < texels)
        return "it binds fewer texel buffers to a shader than our five";
    if (l->maxPerStageResources < texels + buffers || l->maxPushConstantsSize < PUSH_BYTES)
        return "it gives a shader fewer than 10 resources or 128 bytes of constants";
    return "";
}

uint32_t nb_vulkan_own_heap(const VkPhysicalDeviceMemoryProperties *m)
{
    uint32_t own = 0;
    uint64_t most = 0;
    for (uint32_t i = 0; i < m->memoryHeapCount; i++)
        if (m->memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT &&
            m->memoryHeaps[i].size > most) {
            own = i;
            most = m->memoryHeaps[i].size;
        }
    return own;
}

// Whether memory that was written may become code, as a driver needs that compiles for the CPU.
static bool code_can_be_made(void)
{
    void *p = mmap(NULL, PROBE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return false;
    bool can = mprotect(p, PROBE_BYTES, PROT_READ | PROT_EXEC) == 0;
    munmap(p, PROBE_BYTES);
    return can;
}

// Why the engine cannot use the device, or nothing.
static void find_fault(const struct nb_vk *vk, VkPhysicalDevice p,
                       const VkPhysicalDeviceProperties *properties,
                       struct nb_vulkan_device_info *ret)
{
    uint32_t family[2], bits;
    const char *fault = nb_vulkan_lacking(&properties->limits);
    if (properties->apiVersion < VK_API_VERSION_1_2)
        fault = "its driver is older than Vulkan 1.2: update it";
    else if (nb_vulkan_find_queues(vk, p, &family[0], &family[1], &bits) < 0)
        fault = "it has no queue that computes and keeps time";
    else if (ret->is_cpu && !code_can_be_made())
        // Its driver does not look whether it may, and crashes at its first shader.
        fault = "a Vulkan device on the CPU makes code as it runs, which this process may not: run "
                "without MemoryDenyWriteExecute= (PR_SET_MDWE), or use the device cpu";
    snprintf(ret->fault, sizeof(ret->fault), "%s", fault);
}

// Where the device is on the machine, as far as the driver says.
static void locate(const struct nb_vk *vk, VkPhysicalDevice p, struct nb_vulkan_device_info *ret)
{
    VkPhysicalDeviceDrmPropertiesEXT drm = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRM_PROPERTIES_EXT};
    VkPhysicalDevicePCIBusInfoPropertiesEXT pci = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PCI_BUS_INFO_PROPERTIES_EXT};
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
    bool has_drm = nb_vulkan_has_extension(vk, p, VK_EXT_PHYSICAL_DEVICE_DRM_EXTENSION_NAME);
    bool has_pci = nb_vulkan_has_extension(vk, p, VK_EXT_PCI_BUS_INFO_EXTENSION_NAME);
    if (has_drm)
        p2.pNext = &drm;
    if (has_pci) {
        pci.pNext = p2.pNext;
        p2.pNext = &pci;
    }
    vk->GetPhysicalDeviceProperties2(p, &p2);
    if (drm.hasRender) {
        ret->drm_major = (uint32_t)drm.renderMajor;
        ret->drm_minor = (uint32_t)drm.renderMinor;
    }
    if (has_pci)
        snprintf(ret->pci, sizeof(ret->pci), "%04x:%02x:%02x.%x", pci.pciDomain & 0xffff,
                 pci.pciBus & 0xff, pci.pciDevice & 0xff, pci.pciFunction & 0xf);
}

void nb_vulkan_describe(const struct nb_vk *vk, VkPhysicalDevice p,
                        struct nb_vulkan_device_info *ret)
{
    VkPhysicalDeviceDriverProperties driver = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
    VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES,
                                       .pNext = &driver};
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                      .pNext = &id};
    VkPhysicalDeviceMemoryProperties memory;
    struct nb_tier_facts facts;
    nb_tier_read(vk, p, &facts);
    vk->GetPhysicalDeviceProperties2(p, &p2);
    vk->GetPhysicalDeviceMemoryProperties(p, &memory);
    VkPhysicalDeviceType type = p2.properties.deviceType;
    *ret = (struct nb_vulkan_device_info){
        .is_cpu = type == VK_PHYSICAL_DEVICE_TYPE_CPU,
        .unified =
            type == VK_PHYSICAL_DEVICE_TYPE_CPU || type == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU,
        .writes_imports = p2.properties.vendorID == NB_VENDOR_INTEL,
        .memory = memory.memoryHeaps[nb_vulkan_own_heap(&memory)].size,
        .max_window = p2.properties.limits.maxStorageBufferRange,
        .tier = nb_tier_best(&facts)->name};
    snprintf(ret->name, sizeof(ret->name), "%s", p2.properties.deviceName);
    snprintf(ret->driver, sizeof(ret->driver), "%.120s %.120s", driver.driverName,
             driver.driverInfo);
    memcpy(ret->uuid, id.deviceUUID, sizeof(ret->uuid));
    locate(vk, p, ret);
    find_fault(vk, p, &p2.properties, ret);
}

// Of the leak sanitizer, where the program has one. A driver keeps some memory for good (Mesa's CPU
// driver does), which looks lost once the loader has unloaded the driver.
__attribute__((weak)) void __lsan_disable(void);
__attribute__((weak)) void __lsan_enable(void);

int nb_vulkan_list(const struct nb_vk *vk, VkPhysicalDevice p[NB_VULKAN_DEVICES], uint32_t *ret_n,
                   struct nb_error *error)
{
    *ret_n = NB_VULKAN_DEVICES;
    if (__lsan_disable)
        __lsan_disable();
    VkResult r = vk->EnumeratePhysicalDevices(vk->instance, ret_n, p);
    if (__lsan_enable)
        __lsan_enable();
    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        return nb_fail(error, nb_vk_errno(r), "Vulkan cannot list its devices (%d)", (int)r);
    return 0;
}

int nb_vulkan_enumerate(struct nb_vulkan_device_info *ret, uint32_t max, struct nb_error *ret_error)
{
    struct nb_vk vk;
    VkPhysicalDevice p[NB_VULKAN_DEVICES];
    uint32_t n;
    int rc = nb_vk_open(&vk, ret_error);
    if (rc < 0)
        return rc;
    rc = nb_vulkan_list(&vk, p, &n, ret_error);
    for (uint32_t i = 0; rc == 0 && i < n && i < max; i++)
        nb_vulkan_describe(&vk, p[i], &ret[i]);
    nb_vk_close(&vk);
    return rc < 0 ? rc : (int)n;
}

void nb_vulkan_device_show(const struct nb_vulkan_device_info *info, uint32_t index,
                           struct nb_device_info *ret)
{
    *ret = (struct nb_device_info){.kind = info->is_cpu ? NB_DEVICE_EMULATED : NB_DEVICE_GPU,
                                   .drm_major = info->drm_major,
                                   .drm_minor = info->drm_minor,
                                   .has_uuid = true,
                                   .memory_bytes = info->memory};
    snprintf(ret->name, sizeof(ret->name), "vulkan%u", index);
    snprintf(ret->description, sizeof(ret->description), "%.127s", info->name);
    snprintf(ret->driver, sizeof(ret->driver), "%.95s", info->driver);
    snprintf(ret->isa, sizeof(ret->isa), "%s", info->tier);
    snprintf(ret->pci, sizeof(ret->pci), "%s", info->pci);
    snprintf(ret->fault, sizeof(ret->fault), "%s", info->fault);
    memcpy(ret->uuid, info->uuid, sizeof(ret->uuid));
}

int nb_vulkan_device_list(void (*found)(void *user, const struct nb_device_info *info), void *user,
                          struct nb_error *ret_error)
{
    struct nb_vulkan_device_info vulkan[NB_VULKAN_DEVICES] = {0};
    int n = nb_vulkan_enumerate(vulkan, NB_VULKAN_DEVICES, ret_error);
    for (int i = 0; i < n && i < NB_VULKAN_DEVICES; i++) {
        struct nb_device_info info;
        nb_vulkan_device_show(&vulkan[i], (uint32_t)i, &info);
        found(user, &info);
    }
    return n < 0 ? n : 0;
}
