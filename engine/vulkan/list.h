// What a driver says of its devices before one is made. For engine/vulkan/ alone.
#pragma once

#include <stdint.h>

#include "engine/vulkan/api.h"
#include "engine/vulkan/vulkan.h"
#include "tensor/fail.h"

bool nb_vulkan_has_extension(const struct nb_vk *vk, VkPhysicalDevice p, const char *name);
// The family that computes and keeps time, in so many bits, by preference one that does not draw;
// and one that only copies; where there is none, the same. -ENOTSUP: there is no such family.
int nb_vulkan_find_queues(const struct nb_vk *vk, VkPhysicalDevice p, uint32_t *ret_compute,
                          uint32_t *ret_transfer, uint32_t *ret_timestamp_bits);
// Of these families.
int nb_vulkan_choose_queues(const VkQueueFamilyProperties *q, uint32_t n, uint32_t *ret_compute,
                            uint32_t *ret_transfer);
// What a device can bind to one shader, as it reports; "" when that suffices, or what is missing.
const char *nb_vulkan_lacking(const VkPhysicalDeviceLimits *l);
// The largest heap of the device's own.
uint32_t nb_vulkan_own_heap(const VkPhysicalDeviceMemoryProperties *m);
int nb_vulkan_list(const struct nb_vk *vk, VkPhysicalDevice p[NB_VULKAN_DEVICES], uint32_t *ret_n,
                   struct nb_error *error);
void nb_vulkan_describe(const struct nb_vk *vk, VkPhysicalDevice p,
                        struct nb_vulkan_device_info *ret);
void nb_vulkan_device_show(const struct nb_vulkan_device_info *info, uint32_t index,
                           struct nb_device_info *ret);
