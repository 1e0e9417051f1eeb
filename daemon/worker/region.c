// Mapping what clients register, and finding places in it.
#include "daemon/worker/region.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "daemon/worker/channel.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

static int check_file(const struct nb_link_memory *add, int fd, int *ret_seals)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS); // before the size: it does not shrink any more
    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return -EPERM;
    if (fstat(fd, &st) < 0)
        return -errno;
    uint64_t size = (uint64_t)st.st_size;
    if (!add->bytes || add->offset > size || add->bytes > size - add->offset)
        return -EINVAL;
    *ret_seals = seals;
    return 0;
}

int nb_region_add(struct nb_channel *c, const struct nb_link_memory *add, int fd)
{
    struct nb_region *region = NULL;
    int seals = 0;
    int rc = check_file(add, fd, &seals);
    if (rc < 0)
        return rc;
    if (!add->region || nb_region_find(c, add->region))
        return -EINVAL;
    for (uint32_t i = 0; i < NB_MEMORIES_MAX && !region; i++)
        if (!c->regions[i].id)
            region = &c->regions[i];
    if (!region)
        return NIBBLE_E_QUOTA;
    bool constant = seals & F_SEAL_WRITE;
    bool read_only = add->flags & NB_REGISTER_READ_ONLY || constant || seals & F_SEAL_FUTURE_WRITE;
    // A shared mapping of a write-sealed memfd fails before Linux 6.7; one of a file that others
    // write must be shared to show it.
    void *map = mmap(NULL, add->bytes, read_only ? PROT_READ : PROT_READ | PROT_WRITE,
                     constant ? MAP_PRIVATE : MAP_SHARED, fd, (off_t)add->offset);
    if (map == MAP_FAILED)
        return -errno;
    *region = (struct nb_region){.id = add->region,
                                 .read_only = read_only,
                                 .constant = constant,
                                 .map = map,
                                 .bytes = add->bytes,
                                 .packed_bytes = constant ? add->packed_bytes : 0};
    return 0;
}

struct nb_region *nb_region_find(struct nb_channel *c, uint32_t id)
{
    for (uint32_t i = 0; id && i < NB_MEMORIES_MAX; i++)
        if (c->regions[i].id == id)
            return &c->regions[i];
    return NULL;
}

void nb_region_close(struct nb_region *r)
{
    if (r->id)
        munmap(r->map, r->bytes);
    memset(r, 0, sizeof(*r));
}

void *nb_region_range(struct nb_channel *c, const struct nb_place *p, uint64_t len, size_t align,
                      bool write)
{
    if (p->pad)
        return NULL;
    if (!p->region)
        return nb_channel_range(c, p->offset, len, align);
    const struct nb_region *r = nb_region_find(c, p->region);
    if (!r || (write && r->read_only))
        return NULL;
    bool inside = p->offset <= r->bytes && len <= r->bytes - p->offset;
    return inside && p->offset % align == 0 ? r->map + p->offset : NULL;
}
