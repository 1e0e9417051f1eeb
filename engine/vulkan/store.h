// The pipelines of a device. Models and clients' matrices that name the same one share it, because
// a driver takes 10 to 1000 ms to make it. The last ones that nobody has any more are kept: what is
// loaded next often wants them.
#pragma once

#include "engine/vulkan/device.h"

struct nb_vulkan_store;

enum { NB_VULKAN_IDLE = 64 }; // that nobody has, and that are kept

int nb_vulkan_store_create(struct nb_vulkan_store **ret);
// Destroys what it keeps; nobody has a pipeline of it any more.
void nb_vulkan_store_destroy(struct nb_vulkan_device *d);
// Makes the pipeline where there is none, and may take as long as the driver does. On any thread,
// but no two at a time for the same pipeline.
int nb_vulkan_store_take(struct nb_vulkan_device *d, const struct nb_tier_variant *variant,
                         const uint32_t constants[CONST_TIER], VkPipeline *ret);
// Of a pipeline that the device has done with. VK_NULL_HANDLE does nothing.
void nb_vulkan_store_give(struct nb_vulkan_device *d, VkPipeline pipeline);
