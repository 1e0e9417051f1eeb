// A plan's matrices on the device: pieces of the image, each imported where it lies or copied to a
// buffer of the device's own. A piece is as long as the device allows a buffer to be, and ends
// between row groups.
#include "engine/vulkan/model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tensor/fail.h"

#define GAP           (64u << 10) // between matrices of one piece: norms and biases lie there
#define STAGING_BYTES (16u << 20)
#define SAMPLE_BYTES  (16u << 20) // that decides between importing and copying
#define IMPORT_COSTS  1.1         // so much slower, an import is still better than a second copy

// --- Pieces

static int by_address(const void *a, const void *b)
{
    const struct nb_packed *x = *(const struct nb_packed *const *)a;
    const struct nb_packed *y = *(const struct nb_packed *const *)b;
    return (x->data > y->data) - (x->data < y->data);
}

// The plan's matrices in the order of the image; one that serves twice is there twice.
static uint32_t list_matrices(const struct nb_plan *plan, const struct nb_packed **ret)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < plan->n_ops; i++)
        for (int j = 0; j < 3; j++)
            if (plan->ops[i].m[j].w)
                ret[n++] = plan->ops[i].m[j].w;
    qsort(ret, n, sizeof(*ret), by_address);
    return n;
}

static int begin_piece(struct nb_device_model *m, const uint8_t *at, size_t page)
{
    struct nb_vulkan_piece *more = realloc(m->pieces, (m->n_pieces + 1) * sizeof(*more));
    if (!more)
        return -ENOMEM;
    m->pieces = more;
    size_t lead = (uintptr_t)at % page;
    m->pieces[m->n_pieces++] = (struct nb_vulkan_piece){.from = at - lead, .bytes = lead};
    return 0;
}

// Lays a matrix into the last piece as far as it has room, the rest into new ones.
static int cut_matrix(struct nb_device_model *m, const struct nb_packed *w, size_t limit,
                      size_t page)
{
    const uint8_t *at = w->data, *end = at + nb_packed_bytes(w);
    while (at < end) {
        struct nb_vulkan_piece *p = m->n_pieces ? &m->pieces[m->n_pieces - 1] : NULL;
        size_t used = p ? (size_t)(at - p->from) : limit;
        size_t room = p && used < limit && used - p->bytes <= GAP ? limit - used : 0;
        size_t groups = room / w->stride, left = (size_t)(end - at) / w->stride;
        if (groups == 0) {
            int rc = begin_piece(m, at, page);
            if (rc < 0)
                return rc;
            continue;
        }
        at += (groups < left ? groups : left) * w->stride;
        p->bytes = (size_t)(at - p->from);
    }
    return 0;
}

int nb_vulkan_weights_cut(struct nb_device_model *m, char *error, size_t error_size)
{
    const struct nb_vulkan_device *d = m->device;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), limit = d->max_buffer - d->max_buffer % page;
    size_t most = d->max_window - d->buffer_alignment;
    if (limit < page + most)
        most = limit > page ? limit - page : 0;
    const struct nb_packed **list = malloc(m->plan->n_ops * 3 * sizeof(*list));
    if (!list)
        return nb_fail(error, error_size, -ENOMEM, "out of memory");
    uint32_t n = list_matrices(m->plan, list);
    int rc = 0;
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        if (list[i]->stride >= most)
            rc = nb_fail(error, error_size, -E2BIG,
                         "16 rows of a matrix take %zu KB and %s binds %zu KB at once: use the CPU",
                         list[i]->stride >> 10, d->info.name, most >> 10);
        else if (i == 0 || list[i]->data != list[i - 1]->data)
            rc = cut_matrix(m, list[i], limit, page);
    }
    free(list);
    for (uint32_t i = 0; i < m->n_pieces; i++)
        m->pieces[i].bytes = (m->pieces[i].bytes + page - 1) / page * page;
    return rc;
}

const struct nb_vulkan_piece *nb_vulkan_piece_of(const struct nb_device_model *m, const uint8_t *at)
{
    uint32_t low = 0, high = m->n_pieces;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        *(m->pieces[middle].from <= at ? &low : &high) = middle;
    }
    return &m->pieces[low];
}

size_t nb_vulkan_weights_bytes(const struct nb_device_model *m)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < m->n_pieces; i++)
        bytes += m->pieces[i].bytes;
    return bytes;
}

// --- Onto the device

static void release(struct nb_device_model *m)
{
    for (uint32_t i = 0; i < m->n_pieces; i++)
        nb_vulkan_buffer_finish(m->device, &m->pieces[i].buffer);
}

static int import(struct nb_device_model *m)
{
    int rc = 0;
    for (uint32_t i = 0; i < m->n_pieces && rc == 0; i++) {
        struct nb_vulkan_piece *p = &m->pieces[i];
        // Read only, whatever the pointer's type says: shaders declare the binding so.
        rc = nb_vulkan_buffer_import(m->device, (void *)(uintptr_t)p->from, p->bytes, &p->buffer);
    }
    if (rc < 0)
        release(m);
    return rc;
}

// Two staging buffers in turn: one is filled while the device copies from the other.
struct upload {
    struct nb_device_model *m;
    const struct nb_device_model_options *options;
    struct nb_vulkan_buffer staging[2];
    VkCommandBuffer commands[2];
    uint64_t busy_until[2]; // of the queue's timeline
    uint32_t turn;
    uint64_t done, total;
};

static int send(struct upload *u, const struct nb_vulkan_piece *p, VkDeviceSize at, VkDeviceSize n)
{
    struct nb_vulkan_device *d = u->m->device;
    struct nb_vulkan_queue *q = d->copies;
    uint32_t turn = u->turn;
    u->turn = !turn;
    int rc = nb_vulkan_wait(d, q, u->busy_until[turn]);
    if (rc < 0)
        return rc;
    nb_vulkan_release(d, q, &u->commands[turn]);
    memcpy(u->staging[turn].map, p->from + at, n);
    if ((rc = nb_vulkan_begin_on(d, q, true, &u->commands[turn])) < 0)
        return rc;
    d->vk.CmdCopyBuffer(u->commands[turn], u->staging[turn].buffer, p->buffer.buffer, 1,
                        &(VkBufferCopy){0, at, n});
    rc = nb_vk_errno(d->vk.EndCommandBuffer(u->commands[turn]));
    if (rc == 0)
        rc = nb_vulkan_submit(d, q, u->commands[turn], &u->busy_until[turn]);
    u->done += n;
    if (rc == 0 && u->options->on_progress)
        u->options->on_progress(u->options->user, u->done, u->total);
    return rc;
}

static int copy_piece(struct upload *u, struct nb_vulkan_piece *p)
{
    int rc = nb_vulkan_buffer_init(u->m->device, p->bytes, NB_VULKAN_DEVICE, &p->buffer);
    for (VkDeviceSize at = 0; at < p->bytes && rc == 0; at += STAGING_BYTES)
        rc = send(u, p, at, p->bytes - at < STAGING_BYTES ? p->bytes - at : STAGING_BYTES);
    return rc;
}

static int copy(struct nb_device_model *m, const struct nb_device_model_options *options)
{
    struct nb_vulkan_device *d = m->device;
    struct upload u = {.m = m, .options = options, .total = nb_vulkan_weights_bytes(m)};
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++)
        rc = nb_vulkan_buffer_init(d, STAGING_BYTES, NB_VULKAN_HOST, &u.staging[i]);
    for (uint32_t i = 0; i < m->n_pieces && rc == 0; i++)
        rc = copy_piece(&u, &m->pieces[i]);
    // What was submitted reads the staging buffers, whether the rest went well or not.
    int waited = nb_vulkan_wait(d, d->copies, d->copies->submitted);
    if (waited == 0)
        for (int i = 0; i < 2; i++) {
            nb_vulkan_release(d, d->copies, &u.commands[i]);
            nb_vulkan_buffer_finish(d, &u.staging[i]);
        }
    return rc < 0 ? rc : waited;
}

// --- Where

// Nanoseconds that the device takes to read a sample from there: the better of two passes.
static int time_read(struct nb_vulkan_device *d, VkQueryPool queries,
                     const struct nb_vulkan_buffer *from, const struct nb_vulkan_buffer *to,
                     double *ret)
{
    double best = 0;
    int rc = 0;
    for (int pass = 0; pass < 2 && rc == 0; pass++) {
        const VkPipelineStageFlags stage = VK_PIPELINE_STAGE_TRANSFER_BIT;
        const VkBufferCopy all = {.size = to->bytes};
        uint64_t tick[2];
        VkCommandBuffer c;
        if ((rc = nb_vulkan_begin(d, true, &c)) < 0)
            break;
        d->vk.CmdResetQueryPool(c, queries, 0, 2);
        d->vk.CmdWriteTimestamp(c, stage, queries, 0);
        d->vk.CmdCopyBuffer(c, from->buffer, to->buffer, 1, &all);
        d->vk.CmdWriteTimestamp(c, stage, queries, 1);
        if ((rc = nb_vulkan_run_once(d, c)) < 0)
            break;
        rc = nb_vk_errno(d->vk.GetQueryPoolResults(d->device, queries, 0, 2, sizeof(tick), tick,
                                                   sizeof(*tick), VK_QUERY_RESULT_64_BIT));
        double ns = (double)(tick[1] - tick[0]) * d->tick_ns;
        best = pass == 0 || ns < best ? ns : best;
    }
    if (rc == 0)
        *ret = best;
    return rc;
}

// Reads the beginning of the weights from the host's memory, then from a copy in the device's own.
static int time_both(struct nb_vulkan_device *d, const struct nb_vulkan_piece *p,
                     double *ret_imported, double *ret_copied)
{
    VkDeviceSize bytes = p->bytes < SAMPLE_BYTES ? p->bytes : SAMPLE_BYTES;
    struct nb_vulkan_buffer there = {0}, copy = {0}, sink = {0};
    VkQueryPool queries = VK_NULL_HANDLE;
    const VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                        .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                        .queryCount = 2};
    int rc = nb_vulkan_buffer_import(d, (void *)(uintptr_t)p->from, bytes, &there);
    if (rc == 0)
        rc = nb_vulkan_buffer_init(d, bytes, NB_VULKAN_DEVICE, &copy);
    if (rc == 0)
        rc = nb_vulkan_buffer_init(d, bytes, NB_VULKAN_DEVICE, &sink);
    if (rc == 0)
        rc = nb_vk_errno(d->vk.CreateQueryPool(d->device, &info, NULL, &queries));
    if (rc == 0)
        rc = time_read(d, queries, &there, &copy, ret_imported); // and makes the copy
    if (rc == 0)
        rc = time_read(d, queries, &copy, &sink, ret_copied);
    if (!d->hangs) {
        d->vk.DestroyQueryPool(d->device, queries, NULL);
        nb_vulkan_buffer_finish(d, &sink);
        nb_vulkan_buffer_finish(d, &copy);
        nb_vulkan_buffer_finish(d, &there);
    }
    return rc;
}

void nb_vulkan_weights_choose(struct nb_device_model *m)
{
    struct nb_vulkan_device *d = m->device;
    const struct nb_vulkan_piece *sample = &m->pieces[0];
    if (d->weights == NB_WEIGHTS_IMPORTED || d->weights == NB_WEIGHTS_COPIED)
        return;
    const bool measure = d->weights == NB_WEIGHTS_MEASURED || !d->info.is_cpu;
    double imported, copied;
    const char *why =
        d->info.unified ? "its driver does not take what is only read" : "its memory is its own";
    d->weights = NB_WEIGHTS_COPIED;
    if (d->can_import && !measure) {
        d->weights = NB_WEIGHTS_IMPORTED;
        why = "its memory is the host's";
    } else if (d->can_import && time_both(d, sample, &imported, &copied) == 0) {
        d->weights = imported <= copied * IMPORT_COSTS ? NB_WEIGHTS_IMPORTED : NB_WEIGHTS_COPIED;
        snprintf(d->weights_why, sizeof(d->weights_why), "read at %.0f%% of a copy's speed",
                 100 * copied / imported);
        return;
    }
    snprintf(d->weights_why, sizeof(d->weights_why), "%s", why);
}

int nb_vulkan_weights_load(struct nb_device_model *m, const struct nb_device_model_options *options)
{
    return m->device->weights == NB_WEIGHTS_IMPORTED ? import(m) : copy(m, options);
}

void nb_vulkan_weights_finish(struct nb_device_model *m)
{
    release(m);
    free(m->pieces);
}
