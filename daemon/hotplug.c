// Devices that come and go while the daemon runs, as udev tells it: what goes is found by its
// number, for paths are used again; what comes is asked of a new probe, for only drivers know what
// it is.
#include "daemon/hotplug.h"

#include <string.h>
#include <systemd/sd-device.h>

#include "daemon/broker.h"
#include "daemon/device.h"
#include "daemon/inventory.h"
#include "daemon/log.h"
#include "daemon/probe.h"

void nb_hotplug_event(struct nb_broker *broker, int removed, dev_t number)
{
    struct nb_device *device = removed ? nb_device_by_number(broker, number) : NULL;
    if (device)
        nb_device_gone(device, "it was taken away");
    if (!removed)
        nb_probe_later(broker);
}

static int on_event(sd_device_monitor *monitor, sd_device *event, void *user)
{
    sd_device_action_t action;
    dev_t number;
    if (sd_device_get_action(event, &action) < 0 || sd_device_get_devnum(event, &number) < 0)
        return 0;
    if (action == SD_DEVICE_ADD || action == SD_DEVICE_REMOVE)
        nb_hotplug_event(user, action == SD_DEVICE_REMOVE, number);
    return 0;
}

void nb_hotplug_start(struct nb_broker *broker)
{
    static const char *const subsystems[] = {"drm", "accel"};
    sd_device_monitor *monitor = NULL;
    int rc = sd_device_monitor_new(&monitor);
    for (size_t i = 0; i < sizeof(subsystems) / sizeof(*subsystems) && rc >= 0; i++)
        rc = sd_device_monitor_filter_add_match_subsystem_devtype(monitor, subsystems[i], NULL);
    if (rc >= 0)
        rc = sd_device_monitor_attach_event(monitor, broker->loop);
    if (rc >= 0)
        rc = sd_device_monitor_start(monitor, on_event, broker);
    if (rc >= 0) {
        broker->monitor = monitor;
        return;
    }
    nb_log(LOG_WARNING, "devices that come and go are not noticed (%s): SIGHUP looks again",
           strerror(-rc));
    sd_device_monitor_unref(monitor);
}

void nb_hotplug_stop(struct nb_broker *broker)
{
    broker->monitor = sd_device_monitor_unref(broker->monitor);
}
