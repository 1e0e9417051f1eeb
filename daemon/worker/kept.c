// What the device keeps from one start to the next: read from the broker's fd, sent back as a
// sealed memfd. This process opens no file for it.
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

static int read_kept(int fd, void **ret, size_t *ret_bytes)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || !st.st_size)
        return 0;
    if (st.st_size > NB_CACHE_MAX)
        return -EFBIG;
    void *kept = malloc((size_t)st.st_size);
    int r = kept ? read_all(fd, kept, (size_t)st.st_size) : -ENOMEM;
    if (r < 0) {
        free(kept);
        return r;
    }
    *ret = kept;
    *ret_bytes = (size_t)st.st_size;
    return 0;
}

int nb_kept_read(void **ret, size_t *ret_bytes)
{
    int r = read_kept(NB_CACHE_FD, ret, ret_bytes);
    close(NB_CACHE_FD);
    return r;
}

static int seal(const void *data, size_t bytes)
{
    int fd = memfd_create("nibble-cache", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    int r = 0;
    for (size_t at = 0; at < bytes && r == 0;) {
        ssize_t n = write(fd, (const char *)data + at, bytes - at);
        r = n < 0 ? -errno : 0;
        at += n < 0 ? 0 : (size_t)n;
    }
    if (r == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) < 0)
        r = -errno;
    if (r < 0)
        close(fd);
    return r < 0 ? r : fd;
}

void nb_kept_send(struct nb_device *device)
{
    void *blob;
    size_t bytes;
    int r = device->ops->cache ? device->ops->cache(device, &blob, &bytes) : 0;
    if (r > 0) {
        r = seal(blob, bytes);
        free(blob);
    }
    if (r < 0)
        nb_log("what the device keeps is not saved: %s", strerror(-r));
    if (r <= 0)
        return;
    struct nb_wire_header packet = {0};
    nb_link_send_fd(&packet, NB_LINK_CACHE, sizeof(packet), r);
    close(r);
}
