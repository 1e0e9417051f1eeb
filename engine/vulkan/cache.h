// What a device keeps from one start to the next, as one blob: the driver's pipeline cache and the
// tiles that tuning chose. Drivers believe what they are given, so a blob is used only when all of
// it is as this device, driver and build wrote it. Where it lies is not known here.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine/vulkan/tune.h"

enum { NB_VULKAN_CHOICES = 256, NB_VULKAN_CACHE_MAX = 32 << 20 };

// Who may use a blob.
struct nb_vulkan_cache_id {
    uint32_t vendor, device, driver_version, pad;
    uint8_t device_uuid[16], driver_uuid[16], pipeline_uuid[16];
    uint64_t shaders; // hash of every module
};

// A blob's content; points into it.
struct nb_vulkan_cache_parts {
    const void *pipelines; // the driver's
    size_t pipelines_bytes;
    const struct nb_vulkan_choice *choices;
    uint32_t n_choices;
    uint64_t hash; // of all of it
};

// Checks a blob that nobody changes meanwhile. -EINVAL: malformed, -ESTALE: another device's,
// driver's or build's.
int nb_vulkan_cache_read(const void *blob, size_t bytes, const struct nb_vulkan_cache_id *id,
                         struct nb_vulkan_cache_parts *ret);
// The blob of these parts, to be freed; their hash is set. -ENOMEM, -EFBIG.
int nb_vulkan_cache_write(const struct nb_vulkan_cache_id *id, struct nb_vulkan_cache_parts *parts,
                          void **ret, size_t *ret_bytes);

struct nb_vulkan_device;
struct nb_device;
// Makes d->cache, from a blob where it is fit for use. An unfit one is as good as none.
int nb_vulkan_cache_init(struct nb_vulkan_device *d, const void *blob, size_t bytes);
void nb_vulkan_cache_finish(struct nb_vulkan_device *d);
int nb_vulkan_cache_save(struct nb_device *d, void **ret, size_t *ret_bytes);

// NULL: none was made yet.
const struct nb_vulkan_choice *nb_vulkan_choice_find(const struct nb_vulkan_device *d,
                                                     uint64_t gemm);
// Past NB_VULKAN_CHOICES it is forgotten: the next model that has the GEMM measures again.
void nb_vulkan_choice_save(struct nb_vulkan_device *d, const struct nb_vulkan_choice *choice);
