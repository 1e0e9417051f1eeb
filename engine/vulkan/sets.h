// Descriptor sets: what a dispatch reads and writes, and the views of what it reads as texels.
#pragma once

#include "engine/vulkan/device.h"

struct nb_vulkan_sets {
    VkDescriptorPool pool;
    VkBufferView *views;
    uint32_t n_views, max_views;
};

// Room for n of them. After a failure there is nothing to finish.
int nb_vulkan_sets_init(struct nb_vulkan_device *d, uint32_t n, struct nb_vulkan_sets *ret);
void nb_vulkan_sets_finish(struct nb_vulkan_device *d, struct nb_vulkan_sets *s);
// One more set, of whole buffers, and at the first binding a part of one (or NULL). A binding
// without a buffer is one that the shader does not declare.
int nb_vulkan_sets_bind(struct nb_vulkan_device *d, struct nb_vulkan_sets *s,
                        const VkDescriptorBufferInfo *first,
                        const struct nb_vulkan_buffer *const buffers[BINDINGS],
                        VkDescriptorSet *ret);
