// Vulkan devices: which there are, and one of them as a device of the engine. The loader is opened
// at run time, so a machine without Vulkan is one without such devices, not an error of its own.
#pragma once

#include "engine/device.h"
#include "tensor/fail.h"

enum { NB_VULKAN_DEVICES = 16 }; // as many are looked at

// A Vulkan device as enumerated; its index is the N of its name, "vulkanN".
struct nb_vulkan_device_info {
    char name[256], driver[256];
    uint8_t uuid[16];
    bool is_cpu;         // never chosen but by name
    bool unified;        // its memory is the host's
    bool writes_imports; // its driver is lost when it is given memory that is only read
    uint64_t memory;     // of its largest heap of its own
    uint64_t max_window; // bytes that a shader may address at once
    const char *tier;
    uint32_t drm_major, drm_minor; // of its render node; 0, 0: unknown
    char pci[16];                  // "0000:01:00.0"; "": unknown
    char fault[192];               // why the engine cannot use it; "": it can
};

// Up to `max` devices; returns how many there are. -ENODEV without a loader, -EIO when it fails.
int nb_vulkan_enumerate(struct nb_vulkan_device_info *ret, uint32_t max,
                        struct nb_error *ret_error);
// The same in the words of every device, as nb_device_list has them.
int nb_vulkan_device_list(void (*found)(void *user, const struct nb_device_info *info), void *user,
                          struct nb_error *ret_error);
// -ENODEV no loader or no such device, -ENOTSUP a device that lacks what the shaders need, -ENOMEM,
// -EIO; the line in `ret_error` says which.
int nb_vulkan_device_create(uint32_t index, const struct nb_device_options *options,
                            struct nb_device **ret, struct nb_error *ret_error);
