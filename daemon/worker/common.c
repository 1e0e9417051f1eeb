// What the modes share: the log, the link to the broker and the clock.
#include <errno.h>
#include <poll.h>
#include <stdalign.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/worker/worker.h"

void nb_log(const char *format, ...)
{
    char text[512], line[sizeof(text) + 20];
    struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    int n = snprintf(line, sizeof(line), "nibble-worker: %s\n", text);
    // One that nobody reads is not waited for.
    if (poll(&p, 1, 0) == 1 && p.revents & POLLOUT) {
        ssize_t written = write(STDERR_FILENO, line, (size_t)n);
        (void)written; // nowhere left to complain
    }
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

int nb_link_receive(void *ret_packet, uint32_t type, uint32_t size)
{
    alignas(8) char packet[NB_WIRE_MAX];
    int fds[NB_WIRE_FDS_MAX], rc;
    size_t n_fds;
    while ((rc = nb_wire_recv(NB_LINK_FD, packet, fds, &n_fds)) == -EAGAIN) {
        struct pollfd p = {.fd = NB_LINK_FD, .events = POLLIN};
        poll(&p, 1, -1);
    }
    const struct nb_wire_header *header = (const void *)packet;
    if (rc != (int)size || header->type != type)
        return -EPROTO;
    memcpy(ret_packet, packet, size);
    return 0;
}

void nb_link_fault(int status, const char *why)
{
    struct nb_link_fault fault = {.header.status = status};
    snprintf(fault.text, sizeof(fault.text), "%s", why);
    nb_log("%s", fault.text);
    nb_link_send(&fault, NB_LINK_FAULT, sizeof(fault));
}

int nb_link_status(int error)
{
    static const struct {
        int error, status;
    } table[] = {
        {-EINVAL, NIBBLE_E_FORMAT},       {-EFBIG, NIBBLE_E_FORMAT},
        {-ENOENT, NIBBLE_E_FORMAT}, // a file that another one names
        {-ENOTSUP, NIBBLE_E_UNSUPPORTED}, {-ENOMEM, NIBBLE_E_TOO_LARGE},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (table[i].error == error)
            return table[i].status;
    return error;
}
