// The files that a job reads, by their identity. A file that the daemon's own user can open again
// by its path stays where it is; of any other the folder gets a copy. Runs before the sandbox is
// entered, reads no byte of a file that it does not copy, and may block: a path may lead anywhere.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "daemon/worker/jobs.h"
#include "libclient/sentence.h"

#define LIST     "files"
#define LIST_MAX (4u << 20) // bytes
#define SOME     (UINT64_C(64) << 20)

// ---- The folder

static int write_all(int fd, const char *data, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, data + done, len - done);
        if (n < 0)
            return -errno;
        done += (size_t)n;
    }
    return 0;
}

int nb_jobs_write(const char *name, const void *data, size_t len)
{
    int fd = openat(NB_JOB_FOLDER_FD, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int rc = fd < 0 ? -errno : write_all(fd, data, len);
    if (rc == 0 && fsync(fd) < 0)
        rc = -errno;
    if (fd >= 0)
        close(fd);
    return rc;
}

static int read_fd(int fd, size_t most, char **ret, size_t *ret_len)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (st.st_size < 0 || (uint64_t)st.st_size > most)
        return -EFBIG;
    char *data = malloc((size_t)st.st_size + 1);
    if (!data)
        return -ENOMEM;
    ssize_t n = pread(fd, data, (size_t)st.st_size, 0);
    if (n != st.st_size) {
        free(data);
        return n < 0 ? -errno : -EIO;
    }
    data[n] = '\0';
    *ret = data;
    *ret_len = (size_t)n;
    return 0;
}

int nb_jobs_read(const char *name, size_t most, char **ret, size_t *ret_len)
{
    int fd = openat(NB_JOB_FOLDER_FD, name, O_RDONLY | O_CLOEXEC);
    int rc = fd < 0 ? -errno : read_fd(fd, most, ret, ret_len);
    if (fd >= 0)
        close(fd);
    return rc;
}

// ---- Identities

struct identity {
    uint64_t device, inode, size;
    int64_t modified_ns, changed_ns;
};

static int64_t nanoseconds(struct timespec t)
{
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int identify(int fd, struct identity *ret)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    *ret = (struct identity){st.st_dev, st.st_ino, (uint64_t)st.st_size, nanoseconds(st.st_mtim),
                             nanoseconds(st.st_ctim)};
    return 0;
}

static bool is_same(const struct identity *a, const struct identity *b)
{
    return a->device == b->device && a->inode == b->inode && a->size == b->size &&
           a->modified_ns == b->modified_ns && a->changed_ns == b->changed_ns;
}

// The very file of that identity by its path, for reading, or -errno. It is looked at before it is
// opened, as opening may do something.
static int open_again(const char *path, const struct identity *id)
{
    char self[48];
    struct identity found = {0};
    int place = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (place < 0)
        return -errno;
    int rc = identify(place, &found);
    if (rc == 0 && !is_same(&found, id))
        rc = -ESTALE;
    snprintf(self, sizeof(self), "/proc/self/fd/%d", place);
    if (rc == 0 && (rc = open(self, O_RDONLY | O_CLOEXEC)) < 0)
        rc = -errno;
    close(place);
    return rc;
}

// ---- From the client

// A name is shown, and compared with what a model's other files say. Nothing is opened by it.
static bool is_name(const struct nb_jobs_files *files, const char name[NB_WIRE_FILE_NAME])
{
    char clean[NB_WIRE_FILE_NAME];
    memcpy(clean, name, sizeof(clean));
    nb_sentence_clean(clean, sizeof(clean));
    bool is = *name && memcmp(clean, name, strlen(clean) + 1) == 0;
    for (uint32_t i = 0; i < files->n; i++)
        is = is && strcmp(files->names[i], name) != 0;
    return is;
}

// The next packet, for which it waits. Its one fd, or -EPROTO.
static int receive_file(struct nb_wire_file *ret)
{
    alignas(8) char packet[NB_WIRE_MAX];
    int fds[NB_WIRE_FDS_MAX], rc;
    size_t n_fds = 0;
    while ((rc = nb_wire_recv(NB_JOB_SOCKET_FD, packet, fds, &n_fds)) == -EAGAIN) {
        struct pollfd p = {.fd = NB_JOB_SOCKET_FD, .events = POLLIN};
        poll(&p, 1, -1);
    }
    memcpy(ret, packet, sizeof(*ret));
    if (rc == sizeof(*ret) && ret->header.type == NB_WIRE_FILE && n_fds == 1)
        return fds[0];
    nb_wire_close_fds(fds, n_fds);
    return -EPROTO;
}

// That the client may read it, it has shown by opening it so: the daemon, who opens it again, may
// read more than the client.
static bool is_readable(int fd)
{
    const int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && !(flags & O_PATH) && (flags & O_ACCMODE) != O_WRONLY;
}

int nb_jobs_files_receive(uint32_t n, struct nb_jobs_files *ret, struct nb_error *e)
{
    struct nb_wire_file packet;
    while (ret->n < n && ret->n < NB_WIRE_FILES) {
        int fd = receive_file(&packet);
        if (fd < 0)
            return nb_fail(e, fd, "the client sent other files than it had said");
        if (!is_name(ret, packet.name))
            return nb_fail(e, -EINVAL,
                           "a file's name is 1 to %d bytes of UTF-8 without control characters, no "
                           "two alike",
                           NB_WIRE_FILE_NAME - 1);
        if (!is_readable(fd))
            return nb_fail(e, -EBADF, "%.200s must be opened for reading", packet.name);
        memcpy(ret->names[ret->n], packet.name, NB_WIRE_FILE_NAME);
        ret->items[ret->n] = (struct nb_source_file){ret->names[ret->n], fd};
        ret->n++;
    }
    close(NB_JOB_SOCKET_FD);
    return 0;
}

// ---- Taking in

struct copy {
    uint32_t index;
    int fd;
};

// Where the kernel says that the file is. A path that JSON cannot hold is none; nor is one whose
// answers are up to a process of the user's, because a run that waits keeps all others waiting.
static bool find_path(int fd, const struct identity *id, char ret[PATH_MAX])
{
    char self[48];
    struct statfs fs;
    if (fstatfs(fd, &fs) < 0 || fs.f_type == FUSE_SUPER_MAGIC)
        return false;
    snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(self, ret, PATH_MAX - 1);
    if (n <= 0 || *ret != '/' || nb_utf8_valid(ret, (size_t)n) != (size_t)n)
        return false;
    ret[n] = '\0';
    int again = open_again(ret, id);
    if (again >= 0)
        close(again);
    return again >= 0;
}

static json_t *describe(const char *name, const struct identity *id, const char *path)
{
    json_t *file =
        json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "name", name, "device", (json_int_t)id->device,
                  "inode", (json_int_t)id->inode, "size", (json_int_t)id->size, "modified",
                  (json_int_t)id->modified_ns, "changed", (json_int_t)id->changed_ns);
    if (file && path)
        json_object_set_new(file, "path", json_string(path));
    return file;
}

static int refuse(struct nb_error *e, int rc, const char *name, const char *what)
{
    return nb_fail(e, rc, "%.200s %s (%s)", name, what, strerror(rc < 0 ? -rc : rc));
}

// By the kernel where it can, else through this process.
static int copy_bytes(int from, int to, uint64_t bytes)
{
    loff_t at = 0;
    char *some = NULL;
    int rc = 0;
    while ((uint64_t)at < bytes && rc == 0) {
        const uint64_t left = bytes - (uint64_t)at;
        ssize_t n = some ? -1 : copy_file_range(from, &at, to, NULL, left < SOME ? left : SOME, 0);
        if (n > 0)
            continue;
        if (!some && !(some = malloc(1u << 20)))
            return -ENOMEM;
        n = pread(from, some, left < 1u << 20 ? left : 1u << 20, at);
        rc = n < 0 ? -errno : n == 0 ? -ESTALE : write_all(to, some, (size_t)n);
        at += n > 0 ? n : 0;
    }
    free(some);
    return rc;
}

static int copy_one(int from, uint32_t index, const struct identity *id)
{
    char name[24];
    struct identity after = {0};
    snprintf(name, sizeof(name), "source.%" PRIu32, index);
    int to = openat(NB_JOB_FOLDER_FD, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (to < 0)
        return -errno;
    int rc = copy_bytes(from, to, id->size);
    if (rc == 0)
        rc = identify(from, &after);
    if (rc == 0 && !is_same(id, &after))
        rc = -ESTALE;
    if (rc == 0 && fsync(to) < 0)
        rc = -errno;
    close(to);
    return rc;
}

static int copy_all(const struct nb_jobs_files *files, const struct identity *ids,
                    const bool *copied, struct nb_error *e)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < files->n; i++)
        bytes += copied[i] ? ids[i].size : 0;
    int rc = bytes ? nb_jobs_need(bytes) : 0;
    if (rc < 0)
        return nb_fail(e, rc, "the daemon did not answer");
    for (uint32_t i = 0; i < files->n && rc == 0; i++)
        if (copied[i] && (rc = copy_one(files->items[i].fd, i, &ids[i])) < 0)
            refuse(e, rc, files->names[i],
                   rc == -ESTALE ? "changed while it was copied"
                                 : "cannot be copied to the state directory");
    return rc;
}

static int write_list(json_t *list, struct nb_error *e)
{
    char *text = json_dumps(list, JSON_COMPACT);
    int rc = text ? nb_jobs_write(LIST, text, strlen(text)) : -ENOMEM;
    free(text);
    return rc < 0 ? nb_fail(e, rc, "the state directory cannot be written: %s", strerror(-rc)) : 0;
}

int nb_jobs_files_store(const struct nb_jobs_files *files, struct nb_error *e)
{
    static struct identity ids[NB_WIRE_FILES];
    static bool copied[NB_WIRE_FILES];
    char path[PATH_MAX];
    json_t *list = json_array();
    int rc = 0;
    for (uint32_t i = 0; i < files->n && rc == 0; i++) {
        const int fd = files->items[i].fd;
        rc = identify(fd, &ids[i]);
        if (rc < 0) {
            refuse(e, rc, files->names[i], "is no regular file that can be read");
            break;
        }
        copied[i] = !find_path(fd, &ids[i], path);
        if (json_array_append_new(list,
                                  describe(files->names[i], &ids[i], copied[i] ? NULL : path)) < 0)
            rc = nb_fail(e, -EINVAL, "%.200s: no memory for its description", files->names[i]);
    }
    if (rc == 0)
        rc = copy_all(files, ids, copied, e);
    if (rc == 0)
        rc = write_list(list, e);
    json_decref(list);
    return rc;
}

// ---- Opening again

static struct identity opened[NB_WIRE_FILES]; // as they were then; of copies, the copies' own

static int open_file(const json_t *file, uint32_t index, const char *name, struct nb_error *e)
{
    char copy[24];
    const char *path = json_string_value(json_object_get(file, "path"));
    const struct identity id = {
        .device = (uint64_t)json_integer_value(json_object_get(file, "device")),
        .inode = (uint64_t)json_integer_value(json_object_get(file, "inode")),
        .size = (uint64_t)json_integer_value(json_object_get(file, "size")),
        .modified_ns = json_integer_value(json_object_get(file, "modified")),
        .changed_ns = json_integer_value(json_object_get(file, "changed")),
    };
    snprintf(copy, sizeof(copy), "source.%" PRIu32, index);
    int fd = path ? open_again(path, &id) : openat(NB_JOB_FOLDER_FD, copy, O_RDONLY | O_CLOEXEC);
    if (!path && fd < 0)
        fd = -errno;
    if (fd == -ESTALE || fd == -ENOENT)
        return nb_fail(e, -ESTALE,
                       "%.200s is not the file any more that the job began with: begin anew", name);
    if (fd < 0)
        return refuse(e, fd, name, "cannot be opened again");
    int rc = identify(fd, &opened[index]);
    return rc < 0 ? refuse(e, rc, name, "cannot be opened again") : fd;
}

int nb_jobs_files_open(struct nb_jobs_files *ret, struct nb_error *e)
{
    char *text = NULL;
    size_t len = 0;
    int rc = nb_jobs_read(LIST, LIST_MAX, &text, &len);
    json_t *list = rc == 0 ? json_loadb(text, len, 0, NULL) : NULL;
    free(text);
    const size_t n = json_array_size(list);
    if (!n || n > NB_WIRE_FILES)
        rc = nb_fail(e, -EIO, "the job's list of files cannot be read");
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        const json_t *file = json_array_get(list, i);
        const char *name = json_string_value(json_object_get(file, "name"));
        snprintf(ret->names[i], sizeof(ret->names[i]), "%.255s", name ? name : "");
        int fd = open_file(file, i, ret->names[i], e);
        ret->items[i] = (struct nb_source_file){ret->names[i], fd};
        ret->n = i + 1;
        rc = fd < 0 ? fd : 0;
    }
    json_decref(list);
    return rc;
}

int nb_jobs_files_check(const struct nb_jobs_files *files, struct nb_error *e)
{
    struct identity now = {0};
    for (uint32_t i = 0; i < files->n; i++) {
        int rc = identify(files->items[i].fd, &now);
        if (rc == 0 && now.size == opened[i].size && now.modified_ns == opened[i].modified_ns)
            continue;
        return nb_fail(e, -ESTALE, "%.200s changed while the job read it: begin anew",
                       files->names[i]);
    }
    return 0;
}
