// Files that appear whole or not at all.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/cli/cli.h"

// The file that is being written, for the handler of signals.
static char part[PATH_MAX];

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

int cli_output_open(const char *out, bool force, int *ret_fd)
{
    struct stat st;
    if (!force && lstat(out, &st) == 0)
        return cli_error("%s exists: --force replaces it", out);
    if (snprintf(part, sizeof(part), "%s.%ld.part", out, (long)getpid()) >= (int)sizeof(part))
        return cli_error("%s: %s", out, strerror(ENAMETOOLONG));
    int fd = open(part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return cli_error("%s: %s", part, strerror(errno));
    catch_signals();
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
    if (status != CLI_OK)
        unlink(part);
    return status;
}
