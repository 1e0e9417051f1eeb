// A Vulkan loader that goes wrong by order: it stands before the real one (found by
// LD_LIBRARY_PATH, which it names in turn by NIBBLE_TEST_VULKAN) and passes everything on, but for
// the calls that a lost, hung or full device fails in. The orders lie in a file that
// NIBBLE_TEST_FAULTS names, mapped before the worker shuts itself in, so that a test can give one
// at any time and the next worker finds what is left of it.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

enum fault { NONE, LOST, HANG, FULL };
enum place { SUBMIT, WAIT, ALLOCATE, COPY, PLACES };

// tests/service/test_device_loss.py has the same. The fault comes at the countdown's last call of
// the place; `again` starts the countdown anew.
struct orders {
    _Atomic uint32_t fault, place, countdown, again, no_import;
    _Atomic uint32_t seen[PLACES];
};
static struct orders none, *orders = &none;
static _Atomic bool lost, hung;

static PFN_vkGetInstanceProcAddr real_instance;
static PFN_vkGetDeviceProcAddr real_device;
static PFN_vkEnumerateDeviceExtensionProperties real_extensions;
static PFN_vkQueueSubmit real_submit;
static PFN_vkWaitSemaphores real_wait;
static PFN_vkAllocateMemory real_allocate;
static PFN_vkCmdCopyBuffer real_copy;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("NIBBLE_TEST_FAULTS"), *loader = getenv("NIBBLE_TEST_VULKAN");
    void *library = loader ? dlopen(loader, RTLD_NOW | RTLD_LOCAL) : NULL;
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *map = fd < 0 ? MAP_FAILED
                       : mmap(NULL, sizeof(*orders), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (!library || map == MAP_FAILED) {
        fprintf(stderr, "faults: no real loader or no orders\n");
        abort();
    }
    close(fd);
    orders = map;
    real_instance = (PFN_vkGetInstanceProcAddr)dlsym(library, "vkGetInstanceProcAddr");
}

// Counts a call of the place. The fault that is due there, or NONE.
static enum fault due(enum place place)
{
    orders->seen[place]++;
    if (orders->place != place)
        return NONE;
    uint32_t left = orders->countdown;
    while (left && !atomic_compare_exchange_weak(&orders->countdown, &left, left - 1))
        ;
    if (left != 1)
        return NONE;
    orders->countdown = orders->again;
    return orders->fault;
}

static VkResult meet(enum place place)
{
    enum fault fault = due(place);
    lost = lost || fault == LOST;
    hung = hung || fault == HANG;
    return lost ? VK_ERROR_DEVICE_LOST : fault == FULL ? VK_ERROR_OUT_OF_DEVICE_MEMORY : VK_SUCCESS;
}

static VkResult VKAPI_CALL submit(VkQueue queue, uint32_t n, const VkSubmitInfo *info,
                                  VkFence fence)
{
    VkResult r = meet(SUBMIT);
    if (r != VK_SUCCESS)
        return r;
    return hung ? VK_SUCCESS : real_submit(queue, n, info, fence);
}

static VkResult VKAPI_CALL wait_semaphores(VkDevice device, const VkSemaphoreWaitInfo *info,
                                           uint64_t timeout)
{
    VkResult r = meet(WAIT);
    if (r != VK_SUCCESS)
        return r;
    if (!hung)
        return real_wait(device, info, timeout);
    usleep((useconds_t)(timeout / 1000));
    return VK_TIMEOUT;
}

static VkResult VKAPI_CALL allocate(VkDevice device, const VkMemoryAllocateInfo *info,
                                    const VkAllocationCallbacks *callbacks, VkDeviceMemory *ret)
{
    VkResult r = meet(ALLOCATE);
    return r != VK_SUCCESS ? r : real_allocate(device, info, callbacks, ret);
}

// It cannot fail itself; what is submitted next does.
static void VKAPI_CALL copy(VkCommandBuffer commands, VkBuffer from, VkBuffer to, uint32_t n,
                            const VkBufferCopy *regions)
{
    (void)meet(COPY);
    real_copy(commands, from, to, n, regions);
}

static VkResult VKAPI_CALL extensions(VkPhysicalDevice device, const char *layer, uint32_t *n,
                                      VkExtensionProperties *ret)
{
    VkResult r = real_extensions(device, layer, n, ret);
    for (uint32_t i = 0; ret && orders->no_import && i < *n; i++)
        if (!strcmp(ret[i].extensionName, VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME))
            strcpy(ret[i].extensionName, "VK_none");
    return r;
}

static PFN_vkVoidFunction VKAPI_CALL get_device(VkDevice device, const char *name);

static const struct {
    const char *name;
    PFN_vkVoidFunction ours, *real;
} wrapped[] = {
#define WRAP(name, ours, real)                                                                     \
    {                                                                                              \
        name, (PFN_vkVoidFunction)(ours), (PFN_vkVoidFunction *)&(real)                            \
    }
    WRAP("vkGetDeviceProcAddr", get_device, real_device),
    WRAP("vkEnumerateDeviceExtensionProperties", extensions, real_extensions),
    WRAP("vkQueueSubmit", submit, real_submit),
    WRAP("vkWaitSemaphores", wait_semaphores, real_wait),
    WRAP("vkAllocateMemory", allocate, real_allocate),
    WRAP("vkCmdCopyBuffer", copy, real_copy),
#undef WRAP
};

static PFN_vkVoidFunction wrap(const char *name, PFN_vkVoidFunction real)
{
    for (size_t i = 0; i < sizeof(wrapped) / sizeof(*wrapped) && real; i++)
        if (!strcmp(name, wrapped[i].name)) {
            *wrapped[i].real = real;
            return wrapped[i].ours;
        }
    return real;
}

static PFN_vkVoidFunction VKAPI_CALL get_device(VkDevice device, const char *name)
{
    return wrap(name, real_device(device, name));
}

__attribute__((visibility("default"))) PFN_vkVoidFunction VKAPI_CALL
vkGetInstanceProcAddr(VkInstance instance, const char *name);

PFN_vkVoidFunction VKAPI_CALL vkGetInstanceProcAddr(VkInstance instance, const char *name)
{
    return wrap(name, real_instance(instance, name));
}
