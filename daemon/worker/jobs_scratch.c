// See jobs_scratch.h.
#include "daemon/worker/jobs_scratch.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

int nb_jobs_scratch_turn(struct nb_jobs_scratch *s, uint32_t file, uint64_t at)
{
    s->fd = s->work->scratch[file];
    return lseek(s->fd, (off_t)at, SEEK_SET) < 0 ? -errno : 0;
}

int nb_jobs_scratch_write(void *scratch, void *data, size_t bytes)
{
    const struct nb_jobs_scratch *s = scratch;
    const uint8_t *at = data;
    for (ssize_t n; bytes; at += n, bytes -= (size_t)n) {
        n = write(s->fd, at, bytes);
        if (n < 0 && errno != EINTR)
            return -errno;
        n = n < 0 ? 0 : n;
    }
    return 0;
}

int nb_jobs_scratch_read(void *scratch, void *data, size_t bytes)
{
    const struct nb_jobs_scratch *s = scratch;
    uint8_t *at = data;
    for (ssize_t n; bytes; at += n, bytes -= (size_t)n) {
        n = read(s->fd, at, bytes);
        if (n == 0 || (n < 0 && errno != EINTR))
            return n < 0 ? -errno : -EBADMSG;
        n = n < 0 ? 0 : n;
    }
    return 0;
}

int nb_jobs_scratch_clear(const struct nb_work *work, struct nb_error *ret_error)
{
    for (uint32_t i = 0; i < NB_JOB_SCRATCH; i++)
        if (ftruncate(work->scratch[i], 0) < 0)
            return nb_fail(ret_error, -errno, "the state directory cannot be written: %s",
                           strerror(errno));
    return 0;
}
