// Mesa maps its cache's index, a file with holes, and writes into them from threads that block all
// signals: where the disk is full, the kernel can only kill (SIGBUS). So the index is made before
// the driver comes, without holes. Whatever else a driver keeps it writes by calls, which may fail.
#include "daemon/worker/cache_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/worker/worker.h"

#define MESA_FOLDER "mesa_shader_cache"
#define MESA_INDEX  (8 + 65536 * 20) // bytes: a counter, and a hash for each entry

// 0, or why the index cannot have all its blocks. A file system that cannot say is taken at its
// word.
static int make_index(const char *folder)
{
    char path[PATH_MAX];
    struct stat st;
    int n = snprintf(path, sizeof(path), "%s/" MESA_FOLDER "/index", folder);
    if (n >= PATH_MAX)
        return -ENAMETOOLONG;
    char *slash = path + n - strlen("/index");
    *slash = '\0';
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return -errno;
    *slash = '/';
    int fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    int rc = fstat(fd, &st) < 0 ? -errno : 0;
    off_t bytes = st.st_size > MESA_INDEX ? st.st_size : MESA_INDEX;
    if (rc == 0 && fallocate(fd, 0, 0, bytes) < 0 && errno != EOPNOTSUPP)
        rc = -errno;
    close(fd);
    return rc;
}

void nb_cache_guard(void)
{
    const char *folder = getenv("MESA_SHADER_CACHE_DIR");
    const char *disabled = getenv("MESA_SHADER_CACHE_DISABLE");
    if (!folder || !*folder || (disabled && !strcmp(disabled, "true")))
        return;
    int rc = make_index(folder);
    if (rc == 0)
        return;
    nb_log("drivers keep no compiled shaders: %.200s: %s", folder, strerror(-rc));
    setenv("MESA_SHADER_CACHE_DISABLE", "true", 1);
}
