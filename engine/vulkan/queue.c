// Submissions: a queue counts them on a timeline, whoever needs one's end waits for its number, and
// no wait is for ever.
#include "engine/vulkan/device.h"

#include <errno.h>
#include <stdio.h>

// All that we do on a device.
#define STAGES (VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT)

int nb_vulkan_queue_init(struct nb_vulkan_device *d, uint32_t family, struct nb_vulkan_queue *ret)
{
    const VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                          .queueFamilyIndex = family};
    const VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                            .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    const VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO,
                                             .pNext = &type};
    *ret = (struct nb_vulkan_queue){.family = family};
    d->vk.GetDeviceQueue(d->device, family, 0, &ret->queue);
    VkResult r = d->vk.CreateCommandPool(d->device, &pool, NULL, &ret->commands);
    if (r == VK_SUCCESS)
        r = d->vk.CreateSemaphore(d->device, &semaphore, NULL, &ret->timeline);
    return nb_vk_errno(r);
}

void nb_vulkan_queue_finish(struct nb_vulkan_device *d, struct nb_vulkan_queue *q)
{
    d->vk.DestroySemaphore(d->device, q->timeline, NULL);
    d->vk.DestroyCommandPool(d->device, q->commands, NULL);
}

int nb_vulkan_begin_on(struct nb_vulkan_device *d, struct nb_vulkan_queue *q, bool once,
                       VkCommandBuffer *ret)
{
    const VkCommandBufferAllocateInfo info = {.sType =
                                                  VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                              .commandPool = q->commands,
                                              .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                              .commandBufferCount = 1};
    VkCommandBuffer c;
    int rc = nb_vk_errno(d->vk.AllocateCommandBuffers(d->device, &info, &c));
    if (rc < 0)
        return rc;
    const VkCommandBufferBeginInfo begin = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
        .flags = once ? VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT : 0};
    rc = nb_vk_errno(d->vk.BeginCommandBuffer(c, &begin));
    if (rc < 0)
        nb_vulkan_release(d, q, &c);
    else
        *ret = c;
    return rc;
}

int nb_vulkan_begin(struct nb_vulkan_device *d, bool once, VkCommandBuffer *ret)
{
    return nb_vulkan_begin_on(d, &d->compute, once, ret);
}

void nb_vulkan_release(struct nb_vulkan_device *d, struct nb_vulkan_queue *q, VkCommandBuffer *c)
{
    if (*c)
        d->vk.FreeCommandBuffers(d->device, q->commands, 1, c);
    *c = VK_NULL_HANDLE;
}

int nb_vulkan_submit(struct nb_vulkan_device *d, struct nb_vulkan_queue *q, VkCommandBuffer c,
                     uint64_t *ret_number)
{
    const uint64_t number = q->submitted + 1;
    // Another queue's copies are made visible to what is computed from them: once, because what
    // comes later on this queue is in the same wait's scope.
    const bool joins = q != d->copies && q->joined < d->copies->submitted;
    const VkPipelineStageFlags stages = STAGES;
    const VkTimelineSemaphoreSubmitInfo timeline = {
        .sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
        .waitSemaphoreValueCount = joins,
        .pWaitSemaphoreValues = &d->copies->submitted,
        .signalSemaphoreValueCount = 1,
        .pSignalSemaphoreValues = &number};
    const VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                                 .pNext = &timeline,
                                 .waitSemaphoreCount = joins,
                                 .pWaitSemaphores = joins ? &d->copies->timeline : NULL,
                                 .pWaitDstStageMask = &stages,
                                 .commandBufferCount = 1,
                                 .pCommandBuffers = &c,
                                 .signalSemaphoreCount = 1,
                                 .pSignalSemaphores = &q->timeline};
    VkResult r = d->vk.QueueSubmit(q->queue, 1, &submit, VK_NULL_HANDLE);
    if (r != VK_SUCCESS)
        return nb_vulkan_failed(d, r, "vkQueueSubmit");
    *ret_number = q->submitted = number;
    q->joined = joins ? d->copies->submitted : q->joined;
    return 0;
}

int nb_vulkan_wait(struct nb_vulkan_device *d, struct nb_vulkan_queue *q, uint64_t number)
{
    const VkSemaphoreWaitInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                                      .semaphoreCount = 1,
                                      .pSemaphores = &q->timeline,
                                      .pValues = &number};
    int rc = nb_vulkan_failed(d, d->vk.WaitSemaphores(d->device, &info, d->timeout_ns),
                              "vkWaitSemaphores");
    if (rc == 0)
        nb_device_beat(&d->base);
    return rc;
}

double nb_vulkan_elapsed(const struct nb_vulkan_device *d, uint64_t from, uint64_t to)
{
    return (double)((to - from) & d->tick_mask) * d->tick_ns;
}

int nb_vulkan_run_once(struct nb_vulkan_device *d, VkCommandBuffer commands)
{
    // What it wrote is seen by all that comes after, the host as well.
    const VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT,
                               .dstAccessMask =
                                   VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT};
    d->vk.CmdPipelineBarrier(commands, STAGES, STAGES | VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &b, 0,
                             NULL, 0, NULL);
    uint64_t number = 0;
    int rc = nb_vk_errno(d->vk.EndCommandBuffer(commands));
    if (rc == 0)
        rc = nb_vulkan_submit(d, &d->compute, commands, &number);
    if (rc == 0)
        rc = nb_vulkan_wait(d, &d->compute, number);
    if (!d->hangs)
        nb_vulkan_release(d, &d->compute, &commands);
    return rc;
}
