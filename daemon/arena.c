// A channel's memory is charged to its user until nobody has it any more, whoever that may be: the
// client, whom it passed the descriptor to, a process that it forked, a packet under way, the
// worker. Only the kernel knows them all. Every description of the memory is one that was opened
// (through /proc, as memfd_create's own is not counted), so an exclusive lease on ours is refused
// as long as there is another one, open or mapped.
#include "daemon/arena.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/broker.h"
#include "daemon/ledger.h"
#include "daemon/log.h"
#include "daemon/refusal.h"
#include "machine/bounds.h"

#define FIRST_LOOK_US UINT64_C(10000) // a client and a worker let go within a step, as a rule
#define LAST_LOOK_US  UINT64_C(1000000)
#define NEXT_SLICE_US UINT64_C(1000)
#define SLICE         (UINT64_C(8) << 20) // of pages that are freed at once

struct nb_arena {
    TAILQ_ENTRY(nb_arena) entry; // of the broker's that were left
    struct nb_broker *broker;
    struct nb_charge charge;
    uint64_t bytes, freed; // the pages before `freed` were freed
    int fd;
    int gone;                 // nobody else has it
    uint64_t look_us, due_us; // from look to look, and the next one: who keeps many costs little
};

static void look(struct nb_broker *broker, int all);

// ---- Making one

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

int nb_memfd(const char *name)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) // before Linux 6.3
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    return fd < 0 ? -errno : fd;
}

int nb_memfd_sized(const char *name, uint64_t bytes)
{
    int fd = nb_memfd(name);
    if (fd < 0)
        return fd;
    if (ftruncate(fd, (off_t)bytes) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    return fd;
}

static int open_again(int fd)
{
    char path[40];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int again = open(path, O_RDWR | O_CLOEXEC);
    return again < 0 ? -errno : again;
}

static int make_files(uint64_t bytes, int *ret_ours, int *ret_theirs)
{
    int fd = nb_memfd_sized("nibble-channel", bytes);
    if (fd < 0)
        return fd;
    int ours = open_again(fd), theirs = open_again(fd);
    close(fd);
    if (ours >= 0 && theirs >= 0) {
        *ret_ours = ours;
        *ret_theirs = theirs;
        return 0;
    }
    int rc = ours < 0 ? ours : theirs;
    if (ours >= 0)
        close(ours);
    if (theirs >= 0)
        close(theirs);
    return rc;
}

static int take_charge(struct nb_broker *broker, uid_t uid, uint64_t bytes, int anyway,
                       struct nb_charge *ret, struct nb_refusal *refusal)
{
    const uint64_t amount[NB_RES_COUNT] = {[NB_RES_BYTES] = bytes, [NB_RES_FDS] = 1};
    if (anyway)
        return nb_charge_anyway(&broker->ledger, uid, amount, ret);
    int rc = nb_charge_take(&broker->ledger, uid, amount, ret, refusal);
    if (rc != NIBBLE_E_QUOTA || TAILQ_EMPTY(&broker->left) ||
        nb_now_us() - broker->looked_us < FIRST_LOOK_US)
        return rc;
    look(broker, 1); // perhaps some of it has gone meanwhile
    return nb_charge_take(&broker->ledger, uid, amount, ret, refusal);
}

int nb_arena_create(struct nb_broker *broker, uid_t uid, uint64_t bytes, int anyway,
                    struct nb_arena **ret, int *ret_fd, struct nb_refusal *refusal)
{
    char reason[NB_LIMIT_TEXT];
    struct nb_arena *arena = calloc(1, sizeof(*arena));
    if (!arena)
        return nb_refuse(refusal, -ENOMEM, "the daemon is out of memory");
    arena->broker = broker;
    arena->bytes = bytes;
    int rc = take_charge(broker, uid, bytes, anyway, &arena->charge, refusal);
    if (rc < 0) {
        free(arena);
        return rc;
    }
    rc = make_files(bytes, &arena->fd, ret_fd);
    if (rc < 0) {
        nb_charge_release(&broker->ledger, &arena->charge);
        free(arena);
        return nb_refuse(refusal, rc, "the daemon cannot make a channel's memory (%s)",
                         nb_limit_reason(rc, reason));
    }
    *ret = arena;
    return 0;
}

// ---- Until it is gone

static void destroy(struct nb_arena *arena)
{
    nb_charge_release(&arena->broker->ledger, &arena->charge);
    close(arena->fd);
    free(arena);
}

// Whether nobody else has it. A kernel without leases on memory cannot tell: there an arena counts
// as gone as soon as it is left.
static int is_gone(const struct nb_arena *arena)
{
    return fcntl(arena->fd, F_SETLEASE, F_WRLCK) == 0 || errno != EAGAIN;
}

static int has_pages(const struct nb_arena *arena)
{
    struct stat st;
    return fstat(arena->fd, &st) == 0 && st.st_blocks;
}

// Frees pages, a slice at a time: the kernel takes a tenth of a second for a large arena's, here or
// when the last descriptor is closed, which may be ours, and nobody would be served meanwhile.
static void free_some(struct nb_arena *arena, uint64_t *left)
{
    uint64_t n = arena->bytes - arena->freed;
    n = n < *left ? n : *left;
    if (n)
        (void)fallocate(arena->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)arena->freed,
                        (off_t)n);
    arena->freed += n;
    *left -= n;
}

static void look_at(struct nb_arena *arena, uint64_t now)
{
    arena->look_us = arena->look_us * 2 < LAST_LOOK_US ? arena->look_us * 2 : LAST_LOOK_US;
    arena->due_us = now + arena->look_us;
    if (!is_gone(arena))
        return;
    arena->gone = 1;
    arena->freed = has_pages(arena) ? 0 : arena->bytes;
}

// Looks at the arenas that are due, or at all of them, and sets the time of the next look.
static void look(struct nb_broker *broker, int all)
{
    struct nb_arena *arena, *next;
    uint64_t left = SLICE, now = nb_now_us(), again = now + LAST_LOOK_US;
    broker->looked_us = now;
    for (arena = TAILQ_FIRST(&broker->left); arena; arena = next) {
        next = TAILQ_NEXT(arena, entry);
        if (!arena->gone && (all || arena->due_us <= now))
            look_at(arena, now);
        free_some(arena, &left);
        if (arena->gone && arena->freed == arena->bytes) {
            TAILQ_REMOVE(&broker->left, arena, entry);
            destroy(arena);
            continue;
        }
        uint64_t due = arena->freed < arena->bytes ? now + NEXT_SLICE_US : arena->due_us;
        again = due < again ? due : again;
    }
    if (TAILQ_EMPTY(&broker->left))
        return;
    sd_event_source_set_time(broker->look, again);
    sd_event_source_set_enabled(broker->look, SD_EVENT_ONESHOT);
}

static int on_look(sd_event_source *source, uint64_t usec, void *user)
{
    look(user, 0);
    return 0;
}

static int look_soon(struct nb_broker *broker)
{
    if (!broker->look)
        return sd_event_add_time_relative(broker->loop, &broker->look, CLOCK_MONOTONIC,
                                          FIRST_LOOK_US, 1, on_look, broker);
    int on = SD_EVENT_OFF;
    uint64_t at = nb_now_us() + FIRST_LOOK_US, due = UINT64_MAX;
    (void)sd_event_source_get_enabled(broker->look, &on);
    (void)sd_event_source_get_time(broker->look, &due);
    if (on == SD_EVENT_OFF || at < due)
        (void)sd_event_source_set_time(broker->look, at);
    return sd_event_source_set_enabled(broker->look, SD_EVENT_ONESHOT);
}

void nb_arena_leave(struct nb_arena *arena, int empty)
{
    if (!arena)
        return;
    arena->freed = empty ? 0 : arena->bytes;
    arena->look_us = FIRST_LOOK_US;
    arena->due_us = nb_now_us() + FIRST_LOOK_US;
    TAILQ_INSERT_TAIL(&arena->broker->left, arena, entry);
    if (look_soon(arena->broker) < 0)
        nb_log(LOG_ERR, "memory of closed channels stays charged: the daemon is out of memory");
}

void nb_arenas_finish(struct nb_broker *broker)
{
    struct nb_arena *arena;
    sd_event_source_disable_unref(broker->look);
    while ((arena = TAILQ_FIRST(&broker->left))) {
        TAILQ_REMOVE(&broker->left, arena, entry);
        destroy(arena);
    }
}
