// Packets over SOCK_SEQPACKET, and bytes that wake: what every process of Nibble uses to talk to
// another. It knows sizes and fds, not what a message means; it never waits and never leaks an fd,
// whatever the peer sends.
#include "libclient/wire.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libclient/include/nibble.h"

#define BOTH    (NB_ROLE_APP | NB_ROLE_ADMIN)
#define SIZE(x) sizeof(struct nb_wire_##x)

static const struct nb_wire_message messages[] = {
    {NB_WIRE_HELLO, "HELLO", BOTH, SIZE(hello), SIZE(hello), 0, 0},
    {NB_WIRE_STATUS, "STATUS", BOTH, SIZE(empty), SIZE(status_reply), 0, 0},
    {NB_WIRE_LIST, "LIST", BOTH, SIZE(list_request), SIZE(list_reply), 0, 0},
    {NB_WIRE_OPEN_CHANNEL, "OPEN_CHANNEL", NB_ROLE_APP, SIZE(open_channel), SIZE(channel), 0, 2},
    {NB_WIRE_CLOSE_CHANNEL, "CLOSE_CHANNEL", NB_ROLE_APP, SIZE(channel_ref), SIZE(empty), 0, 0},
    {NB_WIRE_LOAD, "LOAD", NB_ROLE_ADMIN, SIZE(load), SIZE(empty), 1, 0},
    {NB_WIRE_UNLOAD, "UNLOAD", NB_ROLE_ADMIN, SIZE(unload), SIZE(empty), 0, 0},
    {NB_WIRE_CANCEL_LOAD, "CANCEL_LOAD", NB_ROLE_ADMIN, SIZE(empty), 0, 0, 0},
    {NB_WIRE_REGISTER, "REGISTER", NB_ROLE_APP, SIZE(register), SIZE(memory), 1, 0},
    {NB_WIRE_UNREGISTER, "UNREGISTER", NB_ROLE_APP, SIZE(memory), SIZE(empty), 0, 0},
    {NB_WIRE_PROGRESS, "PROGRESS", 0, 0, SIZE(progress), 0, 0},
    {NB_WIRE_REBIND, "REBIND", 0, 0, SIZE(channel), 0, 2},
    {NB_WIRE_CHANNEL_LOST, "CHANNEL_LOST", 0, 0, SIZE(channel_ref), 0, 0},
};

const struct nb_wire_message *nb_wire_message(uint32_t type)
{
    for (size_t i = 0; i < sizeof messages / sizeof *messages; i++)
        if (messages[i].type == type)
            return &messages[i];
    return NULL;
}

// Room for exactly the fds a packet may carry: one more sets MSG_CTRUNC.
union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(NB_WIRE_FDS_MAX * sizeof(int))];
};

int nb_wire_send(int sock, const void *packet, size_t size, const int *fds, size_t n_fds)
{
    if (size < sizeof(struct nb_wire_header) || size > NB_WIRE_MAX || n_fds > NB_WIRE_FDS_MAX)
        return -EINVAL;
    union control control = {0};
    struct iovec part = {(void *)(uintptr_t)packet, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (n_fds) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(rights), fds, n_fds * sizeof(int));
    }
    ssize_t sent;
    do
        sent = sendmsg(sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0)
        return 0;
    return errno == ECONNRESET || errno == ENOTCONN ? -EPIPE : -errno;
}

// Every fd the kernel gave us, also of a packet that is refused afterwards. At most
// NB_WIRE_FDS_MAX, by the buffer's size.
static size_t take_fds(struct msghdr *message, int *fds)
{
    size_t n = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t bytes = c->cmsg_len - CMSG_LEN(0);
        memcpy(fds + n, CMSG_DATA(c), bytes);
        n += bytes / sizeof(int);
    }
    return n;
}

void nb_wire_close_fds(const int *fds, size_t n_fds)
{
    for (size_t i = 0; i < n_fds; i++)
        close(fds[i]);
}

int nb_wire_recv(int sock, void *buf, int *ret_fds, size_t *ret_n_fds)
{
    union control control;
    struct iovec part = {buf, NB_WIRE_MAX};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got;
    int resets = 0;
    // Who closes with packets of ours unread leaves an error before what it had sent.
    do
        got = recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (got < 0 && (errno == EINTR || (errno == ECONNRESET && !resets++)));
    if (got < 0)
        return errno == ECONNRESET || errno == EPIPE ? 0 : -errno;

    int fds[NB_WIRE_FDS_MAX];
    size_t n_fds = take_fds(&message, fds);
    struct nb_wire_header header = {0};
    if ((size_t)got >= sizeof header)
        memcpy(&header, buf, sizeof header);
    bool whole =
        !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) && got > 0 && header.size == (size_t)got;
    if (!whole) {
        nb_wire_close_fds(fds, n_fds);
        return got == 0 ? 0 : -EPROTO; // an empty packet looks like the end, and is as good as one
    }
    memcpy(ret_fds, fds, n_fds * sizeof *fds);
    *ret_n_fds = n_fds;
    return (int)got;
}

int nb_wire_pair(int type, int ret_socks[2])
{
    return socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ret_socks) < 0 ? -errno : 0;
}

int nb_wake_send(int sock)
{
    ssize_t sent;
    do
        sent = send(sock, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0 || errno == EAGAIN)
        return 0;
    return errno == ECONNRESET || errno == ENOTCONN ? -EPIPE : -errno;
}

int nb_wake_drain(int sock)
{
    char bytes[64];
    ssize_t got;
    do
        got = recv(sock, bytes, sizeof bytes, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got > 0 || (got < 0 && errno == EAGAIN))
        return 0;
    return got == 0 || errno == ECONNRESET ? -EPIPE : -errno;
}
