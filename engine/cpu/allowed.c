// How many threads and how much memory this process may use, by the machine's cores, its affinity
// (which a cpuset narrows), and its control groups. Looked up once, where /sys can still be read.
#include <errno.h>
#include <hwloc.h>
#include <stdio.h>
#include <sys/resource.h>

#include "engine/device.h"
#include "machine/bounds.h"

static int count_cores(uint32_t *ret_all, uint32_t *ret_allowed)
{
    hwloc_topology_t topology;
    if (hwloc_topology_init(&topology) < 0)
        return -errno;
    hwloc_cpuset_t set = hwloc_bitmap_alloc();
    int all = 0, allowed = 0;
    if (set && hwloc_topology_load(topology) == 0) {
        if (hwloc_get_cpubind(topology, set, HWLOC_CPUBIND_PROCESS) < 0)
            hwloc_bitmap_copy(set, hwloc_topology_get_allowed_cpuset(topology));
        hwloc_obj_t core = NULL;
        while ((core = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_CORE, core))) {
            allowed += hwloc_bitmap_intersects(core->cpuset, set);
            all++;
        }
    }
    hwloc_bitmap_free(set);
    hwloc_topology_destroy(topology);
    if (!all)
        return -EIO;
    *ret_all = (uint32_t)all;
    *ret_allowed = allowed ? (uint32_t)allowed : 1;
    return 0;
}

// A thread that its quota stops holds all the others at the next barrier, where they burn the
// quota's rest. So there are no more threads than whole CPUs.
void nb_cpu_allow(uint32_t cores, uint32_t allowed, const struct nb_cpu_quota *quota,
                  struct nb_cpu_allowed *ret)
{
    uint32_t whole = quota->thousandths / 1000;
    whole = whole ? whole : 1;
    ret->threads = allowed;
    *ret->why = 0;
    if (quota->thousandths && whole < allowed) {
        ret->threads = whole;
        snprintf(ret->why, sizeof(ret->why), "control group %s grants %u.%02u CPUs", quota->group,
                 quota->thousandths / 1000, quota->thousandths % 1000 / 10);
    } else if (allowed < cores) {
        snprintf(ret->why, sizeof(ret->why), "it may use %u of %u cores", allowed, cores);
    }
}

int nb_cpu_allowed(struct nb_cpu_allowed *ret)
{
    struct nb_cpu_quota quota;
    struct nb_memory_room memory;
    uint32_t cores = 0, allowed = 0;
    int rc = count_cores(&cores, &allowed);
    if (rc < 0)
        return rc;
    nb_cpu_quota("", &quota);
    nb_memory_room("", &memory);
    nb_cpu_allow(cores, allowed, &quota, ret);
    uint64_t addresses = nb_process_limit(RLIMIT_AS);
    ret->memory_bytes = memory.limit < addresses ? memory.limit : addresses;
    return 0;
}
