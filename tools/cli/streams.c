// The standard streams of the command: open from the first moment on, and their failures told at
// the last. Must not know what is written.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/cli.h"

void cli_streams_open(void)
{
    // stdout is opened for reading: who writes to what the caller has closed is told so.
    static const int modes[] = {O_RDONLY, O_RDONLY, O_WRONLY};
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", modes[fd]) != fd)
            _exit(CLI_FAILED); // nowhere to say it
    // A closed pipe and a file that may not grow are errors as a full disk is, whatever the caller
    // made of the signals.
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
}

static int first_error;

void cli_streams_failed(int error)
{
    first_error = first_error ? first_error : error;
}

int cli_streams_close(int status)
{
    bool failed = ferror(stdout);
    errno = 0;
    if (fclose(stdout) == 0 && !failed)
        return status;
    cli_streams_failed(errno);
    cli_error("standard output cannot be written: %s",
              first_error ? strerror(first_error) : "an earlier write failed");
    return status == CLI_OK ? CLI_FAILED : status;
}
