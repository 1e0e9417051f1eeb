// Which devices there are, by one probe after another. A device is known again by what it is (its
// UUID and driver), not by the name that the drivers' order gives it: a name, once given, stays
// with its device.
#include "daemon/inventory.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/broker.h"
#include "daemon/device.h"
#include "daemon/log.h"
#include "daemon/split.h"

#define NAMES_MAX 10000 // vulkan0 to vulkan9999

struct nb_device *nb_device_by_number(struct nb_broker *broker, uint64_t number)
{
    struct nb_device *device;
    TAILQ_FOREACH(device, &broker->devices, entry)
        if (number && device->number == number)
            return device;
    return NULL;
}

static int is_same(const struct nibble_device *a, const struct nibble_device *b)
{
    if (!*a->uuid || !*b->uuid)
        return !*a->uuid && !*b->uuid && !strcmp(a->name, b->name) && !strcmp(a->node, b->node);
    return !strcmp(a->uuid, b->uuid) && !strcmp(a->driver, b->driver);
}

static int is_driver(const struct nb_device *device)
{
    return !strcmp(device->info.kind, "driver");
}

static struct nb_device *known(struct nb_broker *broker, const struct nibble_device *info)
{
    struct nb_device *device;
    TAILQ_FOREACH(device, &broker->devices, entry)
        if (device->probed != broker->probes && !nb_device_is_split(device) &&
            is_same(&device->info, info))
            return device;
    return NULL;
}

// Finds a free name where a device that has gone, or that moved in the drivers' order, has this
// one.
static int find_name(struct nb_broker *broker, struct nibble_device *info)
{
    static const char digits[] = "0123456789";
    int stem = (int)strcspn(info->name, digits);
    for (unsigned i = 0; nb_device_by_name(broker, info->name); i++) {
        char name[sizeof(info->name)];
        if (i == NAMES_MAX || !info->name[stem])
            return -EEXIST;
        snprintf(name, sizeof(name), "%.*s%u", stem, info->name, i);
        memcpy(info->name, name, sizeof(name));
    }
    return 0;
}

// What may have changed of a device that is known, while its name and its models stay.
static void see_again(struct nb_device *device, const struct nibble_device *info)
{
    struct nibble_device now = *info;
    int back = !nb_device_usable(device) && strcmp(info->state, "unusable") != 0;
    memcpy(now.name, device->info.name, sizeof(now.name));
    if (nb_device_usable(device)) {
        memcpy(now.state, device->info.state, sizeof(now.state));
        memcpy(now.reason, device->info.reason, sizeof(now.reason));
    }
    if (back)
        nb_log(LOG_INFO, "device %s (%s) is there again", now.name, now.description);
    device->info = now;
}

int nb_device_found(struct nb_broker *broker, const struct nb_link_device *packet)
{
    struct nibble_device info = packet->device;
    nb_device_clean(&info);
    if (!*info.name)
        return -EINVAL;
    struct nb_device *device = known(broker, &info);
    char address[sizeof(info.name)];
    memcpy(address, info.name, sizeof(address));
    if (device) {
        see_again(device, &info);
    } else {
        if (find_name(broker, &info) < 0)
            return -EEXIST;
        device = nb_device_add(broker, &info);
        if (!device)
            return -ENOMEM;
        if (is_driver(device))
            nb_log(LOG_WARNING, "driver %s brings no device: %s", info.driver, info.reason);
        else if (broker->probes > 1)
            nb_log(LOG_INFO, "device %s (%s) has come", info.name, info.description);
    }
    device->number = packet->number;
    device->probed = broker->probes;
    memcpy(device->address, address, sizeof(device->address));
    return 0;
}

// What the probe did not name: the row of a driver without a device is dropped, and a device is
// gone. If a driver crashed in the probe, nobody knows whether its devices are there: they stay as
// they are.
void nb_devices_missed(struct nb_broker *broker)
{
    struct nb_device *device, *next;
    for (device = TAILQ_FIRST(&broker->devices); device; device = next) {
        next = TAILQ_NEXT(device, entry);
        if (device->probed == broker->probes || nb_device_is_split(device))
            continue;
        if (is_driver(device))
            nb_device_destroy(device);
        else if (!broker->drivers_crashing)
            nb_device_gone(device, "no driver lists it any more");
    }
}
