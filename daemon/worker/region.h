// Memory that a channel's client registered: mapped here, sealed against shrinking, so that nothing
// the client does can make an access inside it fail. What it holds may change at any time.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/link.h"
#include "libclient/ring.h"

struct nb_channel;

struct nb_region {
    uint32_t id; // 0: a free entry
    bool read_only;
    bool constant; // sealed against writing too
    uint8_t *map;
    uint64_t bytes;
    uint64_t packed_bytes; // what packed copies may take
};

// The fd is borrowed. -EPERM without the seal, -EINVAL for what is not inside the file or is there
// already, NIBBLE_E_QUOTA over NB_MEMORIES_MAX, or mmap's errno.
int nb_region_add(struct nb_channel *c, const struct nb_link_memory *add, int fd);
struct nb_region *nb_region_find(struct nb_channel *c, uint32_t id); // NULL: no such one; not 0
void nb_region_close(struct nb_region *r);                           // a free one is fine

// `len` bytes at a place, of the arena or a region, or NULL when they are not all inside, not
// aligned or, with `write`, not to be written.
void *nb_region_range(struct nb_channel *c, const struct nb_place *p, uint64_t len, size_t align,
                      bool write);
