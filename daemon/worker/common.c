// What the modes share: the log, the link to the broker and the clock.
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

static void send_all(void *packet, uint32_t type, uint32_t size, const int *fds, size_t n_fds)
{
    struct nb_wire_header *h = packet;
    h->type = type;
    h->size = size;
    while (nb_wire_send(NB_LINK_FD, packet, size, fds, n_fds) == -EAGAIN) {
        struct pollfd p = {.fd = NB_LINK_FD, .events = POLLOUT};
        poll(&p, 1, -1);
    }
}

void nb_link_send(void *packet, uint32_t type, uint32_t size)
{
    send_all(packet, type, size, NULL, 0);
}

void nb_link_send_fd(void *packet, uint32_t type, uint32_t size, int fd)
{
    send_all(packet, type, size, &fd, 1);
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
