// Time that passes: nanoseconds since some moment, which no change of the date moves.
#pragma once

#include <stdint.h>
#include <time.h>

static inline uint64_t nb_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
