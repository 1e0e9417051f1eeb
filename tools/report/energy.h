// Energy of the processors' packages by RAPL, through Linux's powercap (Documentation/power/
// powercap). It counts whatever runs on the machine.
#pragma once

#include <stdint.h>

#define ENERGY_ROOT  "/sys/class/powercap"
#define ENERGY_ZONES 16

struct energy {
    char root[128];
    unsigned n, zones[ENERGY_ZONES]; // the packages' numbers
    uint64_t from[ENERGY_ZONES];     // microjoules
    char reason[256];                // "not readable: why", when n is 0
};

// Takes the counters' values; a machine without them, or that shows them to root alone, is no
// failure.
void energy_begin(struct energy *e, const char *root);
// Joules since energy_begin; negative where they cannot be read, for which `reason` says why.
// Counters that wrapped once are right; a package's wraps in minutes to hours at full power.
double energy_end(struct energy *e);
