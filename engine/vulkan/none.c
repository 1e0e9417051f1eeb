// Builds without Vulkan (-Dvulkan=false): there are no such devices, and asking for one says so.
#include "engine/vulkan/vulkan.h"

#include <errno.h>

#include "tensor/fail.h"

int nb_vulkan_enumerate(struct nb_vulkan_device_info *ret, uint32_t max, struct nb_error *ret_error)
{
    return nb_fail(ret_error, -ENODEV, "this build has no Vulkan (-Dvulkan=false)");
}

int nb_vulkan_device_list(void (*found)(void *user, const struct nb_device_info *info), void *user,
                          struct nb_error *ret_error)
{
    return nb_fail(ret_error, -ENODEV, "this build has no Vulkan (-Dvulkan=false)");
}

int nb_vulkan_device_create(uint32_t index, const struct nb_device_options *options,
                            struct nb_device **ret, struct nb_error *ret_error)
{
    return nb_fail(ret_error, -ENODEV, "this build has no Vulkan (-Dvulkan=false)");
}
