// The file that keeps what was typed: a line for each message, newlines written as \n. It is
// appended to, so chats beside each other lose nothing, and cut to its newest half when it is
// opened too long.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/cli/cli.h"
#include "tools/cli/terminal.h"

#define FILE_MAX       (1 << 20) // bytes; a longer file is cut
#define LINE_MAX_BYTES (1 << 16)

struct history_file {
    int fd;
    char *text; // as it was when it was opened
};

// $XDG_STATE_HOME/nibble/history, its folders made where they are missing. -ENOENT: no home.
static int make_path(char *ret, size_t size)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int n = -1;
    if (state && *state == '/')
        n = snprintf(ret, size, "%s/nibble/history", state);
    else if (home && *home == '/')
        n = snprintf(ret, size, "%s/.local/state/nibble/history", home);
    if (n < 0 || (size_t)n >= size)
        return -ENOENT;
    for (char *slash = ret; (slash = strchr(slash + 1, '/'));) {
        *slash = '\0';
        int rc = mkdir(ret, 0700);
        *slash = '/';
        if (rc < 0 && errno != EEXIST)
            return -errno;
    }
    return 0;
}

// The newest half of a file that is too long, from the beginning of a line on.
static void cut(struct history_file *h, size_t len)
{
    const char *line = strchr(h->text + len - FILE_MAX / 2, '\n');
    size_t keep = line ? strlen(line + 1) : 0;
    memmove(h->text, line ? line + 1 : "", keep + 1);
    if (ftruncate(h->fd, 0) < 0 || write(h->fd, h->text, keep) != (ssize_t)keep)
        h->text[0] = '\0';
}

static int open_file(struct history_file *h, const char *path)
{
    struct stat st;
    h->fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (h->fd < 0 || flock(h->fd, LOCK_EX) < 0 || fstat(h->fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || fchmod(h->fd, 0600) < 0)
        return -EPERM;
    // Of a file that something else made large, the end is what counts.
    off_t from = st.st_size > 4 * FILE_MAX ? st.st_size - 4 * FILE_MAX : 0;
    h->text = cli_alloc((size_t)(st.st_size - from) + 1, 1);
    ssize_t n = pread(h->fd, h->text, (size_t)(st.st_size - from), from);
    h->text[n > 0 ? n : 0] = '\0';
    size_t len = strlen(h->text);
    if (len > FILE_MAX)
        cut(h, len);
    flock(h->fd, LOCK_UN);
    return 0;
}

struct history_file *history_open(void)
{
    char path[4096];
    struct history_file *h = cli_alloc(1, sizeof(*h));
    h->fd = -1;
    int rc = make_path(path, sizeof(path));
    if (rc == 0)
        rc = open_file(h, path);
    if (rc == 0)
        return h;
    history_close(h);
    return NULL;
}

void history_close(struct history_file *h)
{
    if (!h)
        return;
    if (h->fd >= 0)
        close(h->fd);
    free(h->text);
    free(h);
}

// In place: \n and \\ as they are written.
static void unescape(char *line)
{
    char *to = line;
    for (const char *at = line; *at; at++) {
        bool escaped = *at == '\\' && at[1];
        at += escaped;
        if (escaped && *at == 'n')
            *to++ = '\n';
        else
            *to++ = *at;
    }
    *to = '\0';
}

void history_read(struct history_file *h, void (*each)(void *user, const char *message), void *user)
{
    char *rest = h ? h->text : NULL, *line;
    while (rest && (line = strsep(&rest, "\n"))) {
        unescape(line);
        if (*line)
            each(user, line);
    }
}

void history_add(struct history_file *h, const char *message)
{
    size_t len = strlen(message), n = 0;
    if (!h || len > LINE_MAX_BYTES)
        return;
    char *line = cli_alloc(2 * len + 2, 1);
    for (const char *c = message; *c; c++) {
        if (*c == '\n' || *c == '\\')
            line[n++] = '\\';
        if (*c == '\n')
            line[n++] = 'n';
        else
            line[n++] = *c;
    }
    line[n++] = '\n';
    flock(h->fd, LOCK_EX); // not while another chat cuts it
    ssize_t written = write(h->fd, line, n);
    (void)written; // a message less is remembered
    flock(h->fd, LOCK_UN);
    free(line);
}
