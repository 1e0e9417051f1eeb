// Opens the loader at run time, and turns results into errnos.
#include "engine/vulkan/api.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

#include "tensor/fail.h"

int nb_vk_errno(VkResult result)
{
    switch (result) {
    case VK_SUCCESS:
        return 0;
    case VK_ERROR_OUT_OF_HOST_MEMORY:
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
    case VK_ERROR_OUT_OF_POOL_MEMORY:
        return -ENOMEM;
    case VK_ERROR_DEVICE_LOST:
    case VK_ERROR_INCOMPATIBLE_DRIVER:
        return -ENODEV;
    default:
        return -EIO;
    }
}

static int make_instance(struct nb_vk *vk)
{
    const VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                   .pApplicationName = "nibble",
                                   .apiVersion = VK_API_VERSION_1_2};
    const VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                       .pApplicationInfo = &app};
    int missing = 0;
#define LOAD(name) missing |= !(vk->name = (PFN_vk##name)vk->get(vk->instance, "vk" #name));
    NB_VK_GLOBAL(LOAD)
    if (missing)
        return -EIO;
    VkResult result = vk->CreateInstance(&info, NULL, &vk->instance);
    if (result != VK_SUCCESS)
        return nb_vk_errno(result);
    NB_VK_INSTANCE(LOAD)
#undef LOAD
    return missing ? -EIO : 0;
}

// Mesa's CPU driver takes vectors of 256 bits unless it is told that the CPU has wider ones.
static void widen_vectors(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        setenv("LP_NATIVE_VECTOR_WIDTH", "512", 0);
#endif
}

int nb_vk_open(struct nb_vk *vk, struct nb_error *ret_error)
{
    widen_vectors();
    *vk = (struct nb_vk){.library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL)};
    if (!vk->library)
        return nb_fail(ret_error, -ENODEV,
                       "no Vulkan on this machine: the loader, libvulkan.so.1, cannot be opened");
    vk->get = (PFN_vkGetInstanceProcAddr)dlsym(vk->library, "vkGetInstanceProcAddr");
    int rc = vk->get ? make_instance(vk) : -EIO;
    if (rc < 0) {
        nb_vk_close(vk);
        return nb_fail(ret_error, rc,
                       rc == -ENODEV
                           ? "no Vulkan driver on this machine: install the one of its GPU, or "
                             "mesa-vulkan-drivers"
                           : "the Vulkan loader on this machine cannot make an instance");
    }
    return 0;
}

int nb_vk_load_device(struct nb_vk *vk, VkDevice device)
{
    int missing = 0;
#define LOAD(name) missing |= !(vk->name = (PFN_vk##name)vk->GetDeviceProcAddr(device, "vk" #name));
    NB_VK_DEVICE(LOAD)
#undef LOAD
#define LOAD(name) vk->name = (PFN_vk##name)vk->GetDeviceProcAddr(device, "vk" #name);
    NB_VK_OPTIONAL(LOAD)
#undef LOAD
    return missing ? -EIO : 0;
}

void nb_vk_close(struct nb_vk *vk)
{
    if (vk->instance && vk->DestroyInstance)
        vk->DestroyInstance(vk->instance, NULL);
    if (vk->library)
        dlclose(vk->library);
    *vk = (struct nb_vk){0};
}
