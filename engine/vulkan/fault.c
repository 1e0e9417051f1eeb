// What a device failed with, in words: its cause is kept once, for whoever asks after a negative
// errno.
#include "engine/plan.h"
#include "engine/vulkan/device.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *nb_vk_result_name(VkResult result)
{
    static const struct {
        VkResult result;
        const char *name;
    } names[] = {
        {VK_TIMEOUT, "VK_TIMEOUT"},
        {VK_ERROR_OUT_OF_HOST_MEMORY, "VK_ERROR_OUT_OF_HOST_MEMORY"},
        {VK_ERROR_OUT_OF_DEVICE_MEMORY, "VK_ERROR_OUT_OF_DEVICE_MEMORY"},
        {VK_ERROR_INITIALIZATION_FAILED, "VK_ERROR_INITIALIZATION_FAILED"},
        {VK_ERROR_DEVICE_LOST, "VK_ERROR_DEVICE_LOST"},
        {VK_ERROR_MEMORY_MAP_FAILED, "VK_ERROR_MEMORY_MAP_FAILED"},
        {VK_ERROR_TOO_MANY_OBJECTS, "VK_ERROR_TOO_MANY_OBJECTS"},
        {VK_ERROR_UNKNOWN, "VK_ERROR_UNKNOWN"},
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (names[i].result == result)
            return names[i].name;
    return "a VkResult that is no success";
}

// What the driver says of the loss, where it has VK_EXT_device_fault.
static void add_drivers_words(struct nb_vulkan_device *d, size_t at)
{
    VkDeviceFaultCountsEXT counts = {.sType = VK_STRUCTURE_TYPE_DEVICE_FAULT_COUNTS_EXT};
    VkDeviceFaultInfoEXT info = {.sType = VK_STRUCTURE_TYPE_DEVICE_FAULT_INFO_EXT};
    if (!d->vk.GetDeviceFaultInfoEXT || at >= sizeof(d->fault))
        return;
    VkResult r = d->vk.GetDeviceFaultInfoEXT(d->device, &counts, &info);
    if ((r == VK_SUCCESS || r == VK_INCOMPLETE) && info.description[0])
        snprintf(d->fault + at, sizeof(d->fault) - at, ": %.100s", info.description);
}

void nb_vulkan_doing(struct nb_vulkan_device *d, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(d->doing, sizeof(d->doing), format, args);
    va_end(args);
    if (!d->gone)
        d->fault[0] = '\0';
}

static void add_figures(struct nb_vulkan_device *d, size_t at)
{
    uint64_t used, left;
    nb_vulkan_memory(d, &used, &left);
    if (at < sizeof(d->fault))
        snprintf(d->fault + at, sizeof(d->fault) - at, " (%.0f MB used, %.0f MB free)",
                 (double)used / 1e6, (double)left / 1e6);
}

int nb_vulkan_failed(struct nb_vulkan_device *d, VkResult r, const char *call)
{
    if (r == VK_SUCCESS)
        return 0;
    int rc = r == VK_TIMEOUT ? -ETIMEDOUT : nb_vk_errno(r);
    if (d->gone) // what comes after follows from it
        return rc;
    d->hangs = r == VK_TIMEOUT;
    d->gone = rc != -ENOMEM;
    int n;
    if (d->hangs)
        n = snprintf(d->fault, sizeof(d->fault), "vulkan%u hangs: no end of %s within %g s",
                     d->index, d->doing, (double)d->timeout_ns / 1e9);
    else
        n = snprintf(d->fault, sizeof(d->fault), "vulkan%u failed in %s: %s from %s", d->index,
                     d->doing, nb_vk_result_name(r), call);
    if (r == VK_ERROR_DEVICE_LOST && n > 0)
        add_drivers_words(d, (size_t)n);
    if (rc == -ENOMEM && n > 0)
        add_figures(d, (size_t)n);
    return rc;
}

void nb_vulkan_fault_at(struct nb_vulkan_device *d, const struct nb_op *op)
{
    size_t n = strlen(d->fault);
    if (n)
        snprintf(d->fault + n, sizeof(d->fault) - n, ", from %s of layer %u on",
                 nb_section_names[op->section], op->layer);
}

const char *nb_vulkan_fault(const struct nb_device *base)
{
    const struct nb_vulkan_device *d = (const struct nb_vulkan_device *)base;
    return d->fault[0] ? d->fault : NULL;
}
