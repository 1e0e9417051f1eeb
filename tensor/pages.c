// Mapping and joining pages of 2 MiB.
#include "tensor/pages.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE ((size_t)2 << 20)

#ifndef MADV_COLLAPSE // glibc before 2.37
#define MADV_COLLAPSE 25
#endif

const void *nb_pages_map(int fd, size_t bytes)
{
    // More than is needed, so that an aligned part is in it; the rest is given back.
    uint8_t *all = mmap(NULL, bytes + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED)
        return NULL;
    uint8_t *at = all + (HUGE - (uintptr_t)all % HUGE) % HUGE;
    void *p = mmap(at, bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
    if (p == MAP_FAILED) {
        munmap(all, bytes + HUGE);
        return NULL;
    }
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), end = (bytes + page - 1) / page * page;
    if (at > all)
        munmap(all, (size_t)(at - all));
    if (at + end < all + bytes + HUGE)
        munmap(at + end, (size_t)(all + bytes + HUGE - (at + end)));
    return p;
}

void nb_pages_join(int fd, size_t bytes)
{
    void *p = (void *)(uintptr_t)nb_pages_map(fd, bytes);
    if (!p)
        return;
    (void)madvise(p, bytes, MADV_COLLAPSE);
    munmap(p, bytes);
}
