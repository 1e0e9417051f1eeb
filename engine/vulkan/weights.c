// Matrices on the device (weights.h). A piece is as long as the device allows a buffer to be, and
// ends between row groups.
#include "engine/vulkan/weights.h"

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
    const struct nb_matrix *x = *(const struct nb_matrix *const *)a;
    const struct nb_matrix *y = *(const struct nb_matrix *const *)b;
    return (x->packed.data > y->packed.data) - (x->packed.data < y->packed.data);
}

static int begin_piece(struct nb_vulkan_weights *w, const uint8_t *at, size_t page)
{
    struct nb_vulkan_piece *more = realloc(w->pieces, (w->n_pieces + 1) * sizeof(*more));
    if (!more)
        return -ENOMEM;
    w->pieces = more;
    size_t lead = (uintptr_t)at % page;
    w->pieces[w->n_pieces++] = (struct nb_vulkan_piece){.from = at - lead, .bytes = lead};
    return 0;
}

// Lays a matrix, or those of all experts, into the last piece as far as it has room, the rest into
// new ones.
static int cut_matrix(struct nb_vulkan_weights *w, const struct nb_matrix *m, size_t limit,
                      size_t page)
{
    const size_t stride = m->packed.stride;
    const uint8_t *at = m->packed.data, *end = at + nb_matrix_bytes(m);
    while (at < end) {
        struct nb_vulkan_piece *p = w->n_pieces ? &w->pieces[w->n_pieces - 1] : NULL;
        size_t used = p ? (size_t)(at - p->from) : limit;
        size_t room = p && used < limit && used - p->bytes <= GAP ? limit - used : 0;
        size_t groups = room / stride, left = (size_t)(end - at) / stride;
        if (groups == 0) {
            int rc = begin_piece(w, at, page);
            if (rc < 0)
                return rc;
            continue;
        }
        at += (groups < left ? groups : left) * stride;
        p->bytes = (size_t)(at - p->from);
    }
    return 0;
}

int nb_vulkan_weights_cut(const struct nb_vulkan_device *d, const struct nb_matrix *const *list,
                          uint32_t n, struct nb_vulkan_weights *ret, struct nb_error *ret_error)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), limit = d->max_buffer - d->max_buffer % page;
    size_t most = d->max_window - d->buffer_alignment;
    if (limit < page + most)
        most = limit > page ? limit - page : 0;
    const struct nb_matrix **sorted = malloc((n + 1) * sizeof(*sorted));
    if (!sorted)
        return nb_fail(ret_error, -ENOMEM, "out of memory");
    memcpy(sorted, list, n * sizeof(*sorted));
    qsort(sorted, n, sizeof(*sorted), by_address);
    struct nb_vulkan_weights w = {0};
    int rc = 0;
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        const size_t stride = sorted[i]->packed.stride;
        if (stride >= most)
            rc = nb_fail(ret_error, -E2BIG,
                         "16 rows of a matrix take %zu KB and %s binds %zu KB at once: use the CPU",
                         stride >> 10, d->info.name, most >> 10);
        else if ((rc = cut_matrix(&w, sorted[i], limit, page)) < 0)
            nb_fail(ret_error, rc, "out of memory");
    }
    free(sorted);
    for (uint32_t i = 0; i < w.n_pieces; i++)
        w.pieces[i].bytes = (w.pieces[i].bytes + page - 1) / page * page;
    if (rc < 0)
        free(w.pieces);
    else
        *ret = w;
    return rc;
}

const struct nb_vulkan_piece *nb_vulkan_piece_of(const struct nb_vulkan_weights *w,
                                                 const uint8_t *at)
{
    uint32_t low = 0, high = w->n_pieces;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        *(w->pieces[middle].from <= at ? &low : &high) = middle;
    }
    return &w->pieces[low];
}

size_t nb_vulkan_weights_bytes(const struct nb_vulkan_weights *w)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < w->n_pieces; i++)
        bytes += w->pieces[i].bytes;
    return bytes;
}

// --- Onto the device

static void release(struct nb_vulkan_device *d, struct nb_vulkan_weights *w)
{
    for (uint32_t i = 0; i < w->n_pieces; i++)
        nb_vulkan_buffer_finish(d, &w->pieces[i].buffer);
}

static int import(struct nb_vulkan_device *d, struct nb_vulkan_weights *w)
{
    int rc = 0;
    for (uint32_t i = 0; i < w->n_pieces && rc == 0; i++) {
        struct nb_vulkan_piece *p = &w->pieces[i];
        // Read only, whatever the pointer's type says: shaders declare the binding so.
        rc = nb_vulkan_buffer_import(d, (void *)(uintptr_t)p->from, p->bytes, &p->buffer);
    }
    if (rc < 0)
        release(d, w);
    return rc;
}

// Two staging buffers in turn: one is filled while the device copies from the other.
struct upload {
    struct nb_vulkan_device *device;
    const struct nb_device_model_options *options;
    struct nb_vulkan_buffer staging[2];
    VkCommandBuffer commands[2];
    uint64_t busy_until[2]; // of the queue's timeline
    uint32_t next;
    uint64_t done, total;
};

static int send(struct upload *u, const struct nb_vulkan_piece *p, VkDeviceSize at, VkDeviceSize n)
{
    struct nb_vulkan_device *d = u->device;
    struct nb_vulkan_queue *q = d->copies;
    uint32_t next = u->next;
    u->next = !next;
    int rc = nb_vulkan_wait(d, q, u->busy_until[next]);
    if (rc < 0)
        return rc;
    nb_vulkan_release(d, q, &u->commands[next]);
    memcpy(u->staging[next].map, p->from + at, n);
    if ((rc = nb_vulkan_begin_on(d, q, true, &u->commands[next])) < 0)
        return rc;
    d->vk.CmdCopyBuffer(u->commands[next], u->staging[next].buffer, p->buffer.buffer, 1,
                        &(VkBufferCopy){0, at, n});
    rc = nb_vk_errno(d->vk.EndCommandBuffer(u->commands[next]));
    if (rc == 0)
        rc = nb_vulkan_submit(d, q, u->commands[next], &u->busy_until[next]);
    u->done += n;
    if (rc == 0 && u->options->on_progress)
        u->options->on_progress(u->options->user, u->done, u->total);
    return rc;
}

static int copy_piece(struct upload *u, struct nb_vulkan_piece *p)
{
    int rc = nb_vulkan_buffer_init(u->device, p->bytes, NB_VULKAN_DEVICE, &p->buffer);
    for (VkDeviceSize at = 0; at < p->bytes && rc == 0; at += STAGING_BYTES)
        rc = send(u, p, at, p->bytes - at < STAGING_BYTES ? p->bytes - at : STAGING_BYTES);
    return rc;
}

static int copy(struct nb_vulkan_device *d, struct nb_vulkan_weights *w,
                const struct nb_device_model_options *options)
{
    struct upload u = {.device = d, .options = options, .total = nb_vulkan_weights_bytes(w)};
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++)
        rc = nb_vulkan_buffer_init(d, STAGING_BYTES, NB_VULKAN_HOST, &u.staging[i]);
    for (uint32_t i = 0; i < w->n_pieces && rc == 0; i++)
        rc = copy_piece(&u, &w->pieces[i]);
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
        double ns = nb_vulkan_elapsed(d, tick[0], tick[1]);
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

void nb_vulkan_weights_choose(struct nb_vulkan_device *d, const struct nb_vulkan_weights *w)
{
    const struct nb_vulkan_piece *sample = &w->pieces[0];
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

int nb_vulkan_weights_load(struct nb_vulkan_device *d, struct nb_vulkan_weights *w,
                           const struct nb_device_model_options *options)
{
    return d->weights == NB_WEIGHTS_IMPORTED ? import(d, w) : copy(d, w, options);
}

void nb_vulkan_weights_finish(struct nb_vulkan_device *d, struct nb_vulkan_weights *w)
{
    release(d, w);
    free(w->pieces);
    *w = (struct nb_vulkan_weights){0};
}
