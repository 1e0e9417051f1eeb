// Runs a part in a process group of its own and reads what it prints until it ends or must.
#include "tests/gpu/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/gpu/gpu.h"

#define LOG_MAX  ((size_t)4 << 20)
#define ROWS_MAX 4096
#define LINE_MAX 65536
#define TICK_MS  100
#define GRACE    2.0 // seconds from SIGTERM to SIGKILL

volatile sig_atomic_t gpu_stopped;

struct reader {
    struct gpu_outcome *to;
    int log;
    size_t logged, n;
    char line[LINE_MAX];
};

// Keeps the end of the text, whole lines of it.
static void keep_last(char *buffer, size_t size, const char *line, size_t n)
{
    n = n < size / 4 ? n : size / 4;
    while (strlen(buffer) + n + 2 > size) {
        char *next = strchr(buffer, '\n');
        memmove(buffer, next ? next + 1 : "", next ? strlen(next + 1) + 1 : 1);
    }
    size_t at = strlen(buffer);
    memcpy(buffer + at, line, n);
    memcpy(buffer + at + n, "\n", 2);
}

static void keep_first(char *buffer, size_t size, const char *line, size_t n)
{
    size_t at = strlen(buffer);
    if (at + n + 2 > size)
        return;
    memcpy(buffer + at, line, n);
    memcpy(buffer + at + n, "\n", 2);
}

static void take_line(struct reader *r)
{
    const char *line = r->line;
    size_t n = r->n;
    r->n = 0;
    json_t *row = n > 0 && line[0] == '{' ? json_loadb(line, n, 0, NULL) : NULL;
    if (row && json_array_size(r->to->rows) < ROWS_MAX)
        json_array_append_new(r->to->rows, row);
    else
        json_decref(row);
    if (row || n == 0)
        return;
    if (memmem(line, n, "FAIL ", 5))
        keep_first(r->to->failed, sizeof(r->to->failed), line, n);
    if (n < 3 || strncmp(line + n - 3, " ok", 3) != 0)
        keep_last(r->to->last, sizeof(r->to->last), line, n);
}

// Whatever a driver prints: no byte that is not text goes further.
static void take(struct reader *r, const char *data, size_t n)
{
    size_t keep = r->logged + n > LOG_MAX ? LOG_MAX - r->logged : n;
    if (keep > 0 && write(r->log, data, keep) == (ssize_t)keep)
        r->logged += keep;
    for (size_t i = 0; i < n; i++) {
        const char c = data[i];
        if (c == '\n' || r->n == sizeof(r->line))
            take_line(r);
        if (c >= ' ' && c <= '~')
            r->line[r->n++] = c;
    }
}

static pid_t start(const char *const argv[], int output)
{
    pid_t parent = getpid(), pid = fork();
    if (pid != 0)
        return pid;
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int null = open("/dev/null", O_RDONLY);
    if (getppid() == parent && null >= 0 && dup2(null, 0) >= 0 && dup2(output, 1) >= 0 &&
        dup2(output, 2) >= 0)
        execv(argv[0], (char **)(uintptr_t)argv);
    dprintf(2, "%s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

// Reads what is there; false at the end of it.
static bool read_some(int fd, struct reader *r, int timeout_ms)
{
    char data[16384];
    struct pollfd p = {fd, POLLIN, 0};
    if (poll(&p, 1, timeout_ms) <= 0)
        return true;
    ssize_t n = read(fd, data, sizeof(data));
    if (n > 0)
        take(r, data, (size_t)n);
    return n > 0 || (n < 0 && errno == EINTR);
}

static void judge(struct gpu_outcome *ret, int status, bool late)
{
    ret->end = late                  ? (gpu_stopped ? GPU_STOPPED : GPU_TIMED_OUT)
               : WIFSIGNALED(status) ? GPU_KILLED
                                     : GPU_EXITED;
    ret->status = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

// Until the process has ended; its group is asked to end when its time is over, and then made to.
static void watch(pid_t pid, int fd, double limit, struct reader *r)
{
    const double began = gpu_now();
    double asked = 0;
    int status = 0;
    bool open = true;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (open)
            open = read_some(fd, r, TICK_MS);
        else
            poll(NULL, 0, TICK_MS);
        const double now = gpu_now();
        if (asked > 0 && now - asked > GRACE)
            kill(-pid, SIGKILL);
        if (asked == 0 && (gpu_stopped || now - began > limit)) {
            asked = now;
            kill(-pid, SIGTERM);
        }
    }
    kill(-pid, SIGKILL); // what it has left behind
    for (int i = 0; i < 100 && open; i++)
        open = read_some(fd, r, 10);
    take_line(r);
    r->to->seconds = gpu_now() - began;
    judge(r->to, status, asked > 0);
}

void gpu_process(const char *const argv[], double limit, const char *log, struct gpu_outcome *ret)
{
    int pipes[2];
    struct reader *r = calloc(1, sizeof(*r));
    *ret = (struct gpu_outcome){.rows = json_array()};
    if (!r || !ret->rows)
        gpu_fail("out of memory");
    int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || pipe2(pipes, O_CLOEXEC) < 0)
        gpu_fail("%s: %s", log, strerror(errno));
    *r = (struct reader){.to = ret, .log = fd};
    pid_t pid = start(argv, pipes[1]);
    gpu_check(pid < 0 ? -errno : 0, "fork");
    close(pipes[1]);
    watch(pid, pipes[0], limit, r);
    close(pipes[0]);
    close(fd);
    free(r);
}
