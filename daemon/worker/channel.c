// The memory shared with one client: mapping it, taking submissions, posting completions, sleeping
// and waking. It knows nothing of what the submissions ask for.
#include "daemon/worker/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/worker/embed.h"
#include "daemon/worker/matrices.h"
#include "daemon/worker/serve.h"
#include "daemon/worker/worker.h"
#include "engine/engine.h"
#include "libclient/sentence.h"

// More than all jobs of a channel can bring in one step. A replay whose client wants its texts
// again is the only other way to get there.
#define BACKLOG_MAX (1u << 18)

static int map_memory(struct nb_channel *c, int memfd)
{
    int seals = fcntl(memfd, F_GET_SEALS);
    struct stat st;
    if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) != (F_SEAL_SHRINK | F_SEAL_GROW))
        return -EPERM;
    if (fstat(memfd, &st) < 0)
        return -errno;
    if ((uint64_t)st.st_size != c->map_bytes)
        return -EINVAL;
    c->map = mmap(NULL, c->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (c->map == MAP_FAILED)
        return -errno;
    c->ring = c->map;
    return 0;
}

int nb_channel_open(const struct nb_link_channel_add *add, int memfd, int sock,
                    struct nb_channel **ret)
{
    if (add->arena_bytes < NB_ARENA_MIN || add->arena_bytes > NB_ARENA_MAX || !add->channel)
        return -EINVAL;
    struct nb_channel *c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    c->key = add->channel;
    c->arena_bytes = add->arena_bytes;
    c->awaited = add->memories;
    c->map_bytes = NB_CHANNEL_BYTES(add->arena_bytes);
    int rc = map_memory(c, memfd);
    if (rc < 0) {
        free(c);
        return rc;
    }
    c->sock = sock;
    c->uid = add->uid;
    for (uint32_t i = 0; i < NB_SESSIONS_MAX; i++)
        c->sessions[i].channel = c;
    close(memfd);
    *ret = c;
    return 0;
}

void nb_channel_close_session(struct nb_channel *c, uint32_t id)
{
    struct nb_session *session = &c->sessions[id];
    if (!session->sequence)
        return;
    if (session->job)
        nb_job_cancel(session->job);
    nb_sequence_destroy(session->sequence);
    session->sequence = NULL;
    atomic_fetch_sub(&c->page->sessions, 1);
    atomic_fetch_sub(&c->model->page->sessions, 1);
}

void nb_channel_close(struct nb_channel *c)
{
    for (uint32_t i = 0; i < NB_JOBS_MAX; i++)
        if (c->jobs[i].user_data)
            nb_job_drop(&c->jobs[i]);
    for (uint32_t i = 0; i < NB_SESSIONS_MAX; i++)
        nb_channel_close_session(c, i);
    nb_embed_close(c);
    nb_packed_matrices_drop(c, 0);
    for (uint32_t i = 0; i < NB_MEMORIES_MAX; i++)
        nb_region_close(&c->regions[i]);
    free(c->backlog);
    munmap(c->map, c->map_bytes);
    free(c);
}

// Slots of the completion ring that the client has read and that may be written again.
static uint32_t free_slots(struct nb_channel *c)
{
    uint32_t unread = c->cq_tail - atomic_load(&c->ring->cq_head);
    if (unread > NB_CQ_ENTRIES) {
        c->broken = true;
        return 0;
    }
    return NB_CQ_ENTRIES - unread;
}

bool nb_channel_take(struct nb_channel *c, struct nb_submission *ret)
{
    if (c->broken || c->backlog_n || c->awaited)
        return false;
    uint32_t tail = atomic_load_explicit(&c->ring->sq_tail, memory_order_acquire);
    uint32_t waiting = tail - c->sq_head;
    if (waiting > NB_SQ_ENTRIES)
        c->broken = true;
    if (c->broken || !waiting)
        return false;
    const uint8_t *sq = (const uint8_t *)c->map + NB_CHANNEL_SQ_OFFSET;
    memcpy(ret, sq + (c->sq_head & (NB_SQ_ENTRIES - 1)) * sizeof(*ret), sizeof(*ret));
    atomic_signal_fence(memory_order_seq_cst); // the copy is the only look
    atomic_store_explicit(&c->ring->sq_head, ++c->sq_head, memory_order_release);
    return true;
}

static void write_slot(struct nb_channel *c, const struct nb_completion *completion)
{
    uint8_t *cq = (uint8_t *)c->map + NB_CHANNEL_CQ_OFFSET;
    memcpy(cq + (c->cq_tail & (NB_CQ_ENTRIES - 1)) * sizeof(*completion), completion,
           sizeof(*completion));
    atomic_store_explicit(&c->ring->cq_tail, ++c->cq_tail, memory_order_release);
    c->posted = true;
}

static int push_backlog(struct nb_channel *c, const struct nb_completion *completion)
{
    if (c->backlog_n == BACKLOG_MAX)
        return -ENOBUFS;
    if (c->backlog_n == c->backlog_capacity) {
        size_t capacity = c->backlog_capacity ? 2 * c->backlog_capacity : 64;
        void *grown = realloc(c->backlog, capacity * sizeof(*c->backlog));
        if (!grown)
            return -ENOMEM;
        c->backlog = grown;
        c->backlog_capacity = capacity;
    }
    c->backlog[c->backlog_n++] = *completion;
    return 0;
}

void nb_channel_post(struct nb_channel *c, const struct nb_completion *completion)
{
    if (c->broken)
        return;
    if (!c->backlog_n && free_slots(c) > 0)
        write_slot(c, completion);
    else if (push_backlog(c, completion) < 0)
        c->broken = true;
}

void nb_channel_flush(struct nb_channel *c)
{
    if (c->broken)
        return;
    size_t n = free_slots(c);
    if (n > c->backlog_n)
        n = c->backlog_n;
    for (size_t i = 0; i < n; i++)
        write_slot(c, &c->backlog[i]);
    c->backlog_n -= n;
    if (c->backlog_n && n)
        memmove(c->backlog, c->backlog + n, c->backlog_n * sizeof(*c->backlog));
    if (c->posted && nb_ring_publish(&c->ring->cq_tail, c->cq_tail, &c->ring->client_sleeps) &&
        nb_wake_send(c->sock) < 0)
        c->broken = true;
    c->posted = false;
}

bool nb_channel_has_room(struct nb_channel *c)
{
    return !c->backlog_n && free_slots(c) >= c->n_jobs * NB_JOB_SLOTS;
}

bool nb_channel_doze(struct nb_channel *c)
{
    bool held = c->held && c->n_jobs, hungry = held || c->backlog_n;
    atomic_store(&c->ring->worker_sleeps, hungry ? NB_SLEEPS_FOR_ROOM : NB_SLEEPS);
    if (c->backlog_n)
        return !free_slots(c) && !c->broken;
    bool work = atomic_load(&c->ring->sq_tail) != c->sq_head;
    return !work && !(held && nb_channel_has_room(c)) && !c->broken;
}

void nb_channel_wake(struct nb_channel *c)
{
    atomic_store(&c->ring->worker_sleeps, NB_AWAKE);
}

void *nb_channel_range(const struct nb_channel *c, uint64_t offset, uint64_t len, size_t align)
{
    if (offset > c->arena_bytes || len > c->arena_bytes - offset || offset % align)
        return NULL;
    return (uint8_t *)c->map + NB_CHANNEL_ARENA_OFFSET + offset;
}

int nb_channel_copy(struct nb_channel *c, const char *what, uint64_t offset, uint64_t len,
                    size_t align, void **ret)
{
    const void *from = nb_channel_range(c, offset, len, align);
    if (!from)
        return nb_refuse(c, -EINVAL,
                         "%s of %" PRIu64 " bytes at %" PRIu64 ": not all within the %" PRIu64
                         " of the arena, aligned to %zu",
                         what, len, offset, c->arena_bytes, align);
    char *copy = malloc(len + 1);
    if (!copy)
        return nb_refuse(c, -ENOMEM, "no memory for a copy of %s of %" PRIu64 " bytes", what, len);
    memcpy(copy, from, len);
    copy[len] = 0;
    atomic_signal_fence(memory_order_seq_cst);
    *ret = copy;
    return 0;
}

void nb_reason(struct nb_channel *c, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(c->reason, sizeof(c->reason), format, arguments);
    va_end(arguments);
    nb_sentence_clean(c->reason, sizeof(c->reason));
}
