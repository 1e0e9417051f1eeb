// Mode `probe`: names the machine's devices to the broker, one packet each as it is found, and
// exits. Drivers may crash here.
#include <stdlib.h>

#include "daemon/worker/worker.h"

static void on_found(void *user, const struct nb_device_info *info)
{
    struct nb_link_device packet;
    nb_worker_device_describe(info, &packet);
    nb_link_send(&packet, NB_LINK_DEVICE, sizeof(packet));
}

int nb_probe_run(char **args)
{
    (void)args;
    char error[256] = "";
    if (nb_device_list(on_found, NULL, error, sizeof(error)) < 0)
        nb_log("%s", error);
    return EXIT_SUCCESS;
}
