// What kinds of jobs share at their begin and end: files sorted, room made, a result written.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "daemon/worker/jobs.h"
#include "libclient/wire.h"

// Its name goes on behind the prefix.
static bool take(const struct nb_source_file *file, const char *prefix, struct nb_source_file *ret,
                 uint32_t *n)
{
    if (strncmp(file->name, prefix, strlen(prefix)) != 0)
        return false;
    ret[(*n)++] = (struct nb_source_file){file->name + strlen(prefix), file->fd};
    return true;
}

void nb_jobs_sort(const struct nb_work *work, struct nb_jobs_given *ret)
{
    for (uint32_t i = 0; i < work->n_files; i++) {
        const struct nb_source_file *f = &work->files[i];
        if (!take(f, NB_JOB_CALIBRATION, ret->texts, &ret->n_texts) &&
            !take(f, NB_JOB_TEACHER, ret->teacher, &ret->n_teacher) &&
            !take(f, NB_JOB_IMATRIX, ret->imatrix, &ret->n_imatrix))
            ret->model[ret->n_model++] = *f;
    }
}

int nb_jobs_make_room(int fd, uint64_t bytes, uint64_t more, struct nb_error *ret_error)
{
    int rc = nb_jobs_need(bytes + more);
    if (rc < 0)
        return nb_fail(ret_error, rc, "the daemon did not answer");
    if (fallocate(fd, 0, 0, (off_t)bytes) == 0 || errno == EOPNOTSUPP)
        return 0;
    return nb_fail(ret_error, -errno,
                   "the state directory has no room for the result of %llu bytes: %s",
                   (unsigned long long)bytes, strerror(errno));
}

int nb_jobs_write_json(int fd, json_t *root, size_t flags, struct nb_error *ret_error)
{
    if (!root)
        return nb_fail(ret_error, -ENOMEM, "no memory for the report, or a text in it is no UTF-8");
    int rc = ftruncate(fd, 0) < 0 || lseek(fd, 0, SEEK_SET) < 0 ? -errno : 0;
    if (rc == 0 && json_dumpfd(root, fd, flags) < 0)
        rc = errno ? -errno : -EIO;
    if (rc == 0 && fdatasync(fd) < 0)
        rc = -errno;
    json_decref(root);
    return rc < 0 ? nb_fail(ret_error, rc, "the report cannot be written: %s", strerror(-rc)) : 0;
}
