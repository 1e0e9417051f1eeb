// Seconds that this thread has run, so that a shared machine's other work counts less.
#pragma once

#include <time.h>

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
