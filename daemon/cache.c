// Device caches: files of the state directory that nobody but the daemon can read or change. The
// worker never opens one: it starts with the old content as an fd and sends a new one as a sealed
// memfd. What the bytes mean is the engine's affair.
#include "daemon/cache.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/broker.h"
#include "daemon/device.h"
#include "daemon/link.h"
#include "daemon/log.h"

#define SEALS    (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)
#define PAUSE_US UINT64_C(1000000) // between two files: writing one holds the broker up
#define NAME     64

// Ours, and nobody else may change it.
static int check_owner(int fd, mode_t type)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    bool fit = (st.st_mode & S_IFMT) == type && st.st_uid == geteuid() && !(st.st_mode & 022);
    return fit ? 0 : -EPERM;
}

static int open_dir(int at, const char *name)
{
    if (mkdirat(at, name, 0700) < 0 && errno != EEXIST)
        return -errno;
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = check_owner(fd, S_IFDIR);
    if (rc < 0)
        close(fd);
    return rc < 0 ? rc : fd;
}

void nb_cache_init(struct nb_broker *broker)
{
    char path[PATH_MAX];
    broker->cache_dir = -1;
    int state = open(broker->state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int dir = state < 0 ? -errno : open_dir(state, "cache");
    int drivers = dir < 0 ? dir : open_dir(dir, "drivers");
    if (state >= 0)
        close(state);
    int rc = drivers;
    if (rc >= 0) {
        close(drivers);
        rc = snprintf(path, sizeof(path), "%s/cache/drivers", broker->state_dir) < PATH_MAX &&
                     realpath(path, broker->drivers_dir)
                 ? 0
                 : -ENAMETOOLONG;
    }
    if (rc < 0) {
        nb_log(LOG_WARNING,
               "%s/cache cannot be used (%s): devices compile their shaders at each start; %s",
               broker->state_dir, strerror(-rc),
               rc == -ENOSPC || rc == -EDQUOT || rc == -EROFS
                   ? "its disk has no room"
                   : "remove it, or correct its owner and mode: it must be the daemon's alone");
        if (dir >= 0)
            close(dir);
        return;
    }
    broker->cache_dir = dir;
}

// The device's own name, wherever it is plugged in. A driver said it: only plain characters go in.
static int file_name(const struct nb_device *device, const char *suffix, char ret[NAME])
{
    const char *name = *device->info.uuid ? device->info.uuid : device->info.name;
    for (const char *c = name; *c; c++)
        if (!isalnum((unsigned char)*c))
            return -EINVAL;
    return snprintf(ret, NAME, "%s%s", name, suffix) < NAME ? 0 : -EINVAL;
}

int nb_cache_open(const struct nb_device *device)
{
    const struct nb_broker *broker = device->broker;
    char name[NAME];
    int fd = -1;
    if (broker->cache_dir >= 0 && file_name(device, "", name) == 0)
        fd = openat(broker->cache_dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0 && check_owner(fd, S_IFREG) < 0) {
        nb_log(LOG_WARNING, "%s/cache/%s is not a file of ours alone and is not used: remove it",
               broker->state_dir, name);
        close(fd);
        fd = -1;
    }
    return fd >= 0 ? fd : open("/dev/null", O_RDONLY | O_CLOEXEC);
}

// A worker may be compromised: the fd may be anything.
static int check_blob(int fd, off_t *ret_bytes)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) < 0)
        return -EINVAL;
    if (st.st_size <= 0 || st.st_size > NB_CACHE_MAX)
        return -EINVAL;
    *ret_bytes = st.st_size;
    return 0;
}

static int copy(int from, int to, off_t bytes)
{
    char buf[65536];
    for (off_t at = 0; at < bytes;) {
        ssize_t n = pread(from, buf, sizeof(buf), at);
        if (n <= 0 || write(to, buf, (size_t)n) != n)
            return n < 0 ? -errno : -EIO;
        at += n;
    }
    return fsync(to) < 0 ? -errno : 0;
}

static int replace(int dir, const char *name, const char *fresh, int from, off_t bytes)
{
    unlinkat(dir, fresh, 0); // of a broker that died in between
    int to = openat(dir, fresh, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (to < 0)
        return -errno;
    int rc = copy(from, to, bytes);
    close(to);
    if (rc == 0 && renameat(dir, fresh, dir, name) < 0)
        rc = -errno;
    if (rc == 0)
        fsync(dir);
    else
        unlinkat(dir, fresh, 0);
    return rc;
}

int nb_cache_save(struct nb_device *device, int fd)
{
    struct nb_broker *broker = device->broker;
    char name[NAME], fresh[NAME];
    off_t bytes;
    int rc = check_blob(fd, &bytes);
    if (rc < 0 || broker->cache_dir < 0)
        return rc;
    uint64_t now = nb_now_us();
    if (device->cached_us && now - device->cached_us < PAUSE_US)
        return 0; // its next one has all of this
    device->cached_us = now;
    rc = file_name(device, "", name);
    if (rc == 0)
        rc = file_name(device, ".new", fresh);
    if (rc == 0)
        rc = replace(broker->cache_dir, name, fresh, fd, bytes);
    if (rc < 0)
        nb_log(LOG_WARNING, "%s/cache: the cache of device %s cannot be written (%s)",
               broker->state_dir, device->info.name, strerror(-rc));
    return 0;
}

void nb_cache_finish(struct nb_broker *broker)
{
    if (broker->cache_dir >= 0)
        close(broker->cache_dir);
    broker->cache_dir = -1;
}
