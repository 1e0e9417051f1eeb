// What the machine lets this process have: processor time and memory by its control groups, and its
// own limits (getrlimit). Everything that is bounded by them asks here, so that all agree. Changes
// nothing, and never says how much of it Nibble should take.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "machine/groups.h"

#define NB_NO_LIMIT UINT64_MAX

struct nb_cpu_quota {
    uint32_t thousandths;      // of one CPU; 0: no quota
    char group[NB_GROUP_NAME]; // that sets it
};
// The least quota of all groups; `root` as of nb_groups_each.
void nb_cpu_quota(const char *root, struct nb_cpu_quota *ret);

struct nb_memory_room {
    uint64_t room;             // bytes that may still be taken
    uint64_t limit;            // bytes that may be taken in all
    uint64_t used;             // of the limit, without what the kernel gives back
    char group[NB_GROUP_NAME]; // whose limit it is; "": the machine's own memory
};
// What has the least room: the machine (MemAvailable) or one of the groups.
void nb_memory_room(const char *root, struct nb_memory_room *ret);

// The process's limit of RLIMIT_..., or NB_NO_LIMIT.
uint64_t nb_process_limit(int resource);

// What a failure of a system call means here: the error's own sentence, and the limit that may have
// caused it with the ways to raise it, as "Too many open files: this process may have 12
// descriptors (raise it: ulimit -n, LimitNOFILE=)". `error` may be negative. Returns `ret`.
#define NB_LIMIT_TEXT 176
const char *nb_limit_reason(int error, char ret[NB_LIMIT_TEXT]);
