// A device of the engine as the broker lists it, and the limits of drivers.
#include <stdio.h>
#include <string.h>

#include "daemon/worker/cache_guard.h"
#include "daemon/worker/sandbox.h"
#include "daemon/worker/worker.h"

static const char *const kinds[] = {
    [NB_DEVICE_CPU] = "cpu",
    [NB_DEVICE_GPU] = "gpu",
    [NB_DEVICE_EMULATED] = "emulated",
};

void nb_worker_device_describe(const struct nb_device_info *info, struct nb_link_device *ret)
{
    *ret = (struct nb_link_device){
        .device = {.memory_bytes = info->memory_bytes, .threads = info->threads}};
    struct nibble_device *d = &ret->device;
    snprintf(d->name, sizeof(d->name), "%.31s", info->name);
    snprintf(d->description, sizeof(d->description), "%s", info->description);
    snprintf(d->driver, sizeof(d->driver), "%s", info->driver);
    snprintf(d->isa, sizeof(d->isa), "%s", info->isa);
    snprintf(d->kind, sizeof(d->kind), "%s", kinds[info->kind]);
    snprintf(d->reason, sizeof(d->reason), "%s", info->fault);
    snprintf(d->state, sizeof(d->state), "%s", info->fault[0] ? "unusable" : "ready");
    for (size_t i = 0; info->has_uuid && i < sizeof(info->uuid); i++)
        snprintf(d->uuid + 2 * i, 3, "%02x", info->uuid[i]);
}

void nb_worker_limit_drivers(void)
{
    nb_cache_guard();
    int rc = nb_sandbox_files();
    if (rc < 0)
        nb_log("no Landlock here (%s): a driver may open what the service's user may",
               strerror(-rc));
}
