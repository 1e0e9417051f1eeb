// The device that a job computes on. A recipe is looked into in a sandbox alone, and drivers come
// before it: so the half that takes a job in leaves the device's name in the job's folder, and the
// half that does it believes no more of that file than that it may name a Vulkan device.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/worker/jobs.h"
#include "daemon/worker/worker.h"

#define NAME       "device"
#define KIND       "vulkan"
#define DIGITS     4
#define TIMEOUT_MS (10 * 60 * 1000) // of a submission: an idle job may wait long for its turn

int nb_jobs_device_begin(int *ret, struct nb_error *e)
{
    int fd = openat(NB_JOB_FOLDER_FD, NAME, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return nb_fail(e, -errno, "the state directory cannot be written: %s", strerror(errno));
    *ret = fd;
    return 0;
}

int nb_jobs_device_keep(int fd, const char *name, struct nb_error *e)
{
    const size_t n = strlen(name);
    if (pwrite(fd, name, n, 0) != (ssize_t)n || fsync(fd) < 0)
        return nb_fail(e, errno ? -errno : -EIO, "the state directory cannot be written: %s",
                       strerror(errno ? errno : EIO));
    return 0;
}

static bool is_vulkan(const char *name)
{
    const size_t before = sizeof(KIND) - 1, n = strlen(name);
    return n > before && n <= before + DIGITS && !strncmp(name, KIND, before) &&
           strspn(name + before, "0123456789") == n - before;
}

int nb_jobs_device_open(struct nb_work *work, struct nb_error *e)
{
    struct nb_device_options options = {.allowed = &work->allowed, .timeout_ms = TIMEOUT_MS};
    char *name = NULL;
    size_t len = 0;
    int rc = nb_jobs_read(NAME, sizeof(KIND) + DIGITS, &name, &len);
    if (rc == -ENOENT || (rc == 0 && len == 0)) { // of a job of a daemon that knew none, or the CPU
        free(name);
        return 0;
    }
    if (rc == 0 && is_vulkan(name)) {
        nb_worker_limit_drivers();
        rc = nb_device_create(name, &options, &work->device, e);
    } else {
        rc = nb_fail(e, rc < 0 ? rc : -EINVAL, "the job's device is not known");
    }
    free(name);
    return rc;
}
