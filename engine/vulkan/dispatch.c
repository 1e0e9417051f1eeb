// How a dispatch goes into a command buffer, and how many workgroups it has.
#include <string.h>

#include "engine/vulkan/program.h"

#define FEW_ROWS 4 // up to here a row is spread over as many invocations as it has blocks

// Whether it takes several rows of experts at once, which must be in the experts' order then.
static bool takes_several(const struct nb_vulkan_device *d, const struct nb_vulkan_dispatch *p,
                          uint32_t tile)
{
    const bool experts =
        p->shader == NB_SHADER_GEMM_EXPERTS || p->shader == NB_SHADER_GEMM_FLOATS_EXPERTS;
    return experts && nb_vulkan_variant(d, p, tile)->tokens > 1;
}

bool nb_vulkan_skips(const struct nb_vulkan_device *d, const struct nb_vulkan_program *program,
                     const struct nb_vulkan_dispatch *p, uint32_t bucket, bool best)
{
    if (p->unless) {
        const struct nb_vulkan_dispatch *before = &program->dispatches[p->unless - 1];
        return nb_vulkan_variant(d, before, nb_vulkan_tile(before, bucket, best))->finishes;
    }
    const struct nb_vulkan_dispatch *end = program->dispatches + p->orders, *q = p + 1;
    while (q < end && !takes_several(d, q, nb_vulkan_tile(q, bucket, best)))
        q++;
    return p->orders && q >= end;
}

static uint32_t divide_up(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

// What a dispatch is for so many tokens: its first push constant, the same for all of a bucket, and
// its workgroups.
struct launch {
    uint32_t push;
    VkDispatchIndirectCommand groups;
};

static struct launch launch_of(const struct nb_vulkan_device *d, uint32_t tokens,
                               const struct nb_vulkan_dispatch *p, uint32_t tile)
{
    const struct nb_tier_variant *v = nb_vulkan_variant(d, p, tile);
    const uint32_t units = tokens <= FEW_ROWS ? p->few_units : p->units, rows = tokens * p->each;
    const uint32_t covered = v->units ? v->units : nb_vulkan_local(d, v) * (v->each ? v->each : 1);
    if (p->shape == NB_VULKAN_TOKENS)
        return (struct launch){p->push[0],
                               {divide_up(p->units, covered), divide_up(rows, v->tokens), 1}};
    if (v->team)
        return (struct launch){p->teams, {p->teams, rows, 1}};
    const uint32_t groups = divide_up(units * rows, covered), y = divide_up(groups, d->max_groups);
    return (struct launch){units, {divide_up(groups, y ? y : 1), y, 1}};
}

VkDispatchIndirectCommand nb_vulkan_launch(const struct nb_vulkan_device *d, uint32_t tokens,
                                           const struct nb_vulkan_dispatch *p, uint32_t tile)
{
    return launch_of(d, tokens, p, tile).groups;
}

static void bind(const struct nb_vulkan_pipelines *all, VkCommandBuffer c,
                 const struct nb_vulkan_dispatch *p, uint32_t tile, uint32_t push0)
{
    const struct nb_vk *vk = &all->device->vk;
    VkPipelineLayout layout = all->device->layout;
    uint32_t push[PUSH_BYTES / 4];
    memcpy(push, p->push, sizeof(push));
    push[0] = push0;
    vk->CmdBindPipeline(c, VK_PIPELINE_BIND_POINT_COMPUTE, all->list[p->pipeline[tile]].pipeline);
    vk->CmdBindDescriptorSets(c, VK_PIPELINE_BIND_POINT_COMPUTE, layout, 0, 1, &p->set, 0, NULL);
    vk->CmdPushConstants(c, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof(push), push);
}

void nb_vulkan_dispatch(const struct nb_vulkan_pipelines *all, VkCommandBuffer c, uint32_t tokens,
                        const struct nb_vulkan_dispatch *p, uint32_t tile)
{
    const struct launch l = launch_of(all->device, tokens, p, tile);
    bind(all, c, p, tile, l.push);
    all->device->vk.CmdDispatch(c, l.groups.x, l.groups.y, l.groups.z);
}

void nb_vulkan_dispatch_indirect(const struct nb_vulkan_pipelines *all, VkCommandBuffer c,
                                 uint32_t most, const struct nb_vulkan_dispatch *p, uint32_t tile,
                                 VkBuffer groups, VkDeviceSize at)
{
    bind(all, c, p, tile, launch_of(all->device, most, p, tile).push);
    all->device->vk.CmdDispatchIndirect(c, groups, at);
}

void nb_vulkan_after_dispatch(const struct nb_vulkan_device *d, VkCommandBuffer c)
{
    const VkPipelineStageFlags stage = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT;
    const VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                               .dstAccessMask =
                                   VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT};
    d->vk.CmdPipelineBarrier(c, stage, stage, 0, 1, &b, 0, NULL, 0, NULL);
}
