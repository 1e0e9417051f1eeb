// The least of all limits, and their names.
#include "machine/bounds.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

// Version 1 writes "no limit" as the largest number of whole pages.
#define V1_NO_LIMIT (UINT64_C(1) << 62)

static void copy_name(char to[NB_GROUP_NAME], const struct nb_group *group)
{
    snprintf(to, NB_GROUP_NAME, "%s", group->name);
}

// ---- Processor time

static void read_quota(const struct nb_group *group, uint64_t *ret_quota, uint64_t *ret_period)
{
    char quota[32] = "", path[PATH_MAX];
    *ret_quota = *ret_period = NB_NO_LIMIT;
    if (group->version == 1) {
        *ret_quota = nb_group_number(group, "cpu.cfs_quota_us", ""); // -1 is no number
        *ret_period = nb_group_number(group, "cpu.cfs_period_us", "");
        return;
    }
    *ret_quota = nb_group_number(group, "cpu.max", "");
    if (*ret_quota == NB_NO_LIMIT)
        return;
    snprintf(quota, sizeof(quota), "%" PRIu64 " ", *ret_quota);
    if (snprintf(path, sizeof(path), "%s/cpu.max", group->dir) < (int)sizeof(path))
        *ret_period = nb_file_number(path, quota);
}

static void take_quota(void *user, const struct nb_group *group)
{
    struct nb_cpu_quota *least = user;
    uint64_t quota, period;
    read_quota(group, &quota, &period);
    if (quota == NB_NO_LIMIT || period == NB_NO_LIMIT || !period || quota > UINT64_MAX / 1000)
        return;
    uint64_t share = quota * 1000 / period;
    share = share ? share : 1;
    if (share > UINT32_MAX || (least->thousandths && share >= least->thousandths))
        return;
    least->thousandths = (uint32_t)share;
    copy_name(least->group, group);
}

void nb_cpu_quota(const char *root, struct nb_cpu_quota *ret)
{
    *ret = (struct nb_cpu_quota){0};
    nb_groups_each(root, "cpu", take_quota, ret);
}

// ---- Memory

static uint64_t or_zero(uint64_t value)
{
    return value == NB_NO_LIMIT ? 0 : value;
}

// Pages of files are given back when memory is short. Memory files are none of them.
static uint64_t group_used(const struct nb_group *group)
{
    static const char *const file[] = {"memory.usage_in_bytes", "memory.current"};
    static const char *const keys[][2] = {{"total_inactive_file ", "total_active_file "},
                                          {"inactive_file ", "active_file "}};
    int v = group->version - 1;
    uint64_t used = or_zero(nb_group_number(group, file[v], ""));
    for (int i = 0; i < 2; i++) {
        uint64_t cache = or_zero(nb_group_number(group, "memory.stat", keys[v][i]));
        used -= cache < used ? cache : used;
    }
    return used;
}

static uint64_t group_limit(const struct nb_group *group)
{
    if (group->version == 1) {
        uint64_t limit = nb_group_number(group, "memory.limit_in_bytes", "");
        return limit < V1_NO_LIMIT ? limit : NB_NO_LIMIT;
    }
    uint64_t max = nb_group_number(group, "memory.max", "");
    uint64_t high = nb_group_number(group, "memory.high", ""); // beyond it everything stalls
    return max < high ? max : high;
}

static void take_group(void *user, const struct nb_group *group)
{
    struct nb_memory_room *least = user;
    uint64_t limit = group_limit(group);
    if (limit == NB_NO_LIMIT)
        return;
    uint64_t used = group_used(group), room = limit > used ? limit - used : 0;
    if (room >= least->room)
        return;
    *least = (struct nb_memory_room){.room = room, .limit = limit, .used = used};
    copy_name(least->group, group);
}

// /proc/meminfo's figure, which is in kB, or 0.
static uint64_t meminfo(const char *root, const char *key)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    uint64_t kb = n < (int)sizeof(path) ? or_zero(nb_file_number(path, key)) : 0;
    return kb < UINT64_MAX >> 10 ? kb << 10 : 0;
}

void nb_memory_room(const char *root, struct nb_memory_room *ret)
{
    uint64_t all = meminfo(root, "MemTotal:"), room = meminfo(root, "MemAvailable:");
    *ret = (struct nb_memory_room){.room = room, .limit = all, .used = all > room ? all - room : 0};
    nb_groups_each(root, "memory", take_group, ret);
}

// ---- The process's own

uint64_t nb_process_limit(int resource)
{
    struct rlimit limit;
    if (getrlimit((__rlimit_resource_t)resource, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY)
        return NB_NO_LIMIT;
    return limit.rlim_cur;
}

static const struct {
    int error, resource;
    const char *may; // have, after "this process may"
    int in_kib;
    const char *ways;
} causes[] = {
    {EMFILE, RLIMIT_NOFILE, "have %" PRIu64 " descriptors", 0, "ulimit -n, LimitNOFILE="},
    {EFBIG, RLIMIT_FSIZE, "make files of %" PRIu64 " KiB", 1, "ulimit -f, LimitFSIZE="},
    {ENOMEM, RLIMIT_AS, "map %" PRIu64 " KiB of addresses", 1, "ulimit -v, LimitAS="},
    {ENOMEM, RLIMIT_DATA, "have %" PRIu64 " KiB of data", 1, "ulimit -d, LimitDATA="},
    {EAGAIN, RLIMIT_AS, "map %" PRIu64 " KiB of addresses", 1, "ulimit -v, LimitAS="},
    {EAGAIN, RLIMIT_NPROC, "have %" PRIu64 " processes and threads", 0, "ulimit -u, LimitNPROC="},
};

const char *nb_limit_reason(int error, char ret[NB_LIMIT_TEXT])
{
    int e = error < 0 ? -error : error;
    const char *sentence = strerrordesc_np(e); // strerror would share a buffer between threads
    size_t used = (size_t)snprintf(ret, NB_LIMIT_TEXT, "%.60s", sentence ? sentence : "failed");
    for (size_t i = 0; i < sizeof(causes) / sizeof(*causes); i++) {
        uint64_t limit = nb_process_limit(causes[i].resource);
        if (causes[i].error != e || limit == NB_NO_LIMIT)
            continue;
        char may[64];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(may, sizeof(may), causes[i].may, causes[i].in_kib ? limit >> 10 : limit);
#pragma GCC diagnostic pop
        snprintf(ret + used, NB_LIMIT_TEXT - used, ": this process may %s (raise it: %s)", may,
                 causes[i].ways);
        break;
    }
    return ret;
}
