// What the harness has seen so far.
#pragma once

#include <stddef.h>

struct report {
    const char *level, *op;
    size_t compared; // values of the current op
    size_t failed;   // cases, all ops
};

extern struct report check_report;
