// The ranges and ticks of an axis.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define SCALE_TICKS 32

struct scale {
    double low, high;
    bool log;
    double ticks[SCALE_TICKS];
    size_t n;
};

// An axis that holds [low, high] with some room; with `log` both are above 0.
struct scale scale_of(double low, double high, bool log);
// 0 at the low end, 1 at the high one.
double scale_at(const struct scale *s, double value);
// "0.05" for a tick; returns ret.
const char *scale_text(double value, char *ret, size_t size);
