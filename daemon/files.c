// Files that clients hand over: looked at when they come, never read here. See files.h.
#include "daemon/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/broker.h"
#include "daemon/drop.h"
#include "daemon/refusal.h"
#include "libclient/sentence.h"

#define FILE_MAX (UINT64_C(1) << 46)

uint32_t nb_files_count(const struct nb_files *files)
{
    const struct nb_file *file;
    uint32_t n = 0;
    TAILQ_FOREACH(file, files, entry)
        n++;
    return n;
}

struct nb_file_id *nb_files_identify(const struct nb_files *files)
{
    const struct nb_file *file;
    uint32_t n = 0;
    struct nb_file_id *ids = calloc(nb_files_count(files) + 1, sizeof(*ids));
    if (!ids)
        return NULL;
    TAILQ_FOREACH(file, files, entry)
        ids[n++] = file->id;
    return ids;
}

static bool is_same_time(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

static bool is_same(const struct nb_file_id *a, const struct nb_file_id *b)
{
    return !strcmp(a->name, b->name) && a->device == b->device && a->inode == b->inode &&
           a->size == b->size && is_same_time(&a->modified, &b->modified) &&
           is_same_time(&a->changed, &b->changed);
}

bool nb_files_are_same(const struct nb_file_id *a, const struct nb_file_id *b, uint32_t n)
{
    uint32_t i = 0;
    while (i < n && is_same(&a[i], &b[i]))
        i++;
    return i == n;
}

void nb_files_drop(struct nb_broker *broker, struct nb_files *files)
{
    struct nb_file *file;
    while ((file = TAILQ_FIRST(files))) {
        TAILQ_REMOVE(files, file, entry);
        nb_drop(broker, file->fd, &file->charge);
        free(file);
    }
}

// ---- Requests

// A name is shown, and compared with what a model's other files say. Nothing is opened by it.
static int check_name(const struct nb_files *files, const char name[NB_WIRE_FILE_NAME],
                      struct nb_refusal *refusal)
{
    char clean[NB_WIRE_FILE_NAME];
    const struct nb_file *file;
    memcpy(clean, name, sizeof(clean));
    nb_sentence_clean(clean, sizeof(clean));
    if (!*name || memcmp(clean, name, strlen(clean) + 1) != 0)
        return nb_refuse(refusal, -EINVAL,
                         "a file's name is 1 to %d bytes of UTF-8 without control characters",
                         NB_WIRE_FILE_NAME - 1);
    TAILQ_FOREACH(file, files, entry)
        if (!strcmp(file->id.name, name))
            return nb_refuse(refusal, -EINVAL, "the file %.160s came already", name);
    if (nb_files_count(files) >= NB_WIRE_FILES)
        return nb_refuse(refusal, NIBBLE_E_FORMAT, "a model has %d files at most", NB_WIRE_FILES);
    return 0;
}

static int check_file(int fd, struct nb_file_id *ret, struct nb_refusal *refusal)
{
    struct stat st;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return nb_refuse(refusal, NIBBLE_E_FORMAT, "%.160s is no regular file", ret->name);
    // Read-only, as the loader must not be able to change the administrator's file.
    if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_PATH))
        return nb_refuse(refusal, -EBADF, "%.160s must be opened for reading alone", ret->name);
    if (st.st_size <= 0 || (uint64_t)st.st_size > FILE_MAX)
        return nb_refuse(refusal, NIBBLE_E_FORMAT, "%.160s has %lld bytes: no model has that",
                         ret->name, (long long)st.st_size);
    ret->device = st.st_dev;
    ret->inode = st.st_ino;
    ret->size = (uint64_t)st.st_size;
    ret->modified = st.st_mtim;
    ret->changed = st.st_ctim; // nobody can set it back
    return 0;
}

static int take(struct nb_client *client, const struct nb_wire_file *request, int *fd,
                struct nb_refusal *refusal)
{
    static const uint64_t amount[NB_RES_COUNT] = {[NB_RES_FDS] = 1};
    int rc = check_name(&client->files, request->name, refusal);
    if (rc < 0)
        return rc;
    struct nb_file *file = calloc(1, sizeof(*file));
    if (!file)
        return -ENOMEM;
    memcpy(file->id.name, request->name, sizeof(file->id.name));
    rc = check_file(*fd, &file->id, refusal);
    if (rc == 0)
        rc = nb_charge_take(&client->broker->ledger, client->uid, amount, &file->charge, refusal);
    if (rc < 0) {
        free(file);
        return rc;
    }
    file->fd = *fd;
    *fd = -1;
    TAILQ_INSERT_TAIL(&client->files, file, entry);
    return 0;
}

// One that is refused takes those before it along: what is loaded next begins anew.
NB_HANDLER(nb_on_file)
{
    const struct nb_wire_file *request = packet;
    int rc = take(client, request, &fds[0], refusal);
    if (rc < 0)
        nb_files_drop(client->broker, &client->files);
    else
        nb_client_done(client, NB_WIRE_FILE, request->header.serial);
    return rc;
}
