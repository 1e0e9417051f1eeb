// What the broker has of a job on the disk: the folder jobs/ID of the state directory, and in it
// the record `job`, lines of key=value. All else there is written by workers. The record is written
// beside and renamed, but not synced here, because that may take long: a worker does it. What it
// lacks after a machine's stop at worst is that a job was paused or finished, and then it runs
// again from its journal.
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/broker.h"
#include "daemon/jobs.h"
#include "daemon/log.h"
#include "libclient/sentence.h"

#define NAME           32
#define REMOVE_TRIES   100 // ten seconds; what is left then, the next start removes
#define REMOVE_WAIT_US 100000
#define GONE           "gone." // before the number of a folder that is being removed
#define LAST           "last"  // the file with the last number
#define RECORD_MAX     4096

static void name_of(uint64_t id, char ret[NAME])
{
    snprintf(ret, NAME, "%" PRIu64, id);
}

// Ours, and nobody else may see or change it.
static int check_owner(int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    return S_ISDIR(st.st_mode) && st.st_uid == geteuid() && !(st.st_mode & 077) ? 0 : -EPERM;
}

static int open_dir(int at, const char *name)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = check_owner(fd);
    if (rc < 0)
        close(fd);
    return rc < 0 ? rc : fd;
}

int nb_jobs_open_dir(struct nb_broker *broker)
{
    int state = open(broker->state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), dir = -errno;
    if (state >= 0) {
        dir =
            mkdirat(state, "jobs", 0700) < 0 && errno != EEXIST ? -errno : open_dir(state, "jobs");
        close(state);
    }
    broker->jobs_dir = dir < 0 ? -1 : dir;
    return dir < 0 ? dir : 0;
}

int nb_jobs_open_folder(const struct nb_service_job *job)
{
    char name[NAME];
    name_of(job->row.id, name);
    return open_dir(job->broker->jobs_dir, name);
}

int nb_jobs_open_result(const struct nb_service_job *job, uint32_t i)
{
    char name[2 * NAME];
    snprintf(name, sizeof(name), "%" PRIu64 "/result.%" PRIu32, job->row.id, i);
    int fd = openat(job->broker->jobs_dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

uint64_t nb_jobs_journal_bytes(const struct nb_service_job *job)
{
    char name[2 * NAME];
    struct stat st;
    snprintf(name, sizeof(name), "%" PRIu64 "/journal", job->row.id);
    return fstatat(job->broker->jobs_dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0
               ? 0
               : (uint64_t)st.st_size;
}

// ---- Small files

static int read_small(int at, const char *name, char *ret, size_t size)
{
    int fd = openat(at, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, ret, size - 1);
    int rc = n < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    ret[n < 0 ? 0 : n] = '\0';
    return rc;
}

static int write_small(int at, const char *name, const char *text, size_t len)
{
    char fresh[2 * NAME];
    snprintf(fresh, sizeof(fresh), "%s.new", name);
    int fd = openat(at, fresh, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    int rc = fd < 0 ? -errno : 0;
    if (rc == 0) {
        ssize_t n = write(fd, text, len);
        rc = n == (ssize_t)len ? 0 : n < 0 ? -errno : -ENOSPC;
    }
    if (fd >= 0)
        close(fd);
    if (rc == 0 && renameat(at, fresh, at, name) < 0)
        rc = -errno;
    return rc;
}

// ---- Numbers and folders

// A number is never used again, so that nobody steers a job that he does not mean.
static int next_id(struct nb_broker *broker, uint64_t *ret)
{
    char text[NAME];
    int n = snprintf(text, sizeof(text), "%" PRIu64 "\n", broker->last_job + 1);
    int rc = write_small(broker->jobs_dir, LAST, text, (size_t)n);
    if (rc == 0)
        *ret = ++broker->last_job;
    return rc;
}

int nb_jobs_make_folder(struct nb_broker *broker, uint64_t *ret_id)
{
    char name[NAME];
    uint64_t id = 0;
    int rc = next_id(broker, &id);
    if (rc < 0)
        return rc;
    name_of(id, name);
    if (mkdirat(broker->jobs_dir, name, 0700) < 0)
        return -errno;
    *ret_id = id;
    return 0;
}

struct removal {
    int dir;
    char name[NAME + sizeof(GONE)];
};

static void empty(int folder)
{
    DIR *files = fdopendir(folder);
    if (!files) {
        close(folder);
        return;
    }
    for (const struct dirent *file; (file = readdir(files));)
        if (strcmp(file->d_name, ".") != 0 && strcmp(file->d_name, "..") != 0)
            unlinkat(dirfd(files), file->d_name, 0);
    closedir(files);
}

static void *remove_files(void *user)
{
    struct removal *r = user;
    for (int tries = 0; tries < REMOVE_TRIES; tries++) {
        int folder = open_dir(r->dir, r->name);
        if (folder >= 0)
            empty(folder);
        if (unlinkat(r->dir, r->name, AT_REMOVEDIR) == 0 || errno != ENOTEMPTY)
            break;
        // A worker that is being killed may still have made a file.
        usleep(REMOVE_WAIT_US);
    }
    close(r->dir);
    free(r);
    return NULL;
}

// Blocks of many gigabytes take long to be freed: a thread does it. Where it cannot, the next start
// of the daemon does.
static void remove_later(int dir, const char *name)
{
    pthread_t thread;
    sigset_t all, before;
    struct removal *r = calloc(1, sizeof(*r));
    if (!r)
        return;
    snprintf(r->name, sizeof(r->name), "%s", name);
    r->dir = fcntl(dir, F_DUPFD_CLOEXEC, 0);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = r->dir < 0 || pthread_create(&thread, NULL, remove_files, r) != 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) {
        pthread_detach(thread);
        return;
    }
    if (r->dir >= 0)
        close(r->dir);
    free(r);
}

void nb_jobs_remove_folder(struct nb_broker *broker, uint64_t id)
{
    char name[NAME], gone[NAME + sizeof(GONE)];
    name_of(id, name);
    snprintf(gone, sizeof(gone), GONE "%s", name);
    if (renameat(broker->jobs_dir, name, broker->jobs_dir, gone) == 0)
        remove_later(broker->jobs_dir, gone);
    else
        nb_log(LOG_WARNING, "%s/jobs/%s cannot be removed: %s", broker->state_dir, name,
               strerror(errno));
}

// ---- The record

void nb_jobs_save(const struct nb_service_job *job)
{
    char text[RECORD_MAX], name[NAME];
    const struct nibble_jobs_row *row = &job->row;
    int n = snprintf(text, sizeof(text),
                     "version=1\nuid=%" PRIu32 "\nkind=%s\nname=%s\nstate=%s\nstarted=%" PRIu64
                     "\nended=%" PRIu64 "\nstatus=%" PRId32 "\ntext=%s\nrestarts=%" PRIu32
                     "\ndeaths=%" PRIu32 "\njournal=%" PRIu64 "\ncopied=%" PRIu64
                     "\nresults=%" PRIu64 "\ntotal=%" PRIu64 "\n",
                     row->uid, row->kind, row->name, nb_jobs_states[job->state], row->started_s,
                     job->ended_s, row->status, row->text, row->restarts, job->deaths,
                     job->journal_bytes, job->copied_bytes, job->result_bytes, row->total);
    for (uint32_t i = 0; i < row->n_results; i++)
        n += snprintf(text + n, sizeof(text) - (size_t)n, "result=%s\n", job->results[i]);
    name_of(row->id, name);
    int folder = open_dir(job->broker->jobs_dir, name);
    int rc = folder < 0 ? folder : write_small(folder, "job", text, (size_t)n);
    if (folder >= 0)
        close(folder);
    if (rc < 0)
        nb_log(LOG_ERR, "the record of job %s cannot be written: %s", name, strerror(-rc));
}

enum field_kind { U32, I32, U64, TEXT, STATE, RESULT };
struct field {
    const char *key;
    enum field_kind kind;
    size_t offset, size;
};
#define AT(member)      offsetof(struct nb_service_job, member)
#define TEXT_OF(member) TEXT, AT(member), sizeof(((struct nb_service_job *)0)->member)
static const struct field fields[] = {
    {"uid", U32, AT(row.uid), 0},
    {"kind", TEXT_OF(row.kind)},
    {"name", TEXT_OF(row.name)},
    {"state", STATE, AT(state), 0},
    {"started", U64, AT(row.started_s), 0},
    {"ended", U64, AT(ended_s), 0},
    {"status", I32, AT(row.status), 0},
    {"text", TEXT_OF(row.text)},
    {"restarts", U32, AT(row.restarts), 0},
    {"deaths", U32, AT(deaths), 0},
    {"journal", U64, AT(journal_bytes), 0},
    {"copied", U64, AT(copied_bytes), 0},
    {"results", U64, AT(result_bytes), 0},
    {"total", U64, AT(row.total), 0},
    {"result", RESULT, 0, 0},
};

static int read_state(const char *text, enum nb_jobs_state *ret)
{
    for (int i = 0; i < NB_JOBS_STATES; i++)
        if (!strcmp(text, nb_jobs_states[i])) {
            *ret = (enum nb_jobs_state)i;
            return 0;
        }
    return -EINVAL;
}

static int read_result(struct nb_service_job *job, const char *text)
{
    if (job->row.n_results == NB_JOB_RESULTS)
        return -EINVAL;
    snprintf(job->results[job->row.n_results++], NB_NAME_MAX, "%s", text);
    return 0;
}

static int read_field(struct nb_service_job *job, const struct field *f, const char *text)
{
    void *to = (char *)job + f->offset;
    char *end = NULL;
    errno = 0;
    switch (f->kind) {
    case TEXT:
        snprintf(to, f->size, "%s", text);
        return 0;
    case STATE:
        return read_state(text, to);
    case RESULT:
        return read_result(job, text);
    case I32:
        *(int32_t *)to = (int32_t)strtol(text, &end, 10);
        break;
    case U32:
        *(uint32_t *)to = (uint32_t)strtoul(text, &end, 10);
        break;
    case U64:
        *(uint64_t *)to = strtoull(text, &end, 10);
        break;
    }
    return errno || *end ? -EINVAL : 0;
}

static int read_line(struct nb_service_job *job, char *line)
{
    char *value = strchr(line, '=');
    if (!value)
        return -EINVAL;
    *value++ = '\0';
    if (!strcmp(line, "version"))
        return strcmp(value, "1") ? -EINVAL : 0;
    for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++)
        if (!strcmp(line, fields[i].key))
            return read_field(job, &fields[i], value);
    return -EINVAL;
}

static int read_record(struct nb_service_job *job)
{
    char text[RECORD_MAX], *at = text, *line;
    int folder = nb_jobs_open_folder(job);
    int rc = folder < 0 ? folder : read_small(folder, "job", text, sizeof(text));
    if (folder >= 0)
        close(folder);
    if (rc == 0 && strncmp(text, "version=", strlen("version=")) != 0)
        rc = -EINVAL;
    while (rc == 0 && (line = strsep(&at, "\n")) && *line)
        rc = read_line(job, line);
    return rc;
}

// ---- At the daemon's start

static void load_one(struct nb_broker *broker, uint64_t id)
{
    struct nb_service_job *job = nb_jobs_create(broker, id);
    if (!job)
        return;
    int rc = read_record(job);
    if (rc == 0 && job->state != NB_JOBS_STORING)
        return;
    // One that was not taken in whole was never answered: nobody knows of it.
    if (rc < 0)
        nb_log(LOG_ERR, "%s/jobs/%" PRIu64 " has no record that can be read (%s) and is left alone",
               broker->state_dir, id, strerror(-rc));
    else
        nb_jobs_remove_folder(broker, id);
    nb_jobs_free(job);
}

static int by_number(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// The numbers of all folders, malloc'ed.
static size_t list_folders(DIR *dir, int fd, uint64_t **ret)
{
    uint64_t *ids = NULL;
    size_t n = 0;
    for (const struct dirent *entry; (entry = readdir(dir));) {
        char *end;
        if (!strncmp(entry->d_name, GONE, strlen(GONE)))
            remove_later(fd, entry->d_name);
        if (!isdigit((unsigned char)*entry->d_name))
            continue;
        uint64_t *grown = reallocarray(ids, n + 1, sizeof(*ids));
        if (!grown)
            break;
        ids = grown;
        ids[n] = strtoull(entry->d_name, &end, 10);
        n += *end == '\0';
    }
    *ret = ids;
    return n;
}

void nb_jobs_load(struct nb_broker *broker)
{
    char text[NAME];
    uint64_t *ids = NULL;
    int fd = openat(broker->jobs_dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (read_small(broker->jobs_dir, LAST, text, sizeof(text)) == 0)
        broker->last_job = strtoull(text, NULL, 10);
    size_t n = dir ? list_folders(dir, broker->jobs_dir, &ids) : 0;
    if (n)
        qsort(ids, n, sizeof(*ids), by_number);
    for (size_t i = 0; i < n; i++) {
        broker->last_job = ids[i] > broker->last_job ? ids[i] : broker->last_job;
        load_one(broker, ids[i]);
    }
    free(ids);
    if (dir)
        closedir(dir);
}
