// What a driver says of its devices before one is made. For engine/vulkan/ alone.
#pragma once

#include <stdint.h>

#include "engine/vulkan/api.h"
#include "engine/vulkan/vulkan.h"

bool nb_vulkan_has_extension(const struct nb_vk *vk, VkPhysicalDevice p, const char *name);
// The family that computes and keeps time, and one that only copies; where there is none, the same.
// -ENOTSUP: there is no such family.
int nb_vulkan_find_queues(const struct nb_vk *vk, VkPhysicalDevice p, uint32_t *ret_compute,
                          uint32_t *ret_transfer);
// The largest heap of the device's own.
uint32_t nb_vulkan_own_heap(const VkPhysicalDeviceMemoryProperties *m);
int nb_vulkan_list(const struct nb_vk *vk, VkPhysicalDevice p[NB_VULKAN_DEVICES], uint32_t *ret_n,
                   char *error, size_t error_size);
void nb_vulkan_describe(const struct nb_vk *vk, VkPhysicalDevice p,
                        struct nb_vulkan_device_info *ret);
void nb_vulkan_device_show(const struct nb_vulkan_device_info *info, uint32_t index,
                           struct nb_device_info *ret);
