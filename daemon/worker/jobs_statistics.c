// See jobs_statistics.h. A file is written where it is, by several jobs at once if need be: what is
// torn has another hash than its head says, and counts as missing.
#include "daemon/worker/jobs_statistics.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/link.h"

#define FOLDER "../statistics"
#define FILES  16
#define MOST   (UINT64_C(32) << 20) // bytes that are kept of one

struct head {
    uint8_t key[NB_JOBS_STATISTICS_KEY];
    uint64_t len, hash; // of what follows
};

// The file that was used longest ago goes, until there is room for one more.
static int make_room(int folder)
{
    char oldest[NAME_MAX + 1] = "";
    struct timespec least = {0};
    unsigned n = 0;
    int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    for (const struct dirent *entry; dir && (entry = readdir(dir));) {
        struct stat st;
        if (*entry->d_name == '.' || fstatat(folder, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        if (!n++ || st.st_mtim.tv_sec < least.tv_sec ||
            (st.st_mtim.tv_sec == least.tv_sec && st.st_mtim.tv_nsec < least.tv_nsec)) {
            least = st.st_mtim;
            snprintf(oldest, sizeof(oldest), "%s", entry->d_name);
        }
    }
    if (dir)
        closedir(dir);
    return n < FILES || unlinkat(folder, oldest, 0) < 0 ? 0 : 1;
}

static int open_file(int folder, const char *name)
{
    int fd = openat(folder, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0) {
        (void)futimens(fd, NULL);
        return fd;
    }
    while (make_room(folder) > 0)
        ;
    return openat(folder, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
}

int nb_jobs_statistics_open(const char *list, size_t len)
{
    char name[24];
    snprintf(name, sizeof(name), "%016llx", (unsigned long long)XXH3_64bits(list, len));
    (void)mkdirat(NB_JOB_FOLDER_FD, FOLDER, 0700);
    int folder = openat(NB_JOB_FOLDER_FD, FOLDER, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int fd = folder < 0 ? -1 : open_file(folder, name);
    if (folder >= 0)
        close(folder);
    return fd;
}

int nb_jobs_statistics_read(int fd, const uint8_t key[NB_JOBS_STATISTICS_KEY], void **ret,
                            size_t *ret_len)
{
    struct head head;
    if (fd < 0 || pread(fd, &head, sizeof(head), 0) != sizeof(head) || head.len > MOST ||
        memcmp(head.key, key, sizeof(head.key)) != 0)
        return -ENOENT;
    void *data = malloc(head.len + 1);
    if (data && pread(fd, data, head.len, sizeof(head)) == (ssize_t)head.len &&
        XXH3_64bits(data, head.len) == head.hash) {
        *ret = data;
        *ret_len = head.len;
        return 0;
    }
    free(data);
    return -ENOENT;
}

void nb_jobs_statistics_write(int fd, const uint8_t key[NB_JOBS_STATISTICS_KEY], const void *data,
                              size_t len)
{
    struct head head = {.len = len, .hash = XXH3_64bits(data, len)};
    if (fd < 0 || len > MOST)
        return;
    memcpy(head.key, key, sizeof(head.key));
    if (pwrite(fd, data, len, sizeof(head)) != (ssize_t)len ||
        pwrite(fd, &head, sizeof(head), 0) != sizeof(head))
        (void)ftruncate(fd, 0);
}
