// One client's channel as the serving worker sees it: the mapped rings and arena, its sessions and
// its jobs. All that the client can write is hostile: indices, submissions and the arena are read
// once, into private memory.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/link.h"
#include "daemon/worker/job.h"
#include "daemon/worker/region.h"
#include "libclient/ring.h"

struct nb_serve;
struct nb_worker_model;

struct nb_session {
    struct nb_channel *channel;
    struct nb_sequence *sequence; // NULL: not in use
    struct nb_job *job;           // the one it runs, or NULL
};

struct nb_channel {
    uint64_t key; // the broker's
    struct nb_serve *serve;
    struct nb_worker_model *model;
    struct nb_page_channel *page;
    int sock;
    uint32_t uid;

    void *map;
    uint64_t map_bytes, arena_bytes;
    struct nb_ring_indices *ring;
    uint32_t sq_head, cq_tail; // never read back from the ring

    // Completions that found the ring full; while there are any, sessions are held and no
    // submission is taken, so there are never more than one step and one submission can bring.
    struct nb_completion *backlog;
    size_t backlog_n, backlog_capacity;

    bool held;                      // its sessions are parked until the client reads
    bool broken;                    // it broke the protocol or hung up: to be closed
    bool posted;                    // completions since the last wake
    char reason[NB_REASON_MAX + 1]; // of the failure that is being told, if it has one
    struct nb_session sessions[NB_SESSIONS_MAX];
    struct nb_job jobs[NB_JOBS_MAX];
    uint32_t n_jobs;
    uint64_t text_bytes; // of texts that wait to be tokenized or embedded

    struct nb_region regions[NB_MEMORIES_MAX];
    uint32_t awaited;                       // regions that must come before a submission is taken
    struct nb_matrix_job *first_matrix_job; // in order
    struct nb_packed_matrix *packed;        // copies of matrices in constant regions
    struct nb_embed *first_embed;           // a job whose texts have tokens, in order
    struct nb_lane *lanes;                  // NB_EMBED_LANES, or NULL before the first such job
};

// Checks seals and size, then maps. The fds are the channel's on success. -EPERM without the seals,
// -EINVAL for another size than the broker's message says, or an errno.
int nb_channel_open(const struct nb_link_channel_add *add, int memfd, int sock,
                    struct nb_channel **ret);
// Cancels every job without a word, frees every sequence, unmaps. Its socket is the caller's to
// close.
void nb_channel_close(struct nb_channel *c);

// Cancels the session's job and forgets its sequence; one that is not in use is fine.
void nb_channel_close_session(struct nb_channel *c, uint32_t id);

// The next submission, copied. False: there is none, or its client broke the protocol (`broken`).
bool nb_channel_take(struct nb_channel *c, struct nb_submission *ret);
// Posts a completion; never fails towards the caller: what does not fit waits in the backlog.
void nb_channel_post(struct nb_channel *c, const struct nb_completion *completion);
// Moves backlog to the ring, as far as it has room, and wakes the client for what was posted.
void nb_channel_flush(struct nb_channel *c);
// Whether every job of the channel has room for what one step may bring it.
bool nb_channel_has_room(struct nb_channel *c);
// Tells the client that the worker is about to sleep. False: there is something to do first.
bool nb_channel_doze(struct nb_channel *c);
void nb_channel_wake(struct nb_channel *c);

// `len` bytes at `offset` of the arena, or NULL when they are not all inside or not aligned. To
// write to, or to copy from once.
void *nb_channel_range(const struct nb_channel *c, uint64_t offset, uint64_t len, size_t align);
// A private copy, one NUL longer, in *ret (free it). -EINVAL outside the arena, -ENOMEM; refused
// with `what` it is.
int nb_channel_copy(struct nb_channel *c, const char *what, uint64_t offset, uint64_t len,
                    size_t align, void **ret);

// Keeps the sentence for the client that goes with a failure. The next DONE takes it along if it
// fails (nb_job_done, nb_job_refuse).
__attribute__((format(printf, 2, 3))) void nb_reason(struct nb_channel *c, const char *format, ...);
// The same, and returns the status.
#define nb_refuse(c, status, ...) (nb_reason(c, __VA_ARGS__), (status))
