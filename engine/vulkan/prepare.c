// When a model has which pipelines. All tiles of a GEMM give the same bits, so a model is open
// as soon as each of its dispatches has one that is ready; the best tiles of each count of rows,
// and what finds them out, come later, piece by piece, while nobody waits. Ready is a pipeline that
// has run once, on no rows, because a driver that compiles at the first dispatch (Mesa's CPU
// driver: 30 to 1200 ms a shader) should not do so in a step. Computes nothing.
#include "engine/vulkan/adapters.h"
#include "engine/vulkan/model.h"

#include <errno.h>
#include <stdlib.h>

// --- Making pipelines ready

struct warming {
    struct nb_device_model *m;
    VkCommandBuffer *commands;
    uint32_t n;
};

// Some dispatch that can have the pipeline, and as which tile.
static const struct nb_vulkan_dispatch *user_of(const struct nb_device_model *m, uint32_t pipeline,
                                                uint32_t *ret_tile)
{
    for (uint32_t i = 0; i < m->program.n; i++)
        for (uint32_t t = 0; t < NB_TIER_TILES; t++)
            if (m->program.dispatches[i].pipeline[t] == pipeline) {
                *ret_tile = t;
                return &m->program.dispatches[i];
            }
    return NULL;
}

// A submission for each, not waited for, so that the driver compiles one while the next is made.
static int warm_up(void *user, uint32_t pipeline)
{
    struct warming *w = user;
    struct nb_device_model *m = w->m;
    uint32_t tile = 0;
    uint64_t number;
    const struct nb_vulkan_dispatch *p = user_of(m, pipeline, &tile);
    VkCommandBuffer c;
    int rc = p ? nb_vulkan_begin(m->device, true, &c) : -EINVAL;
    if (rc < 0)
        return rc;
    w->commands[w->n++] = c;
    nb_vulkan_dispatch(&m->pipelines, c, 1, p, tile);
    nb_vulkan_after_dispatch(m->device, c);
    rc = nb_vk_errno(m->device->vk.EndCommandBuffer(c));
    return rc < 0 ? rc : nb_vulkan_submit(m->device, &m->device->compute, c, &number);
}

static int make_and_warm(struct nb_device_model *m, const uint16_t *list, uint32_t n)
{
    struct nb_vulkan_device *d = m->device;
    uint32_t *word = m->buffers.step.map;
    uint64_t before = d->compute.submitted;
    struct warming w = {.m = m, .commands = calloc(n, sizeof(VkCommandBuffer))};
    if (!w.commands)
        return -ENOMEM;
    word[STEP_ROWS] = word[STEP_WANTED] = 0;
    int rc = nb_vulkan_pipelines_make(&m->pipelines, list, n, warm_up, &w);
    // One after the other, so that the time allowed is a submission's.
    for (uint64_t i = before + 1; i <= d->compute.submitted && !d->gone; i++) {
        int waited = nb_vulkan_wait(d, &d->compute, i);
        rc = rc < 0 ? rc : waited;
    }
    for (uint32_t i = 0; i < w.n && !d->hangs; i++)
        nb_vulkan_release(d, &d->compute, &w.commands[i]);
    free(w.commands);
    return rc;
}

static int make_ready(struct nb_device_model *m, const uint16_t *list, uint32_t n)
{
    int rc = m->device->warm ? make_and_warm(m, list, n)
                             : nb_vulkan_pipelines_make(&m->pipelines, list, n, NULL, NULL);
    for (uint32_t i = 0; i < n && rc == 0; i++)
        m->pipelines.list[list[i]].ready = true;
    return rc;
}

// --- Which are wanted

// By steps with the tiles of now, or with the best ones.
static void want_taken(const struct nb_device_model *m, bool best, bool wanted[])
{
    const uint32_t last = nb_vulkan_bucket(m->extent.padded_rows);
    for (uint32_t i = 0; i < m->program.n; i++) {
        const struct nb_vulkan_dispatch *p = &m->program.dispatches[i];
        for (uint32_t b = 0; b <= last; b++)
            if (!nb_vulkan_skips(m->device, &m->program, p, b, best))
                wanted[p->pipeline[nb_vulkan_tile(p, b, best)]] = true;
    }
}

static void want_compared(const struct nb_device_model *m, bool wanted[])
{
    for (uint32_t i = 0; i < m->program.n; i++)
        for (uint32_t t = 0;
             nb_vulkan_tune_wants(m, &m->program.dispatches[i]) && t < NB_TIER_TILES; t++)
            wanted[m->program.dispatches[i].pipeline[t]] = true;
}

// Those that are wanted and not ready, at most `max`.
static uint32_t list_missing(const struct nb_device_model *m, const bool wanted[], uint16_t *ret,
                             uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->pipelines.n && n < max; i++)
        if (wanted[i] && !m->pipelines.list[i].ready)
            ret[n++] = (uint16_t)i;
    return n;
}

// --- From the tiles of now to the best

// Nor is a tile ready while what it leaves to the dispatch after it is not.
static bool is_ready(const struct nb_device_model *m, uint32_t i, uint32_t bucket)
{
    const struct nb_vulkan_dispatch *p = &m->program.dispatches[i], *next = p + 1;
    const bool ready = m->pipelines.list[p->pipeline[p->best[bucket]]].ready;
    if (i + 1 == m->program.n || next->unless != i + 1 ||
        nb_vulkan_skips(m->device, &m->program, next, bucket, true))
        return ready;
    return ready && m->pipelines.list[next->pipeline[next->best[bucket]]].ready;
}

// Steps take the best tiles that are ready; what was recorded with others is recorded again.
static void settle(struct nb_device_model *m)
{
    for (uint32_t b = 0; b <= nb_vulkan_bucket(m->extent.padded_rows); b++) {
        bool changed = false;
        for (uint32_t i = 0; i < m->program.n; i++) {
            struct nb_vulkan_dispatch *p = &m->program.dispatches[i];
            if (p->tile[b] == p->best[b] || !is_ready(m, i, b))
                continue;
            p->tile[b] = p->best[b];
            changed = true;
        }
        if (changed)
            nb_vulkan_recordings_forget(m, b);
    }
}

static void drop_unused(struct nb_device_model *m)
{
    bool wanted[NB_VULKAN_NAMED] = {false};
    want_taken(m, false, wanted);
    for (uint32_t i = 0; i < m->pipelines.n; i++)
        if (!wanted[i])
            nb_vulkan_pipeline_drop(&m->pipelines, i);
}

int nb_vulkan_prepare_first(struct nb_device_model *m)
{
    bool wanted[NB_VULKAN_NAMED] = {false};
    uint16_t list[NB_VULKAN_NAMED];
    int rc = nb_vulkan_tune_begin(m);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < m->program.n; i++)
        for (uint32_t b = 0; b < NB_VULKAN_BUCKETS; b++)
            m->program.dispatches[i].tile[b] = m->device->warm && !m->device->tile
                                                   ? (uint8_t)m->device->tier->first
                                                   : m->program.dispatches[i].best[b];
    want_taken(m, false, wanted);
    return make_ready(m, list, list_missing(m, wanted, list, NB_VULKAN_NAMED));
}

static int prepare(struct nb_device_model *m, uint32_t free_block)
{
    bool wanted[NB_VULKAN_NAMED] = {false};
    uint16_t next;
    int rc = 0;
    want_taken(m, true, wanted);
    uint32_t n = list_missing(m, wanted, &next, 1);
    if (n == 0) {
        want_compared(m, wanted);
        n = list_missing(m, wanted, &next, 1);
    }
    if (n > 0)
        rc = make_ready(m, &next, 1);
    else if (m->tuning)
        rc = nb_vulkan_tune_piece(m, free_block);
    if (rc < 0)
        return rc;
    settle(m);
    if (n > 0 || m->tuning)
        return 1;
    drop_unused(m);
    return 0;
}

int nb_vulkan_prepare(struct nb_device_model *m, uint32_t free_block)
{
    struct nb_device_model *adapted = nb_vulkan_adapted(m);
    nb_vulkan_doing(m->device, "preparing a model");
    int rc = prepare(m, free_block);
    return rc == 0 && adapted ? prepare(adapted, free_block) : rc;
}
