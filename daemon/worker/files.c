// What a driver's process may open, by Landlock (Linux 5.13; its system calls by number, as libc
// has no names for them): entered before the first driver is loaded, as its threads inherit it.
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/landlock.h>

#include "daemon/worker/sandbox.h"
#include "daemon/worker/worker_config.h"

// Newer than the headers that we build with.
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1u << 14)
#endif
#ifndef LANDLOCK_ACCESS_FS_IOCTL_DEV
#define LANDLOCK_ACCESS_FS_IOCTL_DEV (1u << 15)
#endif

#define ALL_OF_ABI_1 ((LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1)
#define READ         (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define NODES        (READ | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_IOCTL_DEV)
#define CACHE                                                                                      \
    (READ | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_TRUNCATE |                          \
     LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_REMOVE_FILE |  \
     LANDLOCK_ACCESS_FS_REMOVE_DIR)
#define OF_A_FILE                                                                                  \
    (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_TRUNCATE |  \
     LANDLOCK_ACCESS_FS_IOCTL_DEV)

// Programs and settings of the system; what the kernel says of this process and of the devices; the
// nodes themselves. Another process' /proc, homes, /tmp and the service's state are in none of
// them.
static const struct {
    const char *path;
    uint64_t access;
} paths[] = {
    {"/usr", READ},          {"/lib", READ},           {"/lib64", READ},
    {"/opt", READ},          {"/etc", READ},           {"/proc/self", READ},
    {"/proc/cpuinfo", READ}, {"/proc/meminfo", READ},  {"/proc/driver/nvidia", READ},
    {"/proc/devices", READ}, {"/proc/modules", READ},  {"/proc/sys/vm", READ},
    {"/sys/bus", READ},      {"/sys/class/drm", READ}, {"/sys/dev/char", READ},
    {"/sys/devices", READ},  {"/sys/module", READ},    {"/dev/null", NODES},
    {"/dev/zero", NODES},    {"/dev/urandom", READ},   {"/dev/dri", NODES},
    {"/dev/nvidia*", NODES},
};

// Lists of paths that whoever started the daemon has named to the loaders.
static const struct {
    const char *variable;
    uint64_t access;
} named[] = {
    {"LD_LIBRARY_PATH", READ},
    {"VK_DRIVER_FILES", READ},
    {"VK_ICD_FILENAMES", READ},
    {"VK_ADD_DRIVER_FILES", READ},
    {"VK_LAYER_PATH", READ},
    {"MESA_SHADER_CACHE_DIR", CACHE},
    {"__GL_SHADER_DISK_CACHE_PATH", CACHE},
};

static int allow(int rules, uint64_t handled, const char *path, uint64_t access)
{
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return 0; // not on this machine
    struct stat st;
    if (fstat(fd, &st) == 0 && !S_ISDIR(st.st_mode))
        access &= OF_A_FILE;
    const struct landlock_path_beneath_attr rule = {.allowed_access = access & handled,
                                                    .parent_fd = fd};
    int rc = syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0
                 ? -errno
                 : 0;
    close(fd);
    return rc;
}

static int allow_pattern(int rules, uint64_t handled, const char *pattern, uint64_t access)
{
    glob_t found;
    int rc = glob(pattern, GLOB_NOSORT, NULL, &found);
    if (rc)
        return rc == GLOB_NOMATCH ? 0 : -ENOMEM;
    for (size_t i = 0; i < found.gl_pathc && rc == 0; i++)
        rc = allow(rules, handled, found.gl_pathv[i], access);
    globfree(&found);
    return rc;
}

static int allow_named(int rules, uint64_t handled, const char *list, uint64_t access)
{
    char *copy = strdup(list ? list : ""), *rest = NULL;
    int rc = copy ? 0 : -ENOMEM;
    for (char *path = copy ? strtok_r(copy, ":", &rest) : NULL; path && rc == 0;
         path = strtok_r(NULL, ":", &rest))
        rc = allow(rules, handled, path, access);
    free(copy);
    return rc;
}

static int fill(int rules, uint64_t handled)
{
    int rc = 0;
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]) && rc == 0; i++)
        rc = allow_pattern(rules, handled, paths[i].path, paths[i].access);
    for (size_t i = 0; i < sizeof(named) / sizeof(named[0]) && rc == 0; i++)
        rc = allow_named(rules, handled, getenv(named[i].variable), named[i].access);
    return rc;
}

int nb_sandbox_files(void)
{
    // The sanitizers' run time opens files of its own.
    if (NB_SANITIZED)
        return 0;
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (abi < 0)
        return -errno;
    const struct landlock_ruleset_attr attr = {
        .handled_access_fs = ALL_OF_ABI_1 | (abi >= 2 ? LANDLOCK_ACCESS_FS_REFER : 0) |
                             (abi >= 3 ? LANDLOCK_ACCESS_FS_TRUNCATE : 0) |
                             (abi >= 5 ? LANDLOCK_ACCESS_FS_IOCTL_DEV : 0)};
    int rules = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);
    if (rules < 0)
        return -errno;
    int rc = fill(rules, attr.handled_access_fs);
    if (rc == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        rc = -errno;
    if (rc == 0 && syscall(SYS_landlock_restrict_self, rules, 0) < 0)
        rc = -errno;
    close(rules);
    return rc;
}
