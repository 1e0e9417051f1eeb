// Who uses which part of a channel's arena. The account is private: nothing in shared memory is
// believed. A block for each slot at most, so a sorted array is all it takes.
#include "libclient/client.h"

#include <errno.h>

#define ALIGNMENT 64u

void nb_arena_init(struct nb_arena *arena, uint64_t size)
{
    *arena = (struct nb_arena){.size = size};
}

int nb_arena_take(struct nb_arena *arena, uint64_t size, uint64_t *ret_at)
{
    if (size > arena->size || arena->n == NB_JOBS_MAX)
        return -ENOSPC;
    size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    uint64_t at = 0;
    unsigned i = 0;
    for (; i < arena->n && arena->used[i].at - at < size; i++)
        at = arena->used[i].at + arena->used[i].size;
    if (arena->size - at < size)
        return -ENOSPC;
    memmove(arena->used + i + 1, arena->used + i, (arena->n - i) * sizeof(*arena->used));
    arena->used[i] = (struct nb_extent){at, size};
    arena->n++;
    *ret_at = at;
    return 0;
}

void nb_arena_give(struct nb_arena *arena, uint64_t at)
{
    for (unsigned i = 0; i < arena->n; i++)
        if (arena->used[i].at == at) {
            arena->n--;
            memmove(arena->used + i, arena->used + i + 1, (arena->n - i) * sizeof(*arena->used));
            return;
        }
}
