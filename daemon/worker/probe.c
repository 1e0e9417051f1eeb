// Mode `probe`: names the machine's devices to the broker, one packet each, and exits. Drivers may
// crash here.
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/sandbox.h"
#include "daemon/worker/worker.h"

int nb_probe_run(char **args)
{
    (void)args;
    const char *name;
    for (uint32_t i = 0; nb_worker_device_name(i, &name) == 0; i++) {
        struct nb_device *device;
        int r = nb_worker_device_open(name, &device);
        if (r < 0) {
            nb_log("device %s: %s", name, strerror(-r));
            continue;
        }
        struct nb_link_device packet;
        nb_worker_device_describe(device, &packet);
        nb_link_send(&packet, NB_LINK_DEVICE, sizeof(packet));
        device->ops->destroy(device);
    }
    return EXIT_SUCCESS;
}
