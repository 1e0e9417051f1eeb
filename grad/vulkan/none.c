// Builds without Vulkan (-Dvulkan=false): there are no such devices, so nobody has one to train on.
#include <errno.h>

#include "grad/room.h"

int nb_grad_vulkan_open(struct nb_grad *g, struct nb_device *device, struct nb_error *error)
{
    return nb_fail(error, -ENOTSUP, "this build has no Vulkan (-Dvulkan=false)");
}
