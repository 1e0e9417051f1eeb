// Command buffers: recorded once for each bucket of rows; what differs from step to step lies in
// the step buffer.
#include "engine/vulkan/model.h"

#include <string.h>

#define FEW_ROWS 4 // up to here a row is spread over as many invocations as it has blocks

uint32_t nb_vulkan_bucket(uint32_t rows)
{
    uint32_t bucket = 0;
    while (1u << bucket < rows)
        bucket++;
    return bucket;
}

uint32_t nb_vulkan_tile(const struct nb_device_model *m, const struct nb_vulkan_dispatch *p,
                        uint32_t rows)
{
    const struct nb_tier *t = m->device->tier;
    uint32_t tile = NB_TIER_TILES - 1;
    while (tile > 0 && t->variant[NB_SHADER_GEMM][tile - 1].tokens >= rows)
        tile--;
    return tile;
}

static void barrier(const struct nb_vk *vk, VkCommandBuffer c, VkPipelineStageFlags to,
                    VkAccessFlags access)
{
    const VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                               .dstAccessMask = access};
    vk->CmdPipelineBarrier(c, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, to, 0, 1, &b, 0, NULL, 0, NULL);
}

void nb_vulkan_dispatch(const struct nb_device_model *m, VkCommandBuffer c, uint32_t rows,
                        const struct nb_vulkan_dispatch *p)
{
    const struct nb_vk *vk = &m->device->vk;
    VkPipelineLayout layout = m->device->layout;
    uint32_t tile = nb_vulkan_tile(m, p, rows);
    const struct nb_tier_variant *v = &m->device->tier->variant[p->shader][tile];
    uint32_t covered = v->units ? v->units : nb_vulkan_local(m->device, v);
    uint32_t push[NB_VULKAN_PUSH_BYTES / 4], units = p->units, y = 1;
    memcpy(push, p->push, sizeof(push));
    if (p->shape == NB_VULKAN_TOKENS) {
        y = (rows + v->tokens - 1) / v->tokens;
    } else if (v->team) {
        push[0] = units = p->teams;
        covered = 1;
        y = rows;
    } else {
        push[0] = units = rows <= FEW_ROWS ? p->few_units : p->units;
        units *= rows;
    }
    vk->CmdBindPipeline(c, VK_PIPELINE_BIND_POINT_COMPUTE,
                        m->pipelines[p->pipeline[tile]].pipeline);
    vk->CmdBindDescriptorSets(c, VK_PIPELINE_BIND_POINT_COMPUTE, layout, 0, 1, &p->set, 0, NULL);
    vk->CmdPushConstants(c, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, p->n_push * 4, push);
    vk->CmdDispatch(c, (units + covered - 1) / covered, y, 1);
}

static void record(const struct nb_device_model *m, VkCommandBuffer c, uint32_t rows, bool head)
{
    const struct nb_vk *vk = &m->device->vk;
    uint32_t i = head ? m->head : 0, end = head ? m->n_dispatches : m->head;
    uint32_t query = head ? m->plan->n_ops : 0;
    const VkPipelineStageFlags compute = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT;
    vk->CmdResetQueryPool(c, m->queries, query, head ? 2 : m->plan->n_ops);
    vk->CmdWriteTimestamp(c, compute, m->queries, query++);
    for (; i < end; i++) {
        const struct nb_vulkan_dispatch *p = &m->dispatches[i];
        if (!p->beside)
            barrier(vk, c, compute, VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT);
        nb_vulkan_dispatch(m, c, rows, p);
        if (i + 1 == end || m->dispatches[i + 1].op != p->op)
            vk->CmdWriteTimestamp(c, compute, m->queries, query++);
    }
    barrier(vk, c, VK_PIPELINE_STAGE_HOST_BIT | compute,
            VK_ACCESS_HOST_READ_BIT | VK_ACCESS_SHADER_READ_BIT);
}

int nb_vulkan_commands(struct nb_device_model *m, uint32_t bucket, bool head, VkCommandBuffer *ret)
{
    VkCommandBuffer *kept = head ? &m->head_commands[bucket] : &m->body_commands[bucket];
    if (!*kept) {
        VkCommandBuffer c;
        int rc = nb_vulkan_begin(m->device, false, &c);
        if (rc < 0)
            return rc;
        record(m, c, 1u << bucket, head);
        if ((rc = nb_vk_errno(m->device->vk.EndCommandBuffer(c))) < 0)
            return rc;
        *kept = c;
    }
    *ret = *kept;
    return 0;
}
