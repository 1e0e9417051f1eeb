// Log lines go to stderr through a thread, one write each. If nobody reads stderr, that thread
// waits and nobody else. Lines that find no room are counted.
#include "daemon/log.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define GATE_US  UINT64_C(10000000)
#define LINES    256u
#define LINE_MAX 1024
#define LAST_S   1 // so long the last lines may take at the end of the process

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more, written;
    char lines[LINES][LINE_MAX];
    size_t len[LINES];
    unsigned first, n; // the first one is being written
    unsigned dropped;
    int runs, is_file;
} out = {.lock = PTHREAD_MUTEX_INITIALIZER,
         .more = PTHREAD_COND_INITIALIZER,
         .written = PTHREAD_COND_INITIALIZER};

static int begin_line(char line[LINE_MAX], int priority)
{
    return getenv("JOURNAL_STREAM") ? snprintf(line, LINE_MAX, "<%d>", priority)
                                    : snprintf(line, LINE_MAX, "nibbled: ");
}

static size_t end_line(char line[LINE_MAX], int begin, int added)
{
    size_t len = (size_t)begin + (size_t)(added > 0 ? added : 0);
    if (len > LINE_MAX - 2)
        len = LINE_MAX - 2;
    line[len++] = '\n';
    return len;
}

static void write_line(const char *line, size_t len)
{
    ssize_t written;
    do
        written = write(STDERR_FILENO, line, len);
    while (written < 0 && errno == EINTR);
}

static void tell_dropped(unsigned n)
{
    char line[LINE_MAX];
    int begin = begin_line(line, LOG_WARNING);
    int added = snprintf(line + begin, LINE_MAX - (size_t)begin,
                         "%u lines were not written: stderr was not read", n);
    write_line(line, end_line(line, begin, added));
}

// With the lock held but while it writes.
static void write_first(void)
{
    unsigned dropped = out.dropped;
    out.dropped = 0;
    pthread_mutex_unlock(&out.lock);
    write_line(out.lines[out.first], out.len[out.first]);
    if (dropped)
        tell_dropped(dropped);
    pthread_mutex_lock(&out.lock);
    out.first = (out.first + 1) % LINES;
    out.n--;
    pthread_cond_signal(&out.written);
}

static void *run(void *unused)
{
    pthread_mutex_lock(&out.lock);
    for (;;) {
        while (!out.n)
            pthread_cond_wait(&out.more, &out.lock);
        write_first();
    }
    return unused;
}

static void finish(void)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += LAST_S;
    pthread_mutex_lock(&out.lock);
    while (out.n && pthread_cond_timedwait(&out.written, &out.lock, &end) == 0)
        ;
    pthread_mutex_unlock(&out.lock);
}

static int start(void)
{
    struct stat st;
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&thread, NULL, run, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc)
        return -rc;
    // A file takes lines at once: they are there before what the daemon does next.
    out.is_file = !fstat(STDERR_FILENO, &st) && S_ISREG(st.st_mode);
    pthread_detach(thread);
    atexit(finish);
    return 0;
}

static void put(const char *line, size_t len)
{
    pthread_mutex_lock(&out.lock);
    if (!out.runs)
        out.runs = start() == 0;
    if (out.is_file) {
        write_line(line, len);
    } else if (!out.runs || out.n == LINES) {
        out.dropped++;
    } else {
        unsigned i = (out.first + out.n++) % LINES;
        memcpy(out.lines[i], line, len);
        out.len[i] = len;
        pthread_cond_signal(&out.more);
    }
    pthread_mutex_unlock(&out.lock);
}

void nb_log(int priority, const char *format, ...)
{
    char line[LINE_MAX];
    int begin = begin_line(line, priority);
    va_list args;
    va_start(args, format);
    int added = vsnprintf(line + begin, LINE_MAX - (size_t)begin - 1, format, args);
    va_end(args);
    put(line, end_line(line, begin, added));
}

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

int nb_log_gate(struct nb_log_gate *gate)
{
    uint64_t now = now_us();
    if (gate->since_us && now - gate->since_us < GATE_US) {
        gate->held++;
        return 0;
    }
    if (gate->held)
        nb_log(LOG_NOTICE, "%u lines like the next one were not written", gate->held);
    gate->since_us = now;
    gate->held = 0;
    return 1;
}
