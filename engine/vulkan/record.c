// Command buffers (record.h). What differs from step to step lies in the step buffer, how many
// workgroups the rows need as well. A recording is cut into submissions short enough that others
// get at the device between them: first at every layer, then by the time that the model's parts
// took. Most runs are not timed, because a driver may let a timestamp cost as much as a dispatch
// (Mesa's CPU driver does).
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/vulkan/model.h"

#define SEGMENT_NS 5000000
#define WARM_STEPS 2  // of a recording; the first of them compiles shaders on some drivers
#define TIMED_EACH 16 // of the steps after them

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

void nb_vulkan_recording_size(struct nb_device_model *m, const struct nb_vulkan_recording *r,
                              uint32_t rows)
{
    void *words = (uint32_t *)m->buffers.step.map + m->tables.groups;
    VkDispatchIndirectCommand *groups = words;
    const uint32_t bucket = nb_vulkan_bucket(rows);
    for (uint32_t i = r->segments[0].first; i < r->segments[r->n - 1].end; i++) {
        const struct nb_vulkan_dispatch *p = &m->program.dispatches[i];
        groups[i] = nb_vulkan_launch(m->device, rows, p, nb_vulkan_tile(p, bucket, false));
    }
}

// --- What goes in and out

static void copy_rows(const struct nb_device_model *m, VkCommandBuffer c, uint32_t bucket,
                      uint32_t most, const struct nb_vulkan_buffer *from,
                      const struct nb_vulkan_buffer *to)
{
    const uint32_t rows = 1u << bucket < most ? 1u << bucket : most;
    const VkDeviceSize row = nb_vulkan_stride(m->plan, NB_VALUE_X) * sizeof(float);
    m->device->vk.CmdCopyBuffer(c, from->buffer, to->buffer, 1, &(VkBufferCopy){0, 0, rows * row});
}

// A plan that does not begin the model begins with what the host has carried over. Nothing of a
// model is under way when a step begins, so this waits for nothing.
static void bring_in(const struct nb_device_model *m, VkCommandBuffer c, uint32_t bucket)
{
    copy_rows(m, c, bucket, m->extent.padded_rows, &m->buffers.carry,
              &m->buffers.value[NB_VALUE_X]);
    barrier(&m->device->vk, c, &copying, &computing);
}

// What a scope ends with: hidden states that go to another device, vectors, or logits.
static void bring_out(const struct nb_device_model *m, VkCommandBuffer c, uint32_t bucket,
                      enum nb_vulkan_scope scope)
{
    const struct nb_vulkan_buffers *b = &m->buffers;
    const struct nb_vk *vk = &m->device->vk;
    const bool carries = scope == NB_VULKAN_BODY && !m->plan->ends,
               shows = scope == NB_VULKAN_SHOWN;
    if (scope == NB_VULKAN_BODY && !carries)
        return;
    if (carries || shows)
        barrier(vk, c, &computing, &copying);
    if (carries)
        copy_rows(m, c, bucket, m->extent.padded_rows, &b->value[NB_VALUE_X], &b->carry);
    if (shows) {
        const enum nb_value v = m->plan->ops[m->plan->result].out.value;
        copy_rows(m, c, bucket, m->extent.wanted_rows,
                  b->tail[v].buffer ? &b->tail[v] : &b->value[v], &b->shown);
    }
    barrier(vk, c, carries || shows ? &copying : &computing, &reading);
}

// --- Recording

// Whether dispatch i is the first of its section of its layer.
static bool begins_section(const struct nb_device_model *m, uint32_t i)
{
    const struct nb_vulkan_dispatch *p = &m->program.dispatches[i];
    const struct nb_op *op = &m->plan->ops[p->op], *before = i ? &m->plan->ops[p[-1].op] : NULL;
    return !before || op->section != before->section || op->layer != before->layer;
}

static bool begins_layer(const struct nb_device_model *m, uint32_t i)
{
    return m->plan->ops[m->program.dispatches[i].op].section == NB_SECTION_QKV &&
           begins_section(m, i);
}

static void record(const struct nb_device_model *m, const struct nb_vulkan_segment *s,
                   uint32_t bucket, VkCommandBuffer c, bool timed)
{
    const struct nb_vk *vk = &m->device->vk;
    uint32_t query = s->query;
    if (timed)
        vk->CmdResetQueryPool(c, m->recordings.queries, query, s->n_queries);
    if (s->first == 0 && !m->plan->begins)
        bring_in(m, c, bucket);
    for (uint32_t i = s->first; i < s->end; i++) {
        const struct nb_vulkan_dispatch *p = &m->program.dispatches[i];
        if (timed && (i == s->first || begins_section(m, i)))
            vk->CmdWriteTimestamp(c, computing.stages, m->recordings.queries, query++);
        if (nb_vulkan_skips(m->device, &m->program, p, bucket, false))
            continue;
        if (i > 0 && !p->beside)
            barrier(vk, c, &computing, &computing);
        nb_vulkan_dispatch_indirect(&m->pipelines, c, 1u << bucket, p,
                                    nb_vulkan_tile(p, bucket, false), m->buffers.step.buffer,
                                    m->tables.groups * 4 + i * sizeof(VkDispatchIndirectCommand));
    }
    if (timed)
        vk->CmdWriteTimestamp(c, computing.stages, m->recordings.queries, query++);
}

// Where a recording's submissions begin and end; returns how many they are.
static uint32_t cut(const struct nb_device_model *m, uint32_t first, uint32_t end, bool measured,
                    struct nb_vulkan_segment *ret)
{
    uint32_t n = 0, query = first == end ? 0 : 2 * m->program.dispatches[first].op;
    uint64_t filled = 0;
    for (uint32_t i = first; i < end; i++) {
        if (i > first && !begins_section(m, i)) {
            ret[n - 1].end = i + 1;
            continue;
        }
        const uint64_t ns = m->recordings.part_ns[m->program.dispatches[i].op];
        bool full = measured ? filled + ns > SEGMENT_NS : begins_layer(m, i);
        if (n == 0 || full) {
            ret[n++] = (struct nb_vulkan_segment){.first = i, .query = query, .n_queries = 1};
            query++;
            filled = 0;
        }
        filled += ns;
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

static int record_segment(const struct nb_device_model *m, const struct nb_vulkan_recording *r,
                          const struct nb_vulkan_segment *s, uint32_t bucket,
                          enum nb_vulkan_scope scope, bool timed, VkCommandBuffer *ret)
{
    int rc = nb_vulkan_begin(m->device, false, ret);
    if (rc < 0)
        return rc;
    record(m, s, bucket, *ret, timed);
    if (s == &r->segments[r->n - 1])
        bring_out(m, *ret, bucket, scope);
    return nb_vk_errno(m->device->vk.EndCommandBuffer(*ret));
}

static int make(struct nb_device_model *m, uint32_t bucket, enum nb_vulkan_scope scope,
                bool measured, struct nb_vulkan_recording *ret)
{
    const struct nb_vulkan_program *p = &m->program;
    const uint32_t range[NB_VULKAN_SCOPES][2] = {[NB_VULKAN_BODY] = {0, p->tail},
                                                 [NB_VULKAN_SHOWN] = {p->tail, p->shown},
                                                 [NB_VULKAN_LOGITS] = {p->tail, p->top},
                                                 [NB_VULKAN_BEST] = {p->tail, p->n}};
    struct nb_vulkan_recording r = {.measured = measured};
    r.segments = calloc(m->plan->n_ops, sizeof(*r.segments));
    if (!r.segments)
        return -ENOMEM;
    r.n = cut(m, range[scope][0], range[scope][1], measured, r.segments);
    int rc = 0;
    for (uint32_t i = 0; i < r.n && rc == 0; i++) {
        struct nb_vulkan_segment *s = &r.segments[i];
        rc = record_segment(m, &r, s, bucket, scope, true, &s->commands);
        if (rc == 0 && measured)
            rc = record_segment(m, &r, s, bucket, scope, false, &s->untimed);
    }
    if (rc < 0)
        finish(m, &r);
    else
        *ret = r;
    return rc;
}

void nb_vulkan_recordings_forget(struct nb_device_model *m, uint32_t bucket)
{
    for (int scope = 0; scope < NB_VULKAN_SCOPES; scope++)
        finish(m, &m->recordings.of[scope][bucket]);
}

int nb_vulkan_recording_get(struct nb_device_model *m, uint32_t bucket, enum nb_vulkan_scope scope,
                            struct nb_vulkan_recording **ret)
{
    *ret = &m->recordings.of[scope][bucket];
    return (*ret)->n ? 0 : make(m, bucket, scope, false, *ret);
}

// --- Times

bool nb_vulkan_recording_is_timed(const struct nb_vulkan_recording *r)
{
    return !r->measured || r->steps % TIMED_EACH == 0;
}

// What a recording took, when it was timed.
static void read_times(struct nb_device_model *m, struct nb_vulkan_recording *r, uint32_t bucket)
{
    const struct nb_vk *vk = &m->device->vk;
    struct nb_vulkan_recordings *all = &m->recordings;
    const struct nb_vulkan_segment *last = &r->segments[r->n - 1];
    uint32_t first = r->segments[0].query, n = last->query + last->n_queries - first;
    if (vk->GetQueryPoolResults(m->device->device, all->queries, first, n, n * sizeof(*all->ticks),
                                all->ticks, sizeof(*all->ticks),
                                VK_QUERY_RESULT_64_BIT) != VK_SUCCESS)
        return;
    memset(r->times, 0, sizeof(r->times));
    for (const struct nb_vulkan_segment *s = r->segments; s <= last; s++) {
        const uint64_t *tick = all->ticks + (s->query - first);
        for (uint32_t i = s->first; i < s->end; i++) {
            const struct nb_vulkan_dispatch *p = &m->program.dispatches[i];
            struct nb_op_time *time = &r->times[m->plan->ops[p->op].section];
            time->dispatches += !nb_vulkan_skips(m->device, &m->program, p, bucket, false);
            if (i > s->first && !begins_section(m, i))
                continue;
            all->part_ns[p->op] = (uint64_t)nb_vulkan_elapsed(m->device, tick[0], tick[1]);
            time->ns += all->part_ns[p->op];
            tick++;
        }
    }
}

// Far longer than it was cut for. A single part is as long as it is.
static bool is_too_long(const struct nb_device_model *m, const struct nb_vulkan_segment *s)
{
    uint64_t ns = 0;
    for (uint32_t i = s->first; i < s->end; i++)
        if (i == s->first || begins_section(m, i))
            ns += m->recordings.part_ns[m->program.dispatches[i].op];
    return s->n_queries > 2 && ns > 2 * SEGMENT_NS;
}

int nb_vulkan_recording_learn(struct nb_device_model *m, uint32_t bucket,
                              enum nb_vulkan_scope scope, struct nb_vulkan_recording *r)
{
    const bool timed = nb_vulkan_recording_is_timed(r);
    if (timed)
        read_times(m, r, bucket);
    for (int i = 0; i < NB_SECTIONS; i++) {
        m->recordings.times[i].ns += r->times[i].ns;
        m->recordings.times[i].dispatches += r->times[i].dispatches;
    }
    bool again = ++r->steps == WARM_STEPS;
    for (uint32_t i = 0; i < r->n && r->measured && timed; i++)
        again = again || is_too_long(m, &r->segments[i]);
    if (!again)
        return 0;
    struct nb_vulkan_recording better;
    int rc = make(m, bucket, scope, true, &better);
    if (rc < 0)
        return rc;
    better.steps = r->steps;
    memcpy(better.times, r->times, sizeof(r->times));
    finish(m, r);
    *r = better;
    return 0;
}

// Of the body at most two for each op, where every op is a submission of its own; then the tail's.
int nb_vulkan_recordings_init(struct nb_device_model *m)
{
    struct nb_vulkan_recordings *r = &m->recordings;
    const VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                        .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                        .queryCount = 2 * m->plan->n_ops};
    r->ticks = calloc(info.queryCount, sizeof(*r->ticks));
    r->part_ns = calloc(m->plan->n_ops, sizeof(*r->part_ns));
    if (!r->ticks || !r->part_ns)
        return -ENOMEM;
    return nb_vk_errno(m->device->vk.CreateQueryPool(m->device->device, &info, NULL, &r->queries));
}

void nb_vulkan_recordings_finish(struct nb_device_model *m)
{
    struct nb_vulkan_recordings *r = &m->recordings;
    for (uint32_t i = 0; i < NB_VULKAN_BUCKETS; i++)
        nb_vulkan_recordings_forget(m, i);
    m->device->vk.DestroyQueryPool(m->device->device, r->queries, NULL);
    free(r->ticks);
    free(r->part_ns);
}
