// Mode `probe`: names the machine's devices to the broker, one packet each as it is found, and
// exits. Drivers may crash here.
#include <stdlib.h>

#include "daemon/worker/nodes.h"
#include "daemon/worker/worker.h"

static void send_device(const struct nb_link_device *device)
{
    struct nb_link_device packet = *device;
    nb_link_send(&packet, NB_LINK_DEVICE, sizeof(packet));
}

static void on_found(void *user, const struct nb_device_info *info)
{
    struct nb_link_device device;
    nb_worker_device_describe(info, &device);
    nb_node_of_gpu(info, &device);
    send_device(&device);
}

int nb_probe_run(char **args)
{
    (void)args;
    char error[256] = "";
    if (nb_device_list(on_found, NULL, error, sizeof(error)) < 0)
        nb_log("%s", error);
    nb_npu_list("/sys", send_device);
    return EXIT_SUCCESS;
}
