// Mode `probe`: tells the broker which devices the machine has, which drivers are to be left alone,
// and what an administrator may want to know, and exits. Loads no driver itself.
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/drivers.h"
#include "daemon/worker/enumerate.h"
#include "daemon/worker/findings.h"
#include "daemon/worker/nodes.h"
#include "daemon/worker/worker.h"

static void send_device(const struct nb_link_device *device)
{
    struct nb_link_device packet = *device;
    nb_link_send(&packet, NB_LINK_DEVICE, sizeof(packet));
}

// Whoever named a driver, or has one that crashes, looks for its devices: the driver stands in
// their place, with the reason.
static void send_driver(const struct nb_driver *d)
{
    struct nb_link_device packet = {
        .device = {.kind = "driver", .state = "unusable", .description = "a Vulkan driver"}};
    const char *slash = strrchr(d->manifest, '/'), *name = slash ? slash + 1 : d->manifest;
    snprintf(packet.device.name, sizeof(packet.device.name), "%.*s", (int)strcspn(name, "."), name);
    snprintf(packet.device.driver, sizeof(packet.device.driver), "%.95s", d->manifest);
    snprintf(packet.device.reason, sizeof(packet.device.reason), "%s", d->fault);
    nb_link_send(&packet, NB_LINK_DEVICE, sizeof(packet));
}

// Each sound driver by itself.
static void try_each(struct nb_driver *driver, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct nb_driver *d = &driver[i];
        struct nb_listed listed;
        if (d->state != NB_DRIVER_SOUND)
            continue;
        if (!nb_list_devices(d->manifest, &listed)) {
            d->state = NB_DRIVER_CRASHES;
            snprintf(d->fault, sizeof(d->fault),
                     "asked for its devices it %.60s, and is left out: update or remove it",
                     listed.why);
        } else if (!nb_listed_vulkan(&listed)) {
            d->state = NB_DRIVER_IDLE;
            snprintf(d->fault, sizeof(d->fault), "it has no device on this machine");
        }
    }
}

// Workers, and the second listing, load the others alone: the loader itself gives up at a manifest
// that is no JSON.
static void leave_out(const struct nb_driver *driver, size_t n, struct nb_link_drivers *ret)
{
    size_t used = 0;
    ret->limited = 1;
    for (size_t i = 0; i < n; i++) {
        size_t more = strlen(driver[i].manifest) + 1;
        ret->crashing += driver[i].state == NB_DRIVER_CRASHES;
        if (driver[i].state == NB_DRIVER_BROKEN || driver[i].state == NB_DRIVER_CRASHES ||
            used + more >= sizeof(ret->manifests))
            continue;
        snprintf(ret->manifests + used, sizeof(ret->manifests) - used, "%s%s", used ? ":" : "",
                 driver[i].manifest);
        used = strlen(ret->manifests);
    }
}

static bool is_wanted(const struct nb_driver *d)
{
    return d->named_by || d->state == NB_DRIVER_CRASHES;
}

static size_t count_wanted(const struct nb_driver *driver, size_t n)
{
    size_t wanted = 0;
    for (size_t i = 0; i < n; i++)
        wanted += is_wanted(&driver[i]);
    return wanted;
}

static bool has(const struct nb_driver *driver, size_t n, enum nb_driver_state state)
{
    size_t i = 0;
    while (i < n && driver[i].state != state)
        i++;
    return i < n;
}

// All drivers at once, as a worker will load them, but for those that are known to be broken; and
// one by one only where that says more.
static void look(struct nb_driver *driver, size_t n, struct nb_listed *ret)
{
    struct nb_link_drivers allowed = {.limited = 0};
    if (has(driver, n, NB_DRIVER_BROKEN))
        leave_out(driver, n, &allowed);
    bool sound = nb_list_devices(allowed.limited ? allowed.manifests : NULL, ret);
    if (!sound)
        nb_log("the process that lists devices %s: each driver is tried by itself", ret->why);
    if (!sound || nb_listed_vulkan(ret) < count_wanted(driver, n))
        try_each(driver, n);
    if (!sound && has(driver, n, NB_DRIVER_CRASHES)) {
        allowed = (struct nb_link_drivers){.limited = 0};
        leave_out(driver, n, &allowed);
        sound = nb_list_devices(allowed.manifests, ret);
    }
    if (!sound)
        nb_log("the devices of the drivers that are left cannot be listed: it %s", ret->why);
    nb_link_send(&allowed, NB_LINK_DRIVERS, sizeof(allowed));
}

int nb_probe_run(char **args)
{
    static struct nb_driver driver[NB_DRIVERS_MAX];
    static struct nb_listed listed;
    (void)args;
    size_t n = nb_drivers_find(driver);
    look(driver, n, &listed);
    if (listed.error[0])
        nb_log("%s", listed.error);
    for (size_t i = 0; i < listed.n; i++)
        send_device(&listed.device[i]);
    nb_npu_list("/sys", send_device);
    for (size_t i = 0; i < n; i++)
        if (driver[i].state != NB_DRIVER_SOUND && is_wanted(&driver[i]))
            send_driver(&driver[i]);
    nb_findings_send(driver, n, &listed);
    return EXIT_SUCCESS;
}
