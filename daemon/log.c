// Writes log lines to stderr, one write each. Must not block the loop on anything but stderr
// itself.
#include "daemon/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define GATE_US UINT64_C(10000000)

void nb_log(int priority, const char *format, ...)
{
    char line[1024];
    const char *journal = getenv("JOURNAL_STREAM");
    int n = journal ? snprintf(line, sizeof line, "<%d>", priority)
                    : snprintf(line, sizeof line, "nibbled: ");
    va_list args;
    va_start(args, format);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, args);
    va_end(args);
    if (m < 0)
        return;
    size_t len = (size_t)n + (size_t)m;
    if (len > sizeof line - 2)
        len = sizeof line - 2;
    line[len++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, len);
    (void)written; // nowhere left to complain
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
