// The pipelines of a model, or of clients' matrices: named first, each once, and made when they are
// wanted.
#pragma once

#include "engine/vulkan/device.h"

enum { NB_VULKAN_NAMED = 256 }; // that dispatches may name

struct nb_vulkan_pipeline {
    const struct nb_tier_variant *variant;
    uint32_t constants[CONST_TIER];
    VkPipeline pipeline; // or none
    bool ready;          // made, and run once where the device is to be warm
};

struct nb_vulkan_pipelines {
    struct nb_vulkan_device *device;
    struct nb_vulkan_pipeline *list; // NB_VULKAN_NAMED, or NULL
    uint32_t n;
};

// The index of a pipeline, named now and made later, or a negative errno.
int nb_vulkan_pipeline_name(struct nb_vulkan_pipelines *p, const struct nb_tier_variant *variant,
                            const uint32_t constants[CONST_TIER]);
// Makes those of the list that are not there. `made`, where it is not NULL, is called for each in
// the list's order by the thread that calls this, as soon as it is there.
int nb_vulkan_pipelines_make(struct nb_vulkan_pipelines *p, const uint16_t *list, uint32_t n,
                             int (*made)(void *user, uint32_t pipeline), void *user);
void nb_vulkan_pipeline_drop(struct nb_vulkan_pipelines *p, uint32_t pipeline);
void nb_vulkan_pipelines_finish(struct nb_vulkan_pipelines *p);
