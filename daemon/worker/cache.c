// The device cache: read from the broker's fd at the start, sent back as a sealed memfd when there
// is something new. This process opens no file for it.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/worker/worker.h"

static int read_all(int fd, void *to, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        ssize_t n = read(fd, (char *)to + at, bytes - at);
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        at += (size_t)n;
    }
    return 0;
}

static int read_cache(int fd, void **ret, size_t *ret_bytes)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || !st.st_size)
        return 0;
    if (st.st_size > NB_CACHE_MAX)
        return -EFBIG;
    void *cache = malloc((size_t)st.st_size);
    int rc = cache ? read_all(fd, cache, (size_t)st.st_size) : -ENOMEM;
    if (rc < 0) {
        free(cache);
        return rc;
    }
    *ret = cache;
    *ret_bytes = (size_t)st.st_size;
    return 0;
}

int nb_cache_read(void **ret, size_t *ret_bytes)
{
    int rc = read_cache(NB_CACHE_FD, ret, ret_bytes);
    close(NB_CACHE_FD);
    return rc;
}

static int seal(const void *data, size_t bytes)
{
    int fd = memfd_create("nibble-cache", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    int rc = 0;
    for (size_t at = 0; at < bytes && rc == 0;) {
        ssize_t n = write(fd, (const char *)data + at, bytes - at);
        rc = n < 0 ? -errno : 0;
        at += n < 0 ? 0 : (size_t)n;
    }
    if (rc == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) < 0)
        rc = -errno;
    if (rc < 0)
        close(fd);
    return rc < 0 ? rc : fd;
}

void nb_cache_send(struct nb_device *device)
{
    void *blob;
    size_t bytes;
    int rc = device->ops->cache ? device->ops->cache(device, &blob, &bytes) : 0;
    if (rc > 0) {
        rc = seal(blob, bytes);
        free(blob);
    }
    if (rc < 0)
        nb_log("the device cache is not saved: %s", strerror(-rc));
    if (rc <= 0)
        return;
    struct nb_wire_header packet = {0};
    nb_link_send_fd(&packet, NB_LINK_CACHE, sizeof(packet), rc);
    close(rc);
}
