// The Vulkan functions we use, as tables filled at run time.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

#include "tensor/fail.h"

#define NB_VENDOR_INTEL 0x8086

#define NB_VK_GLOBAL(X) X(CreateInstance) X(EnumerateInstanceVersion)

#define NB_VK_INSTANCE(X)                                                                          \
    X(DestroyInstance)                                                                             \
    X(EnumeratePhysicalDevices)                                                                    \
    X(GetPhysicalDeviceFeatures2)                                                                  \
    X(GetPhysicalDeviceProperties2)                                                                \
    X(GetPhysicalDeviceMemoryProperties)                                                           \
    X(GetPhysicalDeviceMemoryProperties2)                                                          \
    X(GetPhysicalDeviceQueueFamilyProperties)                                                      \
    X(EnumerateDeviceExtensionProperties)                                                          \
    X(CreateDevice)                                                                                \
    X(GetDeviceProcAddr)

#define NB_VK_DEVICE(X)                                                                            \
    X(DestroyDevice)                                                                               \
    X(GetDeviceQueue)                                                                              \
    X(CreateBuffer)                                                                                \
    X(DestroyBuffer)                                                                               \
    X(GetBufferMemoryRequirements)                                                                 \
    X(AllocateMemory)                                                                              \
    X(FreeMemory)                                                                                  \
    X(BindBufferMemory)                                                                            \
    X(MapMemory)                                                                                   \
    X(CreateBufferView)                                                                            \
    X(DestroyBufferView)                                                                           \
    X(CreateShaderModule)                                                                          \
    X(DestroyShaderModule)                                                                         \
    X(CreateDescriptorSetLayout)                                                                   \
    X(DestroyDescriptorSetLayout)                                                                  \
    X(CreatePipelineLayout)                                                                        \
    X(DestroyPipelineLayout)                                                                       \
    X(CreatePipelineCache)                                                                         \
    X(DestroyPipelineCache)                                                                        \
    X(GetPipelineCacheData)                                                                        \
    X(CreateComputePipelines)                                                                      \
    X(DestroyPipeline)                                                                             \
    X(CreateDescriptorPool)                                                                        \
    X(DestroyDescriptorPool)                                                                       \
    X(AllocateDescriptorSets)                                                                      \
    X(UpdateDescriptorSets)                                                                        \
    X(CreateCommandPool)                                                                           \
    X(DestroyCommandPool)                                                                          \
    X(AllocateCommandBuffers)                                                                      \
    X(FreeCommandBuffers)                                                                          \
    X(BeginCommandBuffer)                                                                          \
    X(EndCommandBuffer)                                                                            \
    X(CmdBindPipeline)                                                                             \
    X(CmdBindDescriptorSets)                                                                       \
    X(CmdPushConstants)                                                                            \
    X(CmdDispatch)                                                                                 \
    X(CmdDispatchIndirect)                                                                         \
    X(CmdPipelineBarrier)                                                                          \
    X(CmdFillBuffer)                                                                               \
    X(CmdCopyBuffer)                                                                               \
    X(CmdUpdateBuffer)                                                                             \
    X(CmdResetQueryPool)                                                                           \
    X(CmdWriteTimestamp)                                                                           \
    X(CreateQueryPool)                                                                             \
    X(DestroyQueryPool)                                                                            \
    X(GetQueryPoolResults)                                                                         \
    X(QueueSubmit)                                                                                 \
    X(CreateSemaphore)                                                                             \
    X(DestroySemaphore)                                                                            \
    X(WaitSemaphores)

// Of extensions; NULL where the device lacks them.
#define NB_VK_OPTIONAL(X) X(GetMemoryHostPointerPropertiesEXT) X(GetDeviceFaultInfoEXT)

struct nb_vk {
    void *library;
    VkInstance instance;
    PFN_vkGetInstanceProcAddr get;
#define MEMBER(name) PFN_vk##name name;
    NB_VK_GLOBAL(MEMBER)
    NB_VK_INSTANCE(MEMBER)
    NB_VK_DEVICE(MEMBER)
    NB_VK_OPTIONAL(MEMBER)
#undef MEMBER
};

// Opens the loader and makes an instance. -ENODEV, -EIO.
int nb_vk_open(struct nb_vk *vk, struct nb_error *ret_error);
int nb_vk_load_device(struct nb_vk *vk, VkDevice device); // -EIO when a function is missing
void nb_vk_close(struct nb_vk *vk);

const char *nb_vk_result_name(VkResult result);
// A negative errno for a VkResult: -ENOMEM, -ENODEV (lost), -EIO.
int nb_vk_errno(VkResult result);
