// What the modes share: the log, the link to the broker, the clock and the table of devices.
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "daemon/worker/worker.h"

void nb_log(const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    fprintf(stderr, "nibble-worker: %s\n", line);
}

void nb_link_send(void *packet, uint32_t type, uint32_t size)
{
    struct nb_wire_header *h = packet;
    h->type = type;
    h->size = size;
    while (nb_wire_send(NB_LINK_FD, packet, size, NULL, 0) == -EAGAIN) {
        struct pollfd p = {.fd = NB_LINK_FD, .events = POLLOUT};
        poll(&p, 1, -1);
    }
}

int nb_link_status(int error)
{
    static const struct {
        int error, status;
    } table[] = {
        {-EINVAL, NIBBLE_E_FORMAT},
        {-EFBIG, NIBBLE_E_FORMAT},
        {-ENOTSUP, NIBBLE_E_UNSUPPORTED},
        {-ENOMEM, NIBBLE_E_TOO_LARGE},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (table[i].error == error)
            return table[i].status;
    return error;
}

uint64_t nb_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int open_cpu(struct nb_device **ret)
{
    return nb_cpu_device_create(0, ret);
}

static const struct {
    const char *name;
    int (*open)(struct nb_device **ret);
} devices[] = {
    {"cpu", open_cpu},
};

int nb_worker_device_name(uint32_t i, const char **ret_name)
{
    if (i >= sizeof(devices) / sizeof(devices[0]))
        return -ENOENT;
    *ret_name = devices[i].name;
    return 0;
}

int nb_worker_device_open(const char *name, struct nb_device **ret)
{
    for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++)
        if (!strcmp(name, devices[i].name))
            return devices[i].open(ret);
    return -ENOENT;
}

void nb_worker_device_describe(const struct nb_device *device, struct nb_link_device *ret)
{
    struct nb_device_info info;
    device->ops->info(device, &info);
    *ret = (struct nb_link_device){
        .device = {.memory_bytes = info.memory_bytes, .threads = info.threads}};
    struct nibble_device *d = &ret->device;
    snprintf(d->name, sizeof(d->name), "%.31s", info.name);
    snprintf(d->description, sizeof(d->description), "%s", info.description);
    snprintf(d->isa, sizeof(d->isa), "%s", info.isa);
    snprintf(d->state, sizeof(d->state), "ready");
}
