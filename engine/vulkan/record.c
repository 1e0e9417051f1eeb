// Command buffers: recorded once for each bucket of rows; what differs from step to step lies in
// the step buffer, how many workgroups the rows need as well. A recording is cut into submissions
// short enough that others get their turn on the device: first at every layer, then by the time
// that its ops took. Most runs are not timed, because a driver may let a timestamp cost as much as
// a dispatch (Mesa's CPU driver does).
#include "engine/vulkan/model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FEW_ROWS   4 // up to here a row is spread over as many invocations as it has blocks
#define SEGMENT_NS 5000000
#define WARM_STEPS 2  // of a recording; the first of them compiles shaders on some drivers
#define TIMED_EACH 16 // of the steps after them

uint32_t nb_vulkan_bucket(uint32_t rows)
{
    uint32_t bucket = 0;
    while (1u << bucket < rows)
        bucket++;
    return bucket;
}

struct point {
    VkPipelineStageFlags stages;
    VkAccessFlags reads, writes;
};

static const struct point computing = {VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                                       VK_ACCESS_SHADER_READ_BIT, VK_ACCESS_SHADER_WRITE_BIT},
                          copying = {VK_PIPELINE_STAGE_TRANSFER_BIT, VK_ACCESS_TRANSFER_READ_BIT,
                                     VK_ACCESS_TRANSFER_WRITE_BIT},
                          reading = {VK_PIPELINE_STAGE_HOST_BIT, VK_ACCESS_HOST_READ_BIT, 0};

static void barrier(const struct nb_vk *vk, VkCommandBuffer c, const struct point *from,
                    const struct point *to)
{
    const VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = from->writes,
                               .dstAccessMask = to->reads | to->writes};
    vk->CmdPipelineBarrier(c, from->stages, to->stages, 0, 1, &b, 0, NULL, 0, NULL);
}

void nb_vulkan_after_dispatch(const struct nb_device_model *m, VkCommandBuffer c)
{
    barrier(&m->device->vk, c, &computing, &computing);
}

bool nb_vulkan_skips(const struct nb_device_model *m, const struct nb_vulkan_dispatch *p,
                     uint32_t bucket, bool best)
{
    const struct nb_vulkan_dispatch *before = p->unless ? &m->dispatches[p->unless - 1] : NULL;
    return before && nb_vulkan_variant(m, before, nb_vulkan_tile(before, bucket, best))->finishes;
}

// What a dispatch is for so many rows: its first push constant, the same for all of a bucket, and
// its workgroups.
struct launch {
    uint32_t push;
    VkDispatchIndirectCommand groups;
};

static uint32_t divide_up(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

static struct launch launch_of(const struct nb_device_model *m, uint32_t rows,
                               const struct nb_vulkan_dispatch *p, uint32_t tile)
{
    const struct nb_tier_variant *v = nb_vulkan_variant(m, p, tile);
    const uint32_t units = rows <= FEW_ROWS ? p->few_units : p->units;
    const uint32_t covered =
        v->units ? v->units : nb_vulkan_local(m->device, v) * (v->each ? v->each : 1);
    if (p->shape == NB_VULKAN_TOKENS)
        return (struct launch){p->push[0],
                               {divide_up(p->units, covered), divide_up(rows, v->tokens), 1}};
    if (v->team)
        return (struct launch){p->teams, {p->teams, rows, 1}};
    return (struct launch){units, {divide_up(units * rows, covered), 1, 1}};
}

static void bind(const struct nb_device_model *m, VkCommandBuffer c,
                 const struct nb_vulkan_dispatch *p, uint32_t tile, uint32_t push0)
{
    const struct nb_vk *vk = &m->device->vk;
    VkPipelineLayout layout = m->device->layout;
    uint32_t push[NB_VULKAN_PUSH_BYTES / 4];
    memcpy(push, p->push, sizeof(push));
    push[0] = push0;
    vk->CmdBindPipeline(c, VK_PIPELINE_BIND_POINT_COMPUTE,
                        m->pipelines[p->pipeline[tile]].pipeline);
    vk->CmdBindDescriptorSets(c, VK_PIPELINE_BIND_POINT_COMPUTE, layout, 0, 1, &p->set, 0, NULL);
    vk->CmdPushConstants(c, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof(push), push);
}

void nb_vulkan_dispatch(const struct nb_device_model *m, VkCommandBuffer c, uint32_t rows,
                        const struct nb_vulkan_dispatch *p, uint32_t tile)
{
    const struct launch l = launch_of(m, rows, p, tile);
    bind(m, c, p, tile, l.push);
    m->device->vk.CmdDispatch(c, l.groups.x, l.groups.y, l.groups.z);
}

// For as many rows of the bucket as a step says.
static void dispatch_indirect(const struct nb_device_model *m, VkCommandBuffer c, uint32_t bucket,
                              uint32_t i)
{
    const struct nb_vulkan_dispatch *p = &m->dispatches[i];
    const uint32_t tile = nb_vulkan_tile(p, bucket, false);
    bind(m, c, p, tile, launch_of(m, 1u << bucket, p, tile).push);
    m->device->vk.CmdDispatchIndirect(c, m->step.buffer,
                                      m->tables.groups * 4 + i * sizeof(VkDispatchIndirectCommand));
}

void nb_vulkan_recording_size(struct nb_device_model *m, const struct nb_vulkan_recording *r,
                              uint32_t rows)
{
    void *words = (uint32_t *)m->step.map + m->tables.groups;
    VkDispatchIndirectCommand *groups = words;
    const uint32_t bucket = nb_vulkan_bucket(rows);
    for (uint32_t i = r->segments[0].first; i < r->segments[r->n - 1].end; i++) {
        const struct nb_vulkan_dispatch *p = &m->dispatches[i];
        groups[i] = launch_of(m, rows, p, nb_vulkan_tile(p, bucket, false)).groups;
    }
}

// Nothing of a model is under way when a step begins, so what comes first waits for nothing.
// A plan without embedding begins with what the host has carried over, one without head ends there.
static void carry(const struct nb_device_model *m, VkCommandBuffer c, uint32_t bucket, bool in)
{
    const struct nb_vk *vk = &m->device->vk;
    const uint32_t rows = 1u << bucket < m->padded_rows ? 1u << bucket : m->padded_rows;
    VkDeviceSize row = nb_vulkan_pad(m->plan->hp.embedding, 32) * sizeof(float);
    if (!in)
        barrier(vk, c, &computing, &copying);
    vk->CmdCopyBuffer(c, (in ? &m->carry : &m->x)->buffer, (in ? &m->x : &m->carry)->buffer, 1,
                      &(VkBufferCopy){0, 0, rows * row});
    barrier(vk, c, &copying, in ? &computing : &reading);
}

static bool begins_op(const struct nb_device_model *m, const struct nb_vulkan_segment *s,
                      uint32_t dispatch)
{
    return dispatch == s->first || m->dispatches[dispatch].op != m->dispatches[dispatch - 1].op;
}

static void record(const struct nb_device_model *m, const struct nb_vulkan_segment *s,
                   uint32_t bucket, VkCommandBuffer c, bool timed)
{
    const struct nb_vk *vk = &m->device->vk;
    uint32_t query = s->query;
    if (timed)
        vk->CmdResetQueryPool(c, m->queries, query, s->n_queries);
    if (s->first == 0 && m->carry.buffer && !nb_plan_has(m->plan, NB_OP_EMBED))
        carry(m, c, bucket, true);
    for (uint32_t i = s->first; i < s->end; i++) {
        const struct nb_vulkan_dispatch *p = &m->dispatches[i];
        if (timed && begins_op(m, s, i))
            vk->CmdWriteTimestamp(c, computing.stages, m->queries, query++);
        if (nb_vulkan_skips(m, p, bucket, false))
            continue;
        if (i > 0 && !p->beside)
            barrier(vk, c, &computing, &computing);
        dispatch_indirect(m, c, bucket, i);
    }
    if (timed)
        vk->CmdWriteTimestamp(c, computing.stages, m->queries, query++);
    if (s->end < m->top)
        return;
    if (nb_plan_has(m->plan, NB_OP_HEAD))
        barrier(vk, c, &computing, &reading);
    else
        carry(m, c, bucket, false);
}

// Where a recording's submissions begin and end; returns how many they are.
static uint32_t cut(const struct nb_device_model *m, uint32_t first, uint32_t end, bool measured,
                    struct nb_vulkan_segment *ret)
{
    uint32_t n = 0, query = first == end ? 0 : 2 * m->dispatches[first].op;
    uint64_t filled = 0;
    for (uint32_t i = first; i < end; i++) {
        uint32_t op = m->dispatches[i].op;
        if (i > first && op == m->dispatches[i - 1].op) {
            ret[n - 1].end = i + 1;
            continue;
        }
        bool full =
            measured ? filled + m->op_ns[op] > SEGMENT_NS : m->plan->ops[op].kind == NB_OP_QKV;
        if (n == 0 || full) {
            ret[n++] = (struct nb_vulkan_segment){.first = i, .query = query, .n_queries = 1};
            query++;
            filled = 0;
        }
        filled += m->op_ns[op];
        ret[n - 1].end = i + 1;
        ret[n - 1].n_queries++;
        query++;
    }
    return n;
}

static void finish(struct nb_device_model *m, struct nb_vulkan_recording *r)
{
    for (uint32_t i = 0; i < r->n; i++) {
        nb_vulkan_release(m->device, &m->device->compute, &r->segments[i].commands);
        nb_vulkan_release(m->device, &m->device->compute, &r->segments[i].untimed);
    }
    free(r->segments);
    *r = (struct nb_vulkan_recording){0};
}

static int record_segment(const struct nb_device_model *m, const struct nb_vulkan_segment *s,
                          uint32_t bucket, bool timed, VkCommandBuffer *ret)
{
    int rc = nb_vulkan_begin(m->device, false, ret);
    if (rc < 0)
        return rc;
    record(m, s, bucket, *ret, timed);
    return nb_vk_errno(m->device->vk.EndCommandBuffer(*ret));
}

static int make(struct nb_device_model *m, uint32_t bucket, enum nb_vulkan_part part, bool measured,
                struct nb_vulkan_recording *ret)
{
    const uint32_t range[NB_VULKAN_PARTS][2] = {[NB_VULKAN_BODY] = {0, m->tail_from},
                                                [NB_VULKAN_LOGITS] = {m->tail_from, m->top},
                                                [NB_VULKAN_BEST] = {m->tail_from, m->n_dispatches}};
    struct nb_vulkan_recording r = {.measured = measured};
    r.segments = calloc(m->plan->n_ops, sizeof(*r.segments));
    if (!r.segments)
        return -ENOMEM;
    r.n = cut(m, range[part][0], range[part][1], measured, r.segments);
    int rc = 0;
    for (uint32_t i = 0; i < r.n && rc == 0; i++) {
        struct nb_vulkan_segment *s = &r.segments[i];
        rc = record_segment(m, s, bucket, true, &s->commands);
        if (rc == 0 && measured)
            rc = record_segment(m, s, bucket, false, &s->untimed);
    }
    if (rc < 0)
        finish(m, &r);
    else
        *ret = r;
    return rc;
}

void nb_vulkan_recordings_forget(struct nb_device_model *m, uint32_t bucket)
{
    for (int part = 0; part < NB_VULKAN_PARTS; part++)
        finish(m, &m->recording[part][bucket]);
}

int nb_vulkan_recording_get(struct nb_device_model *m, uint32_t bucket, enum nb_vulkan_part part,
                            struct nb_vulkan_recording **ret)
{
    *ret = &m->recording[part][bucket];
    return (*ret)->n ? 0 : make(m, bucket, part, false, *ret);
}

// Far longer than it was cut for. A single op is as long as it is.
static bool is_too_long(const struct nb_device_model *m, const struct nb_vulkan_segment *s)
{
    uint64_t ns = 0;
    for (uint32_t i = s->first; i < s->end; i++)
        ns += begins_op(m, s, i) ? m->op_ns[m->dispatches[i].op] : 0;
    return s->n_queries > 2 && ns > 2 * SEGMENT_NS;
}

bool nb_vulkan_recording_is_timed(const struct nb_vulkan_recording *r)
{
    return !r->measured || r->steps % TIMED_EACH == 0;
}

int nb_vulkan_recording_learn(struct nb_device_model *m, uint32_t bucket, enum nb_vulkan_part part,
                              struct nb_vulkan_recording *r)
{
    const bool timed = nb_vulkan_recording_is_timed(r);
    bool again = ++r->steps == WARM_STEPS;
    for (uint32_t i = 0; i < r->n && r->measured && timed; i++)
        again = again || is_too_long(m, &r->segments[i]);
    if (!again)
        return 0;
    struct nb_vulkan_recording better;
    int rc = make(m, bucket, part, true, &better);
    if (rc < 0)
        return rc;
    better.steps = r->steps;
    memcpy(better.times, r->times, sizeof(r->times));
    finish(m, r);
    *r = better;
    return 0;
}
