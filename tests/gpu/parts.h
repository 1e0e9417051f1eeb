// The parts of the check as a table, and where to look when one fails.
#pragma once

#include <stdbool.h>
#include <stdint.h>

// Words in braces are filled in: {device}, {tier}, {models} (the folder of the check's models),
// {seconds} (that the part may take).
struct gpu_part {
    const char *name, *tells;
    uint32_t seconds;    // of eight minutes
    const char *command; // a program of the folder's bin/ and its words
    const char *brief; // instead, where a CPU plays the device; NULL: the same; "": left out there
    bool each_tier;    // once for each that the device meets, the best first; a CPU's best alone
    bool validated;    // under the validation layer
};

extern const struct gpu_part gpu_parts[];
extern const uint32_t gpu_n_parts;

// The files to read first when the part failed with this output. Never NULL.
const char *gpu_look_at(const char *part, const char *tier, const char *output);
