// How far numbers are from those that they should be.
#pragma once

#include <math.h>
#include <stddef.h>

static inline double largest_of(const float *x, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)x[i]));
    return most;
}

// The largest difference, of the largest that is expected, or of `least` where that is more; what
// is not finite is far off.
static inline double apart_of(const float *found, const float *expected, size_t n, double least)
{
    double most = 0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, isfinite(found[i]) ? fabs((double)found[i] - (double)expected[i]) : 1e30);
    return most / fmax(largest_of(expected, n), least);
}
