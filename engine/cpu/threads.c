// Threads that spin for some microseconds and then sleep on a futex: a decode step has some 150
// points of synchronisation of less than a microsecond, and an idle service must cost nothing. Who
// is waited for may wait for this very processor, so the spin is short. It never yields: whoever
// yields to a thread at idle priority has the processor back with the next tick, milliseconds
// later, while one that sleeps has it as soon as it is woken.
#include "engine/cpu/threads.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "machine/clock.h"

#define SPIN_NS     6000
#define TAKE_BITS   24 // of a cursor: units taken; the rest is the share's id
#define MAX_THREADS 256
#define LINE        64

// A word that threads wait on: it changes, and those who sleep are counted so that nobody wakes in
// vain.
struct gate {
    _Alignas(LINE) atomic_uint word;
    atomic_uint sleepers;
};

struct member {
    _Alignas(LINE) atomic_ullong cursor;
    struct nb_team *team;
    uint32_t index;
    pthread_t thread;
};

struct nb_team {
    struct gate start, pass;
    _Alignas(LINE) atomic_uint arrived;
    uint32_t size, running; // `running`: members whose thread exists
    void (*fn)(void *arg, uint32_t thread);
    void *arg;
    bool quit;
    struct member member[];
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static bool spin(struct gate *g, unsigned seen)
{
    uint64_t begin = 0;
    for (unsigned i = 1;; i++) {
        if (atomic_load_explicit(&g->word, memory_order_acquire) != seen)
            return true;
        relax();
        if (i % 64)
            continue;
        const uint64_t now = nb_now_ns();
        if (!begin)
            begin = now;
        if (now - begin >= SPIN_NS)
            return false;
    }
}

static void gate_wait(struct gate *g, unsigned seen)
{
    if (spin(g, seen))
        return;
    atomic_fetch_add(&g->sleepers, 1);
    while (atomic_load(&g->word) == seen)
        syscall(SYS_futex, &g->word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&g->sleepers, 1);
}

// Sequentially consistent on both words: either the waker sees the sleeper, or the sleeper sees the
// new word.
static void gate_open(struct gate *g)
{
    atomic_fetch_add(&g->word, 1);
    if (atomic_load(&g->sleepers))
        syscall(SYS_futex, &g->word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void nb_team_barrier(struct nb_team *team)
{
    if (team->size == 1)
        return;
    unsigned seen = atomic_load_explicit(&team->pass.word, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 < team->size) {
        gate_wait(&team->pass, seen);
    } else {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        gate_open(&team->pass);
    }
}

static uint32_t part(const struct nb_team *team, const struct nb_share *share, uint32_t thread)
{
    return (uint32_t)((uint64_t)share->units * thread / team->size);
}

// Takes from the part of `owner`. A cursor with another share's id stands for an untouched part:
// nobody has to set cursors before the work begins, so a late thread's part can be taken over
// whole.
static uint32_t take_from(struct nb_team *team, uint32_t owner, const struct nb_share *share,
                          uint32_t *first)
{
    uint32_t begin = part(team, share, owner), all = part(team, share, owner + 1) - begin;
    atomic_ullong *cursor = &team->member[owner].cursor;
    unsigned long long old = atomic_load_explicit(cursor, memory_order_relaxed);
    for (;;) {
        uint32_t taken =
            old >> TAKE_BITS == share->id ? (uint32_t)(old & ((1u << TAKE_BITS) - 1)) : 0;
        if (taken >= all)
            return 0;
        uint32_t n = (all - taken + 1) / 2;
        n = n < share->most ? n : share->most;
        unsigned long long next = (unsigned long long)share->id << TAKE_BITS | (taken + n);
        if (atomic_compare_exchange_weak_explicit(cursor, &old, next, memory_order_relaxed,
                                                  memory_order_relaxed)) {
            *first = begin + taken;
            return n;
        }
    }
}

uint32_t nb_team_take(struct nb_team *team, uint32_t thread, const struct nb_share *share,
                      uint32_t *first)
{
    for (uint32_t i = 0; i < team->size; i++) {
        uint32_t owner = thread + i < team->size ? thread + i : thread + i - team->size;
        uint32_t n = take_from(team, owner, share, first);
        if (n)
            return n;
    }
    return 0;
}

static void *member_main(void *arg)
{
    struct member *m = arg;
    struct nb_team *team = m->team;
    for (unsigned seen = 0;; seen++) {
        gate_wait(&team->start, seen);
        if (team->quit)
            return NULL;
        team->fn(team->arg, m->index);
        nb_team_barrier(team);
    }
}

void nb_team_run(struct nb_team *team, void (*fn)(void *arg, uint32_t thread), void *arg)
{
    team->fn = fn;
    team->arg = arg;
    gate_open(&team->start);
    fn(arg, 0);
    nb_team_barrier(team);
}

int nb_team_create(uint32_t threads, struct nb_team **ret)
{
    if (!threads || threads > MAX_THREADS)
        return -EINVAL;
    size_t bytes = sizeof(struct nb_team) + threads * sizeof(struct member);
    struct nb_team *team = aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE);
    if (!team)
        return -ENOMEM;
    *team = (struct nb_team){.size = threads, .running = 1};
    for (uint32_t i = 0; i < threads; i++)
        team->member[i] = (struct member){.team = team, .index = i};
    for (; team->running < threads; team->running++) {
        struct member *m = &team->member[team->running];
        int rc = -pthread_create(&m->thread, NULL, member_main, m);
        if (rc < 0) {
            nb_team_destroy(team);
            return rc;
        }
    }
    *ret = team;
    return 0;
}

void nb_team_destroy(struct nb_team *team)
{
    if (!team)
        return;
    team->quit = true;
    gate_open(&team->start);
    for (uint32_t i = 1; i < team->running; i++)
        pthread_join(team->member[i].thread, NULL);
    free(team);
}

uint32_t nb_team_size(const struct nb_team *team)
{
    return team->size;
}
