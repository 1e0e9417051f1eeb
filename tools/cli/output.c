// Files that appear whole or not at all.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/cli/cli.h"

// The file that is being written, for the handler of signals.
static char part[PATH_MAX];
static bool stays; // when it is not whole

static void on_signal(int signal)
{
    unlink(part);
    raise(signal); // with its usual end: SA_RESETHAND
}

static void catch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    const struct sigaction action = {.sa_handler = on_signal,
                                     .sa_flags = SA_RESETHAND | SA_NODEFER};
    for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
        sigaction(signals[i], &action, NULL);
}

int cli_output_check(const char *out, bool force)
{
    struct stat st;
    char folder[PATH_MAX];
    const char *slash = strrchr(out, '/');
    const bool there = lstat(out, &st) == 0;
    if (there && !force)
        return cli_error("%s exists: --force replaces it", out);
    if (there && !S_ISREG(st.st_mode))
        return cli_error("%s is %s, which is not replaced: name another", out,
                         S_ISDIR(st.st_mode)   ? "a folder"
                         : S_ISLNK(st.st_mode) ? "a symbolic link"
                                               : "no regular file");
    const int len = slash ? (int)(slash - out) + 1 : 1;
    snprintf(folder, sizeof(folder), "%.*s", len, slash ? out : ".");
    return access(folder, W_OK | X_OK) < 0 ? cli_error("%s: %s", folder, strerror(errno)) : CLI_OK;
}

// `middle`: of the name of what is not whole yet.
static int open_part(const char *out, const char *middle, bool force, int flags, int *ret_fd)
{
    int status = cli_output_check(out, force);
    if (status != CLI_OK)
        return status;
    if (snprintf(part, sizeof(part), "%s%s.part", out, middle) >= (int)sizeof(part))
        return cli_error("%s: %s", out, strerror(ENAMETOOLONG));
    int fd = open(part, flags | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0)
        return cli_error("%s: %s", part, strerror(errno));
    *ret_fd = fd;
    return CLI_OK;
}

int cli_output_open(const char *out, bool force, int *ret_fd)
{
    char middle[32];
    snprintf(middle, sizeof(middle), ".%ld", (long)getpid());
    int status = open_part(out, middle, force, O_WRONLY | O_EXCL, ret_fd);
    if (status == CLI_OK)
        catch_signals();
    return status;
}

// The lock is of a file that may have got its name, or gone, before it was had.
static bool is_ours(int fd)
{
    struct stat here, there;
    return flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &here) == 0 && lstat(part, &there) == 0 &&
           here.st_dev == there.st_dev && here.st_ino == there.st_ino;
}

int cli_output_resume(const char *out, bool force, int *ret_fd)
{
    int fd = -1, status = open_part(out, "", force, O_RDWR, &fd);
    if (status != CLI_OK)
        return status;
    if (!is_ours(fd)) {
        close(fd);
        return cli_error("another process writes %s", part);
    }
    stays = true;
    *ret_fd = fd;
    return CLI_OK;
}

// Gives the whole file its name. One that came in between is not replaced without `force`, where
// the file system can tell.
static int name_part(const char *out, bool force)
{
    int rc = renameat2(AT_FDCWD, part, AT_FDCWD, out, force ? 0 : RENAME_NOREPLACE);
    if (rc < 0 && errno == EINVAL)
        rc = rename(part, out);
    return rc < 0 ? cli_error("%s: %s", out, strerror(errno)) : CLI_OK;
}

int cli_output_close(const char *out, bool force, int fd, int status)
{
    if (status == CLI_OK && fsync(fd) < 0)
        status = cli_error("%s: %s", out, strerror(errno));
    close(fd);
    if (status == CLI_OK)
        status = name_part(out, force);
    if (status != CLI_OK && !stays)
        unlink(part);
    return status;
}
