// Packets over SOCK_SEQPACKET, and bytes that wake: what every process of Nibble uses to talk to
// another. It knows sizes and fds, not what a message means. It never waits and never leaks an fd,
// whatever the peer sends. It drops no fd of a stranger either: the last close of one may block as
// long as its owner likes, so a packet is looked at before it is taken.
#include "libclient/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libclient/include/nibble.h"

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83 // Linux 6.16
#endif

#define BOTH    (NB_ROLE_APP | NB_ROLE_ADMIN)
#define SIZE(x) sizeof(struct nb_wire_##x)

static const struct nb_wire_message messages[] = {
    {NB_WIRE_HELLO, "HELLO", BOTH, SIZE(hello), SIZE(hello), 0, 0},
    {NB_WIRE_STATUS, "STATUS", BOTH, SIZE(empty), SIZE(status_reply), 0, 0},
    {NB_WIRE_LIST, "LIST", BOTH, SIZE(list_request), SIZE(list_reply), 0, 0},
    {NB_WIRE_OPEN_CHANNEL, "OPEN_CHANNEL", NB_ROLE_APP, SIZE(open_channel), SIZE(channel), 0, 2},
    {NB_WIRE_CLOSE_CHANNEL, "CLOSE_CHANNEL", NB_ROLE_APP, SIZE(channel_ref), SIZE(empty), 0, 0},
    {NB_WIRE_FILE, "FILE", NB_ROLE_ADMIN, SIZE(file), SIZE(empty), 1, 0},
    {NB_WIRE_LOAD, "LOAD", NB_ROLE_ADMIN, SIZE(load), SIZE(empty), 0, 0},
    {NB_WIRE_UNLOAD, "UNLOAD", NB_ROLE_ADMIN, SIZE(unload), SIZE(empty), 0, 0},
    {NB_WIRE_CANCEL_LOAD, "CANCEL_LOAD", NB_ROLE_ADMIN, SIZE(empty), 0, 0, 0},
    {NB_WIRE_REGISTER, "REGISTER", NB_ROLE_APP, SIZE(register), SIZE(memory), 1, 0},
    {NB_WIRE_UNREGISTER, "UNREGISTER", NB_ROLE_APP, SIZE(memory), SIZE(empty), 0, 0},
    {NB_WIRE_JOB_START, "JOB_START", BOTH, SIZE(job_start), SIZE(job), 1, 0},
    {NB_WIRE_JOB_WAIT, "JOB_WAIT", BOTH, SIZE(job), SIZE(empty), 0, 0},
    {NB_WIRE_JOB_CONTROL, "JOB_CONTROL", BOTH, SIZE(job_control), SIZE(empty), 0, 0},
    {NB_WIRE_JOB_RESULT, "JOB_RESULT", BOTH, SIZE(job_result), SIZE(job_result), 0, 1},
    {NB_WIRE_PROGRESS, "PROGRESS", 0, 0, SIZE(progress), 0, 0},
    {NB_WIRE_REBIND, "REBIND", 0, 0, SIZE(channel), 0, 2},
    {NB_WIRE_CHANNEL_LOST, "CHANNEL_LOST", 0, 0, SIZE(channel_ref), 0, 0},
    {NB_WIRE_JOB_PROGRESS, "JOB_PROGRESS", 0, 0, SIZE(job_progress), 0, 0},
    {NB_WIRE_JOB_FILES, "JOB_FILES", 0, 0, SIZE(job), 0, 1},
};

const struct nb_wire_message *nb_wire_message(uint32_t type)
{
    for (size_t i = 0; i < sizeof(messages) / sizeof(*messages); i++)
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

// What comes next stays in the socket. Fds that find no room in the message's control buffer stay
// there too, and MSG_CTRUNC tells of them.
static ssize_t peek(int sock, struct msghdr *message)
{
    ssize_t got;
    int resets = 0;
    const size_t room = message->msg_controllen;
    // Who closes with packets of ours unread leaves an error before what it had sent.
    do {
        message->msg_controllen = room;
        got = recvmsg(sock, message, MSG_DONTWAIT | MSG_PEEK | MSG_CMSG_CLOEXEC);
    } while (got < 0 && (errno == EINTR || (errno == ECONNRESET && !resets++)));
    if (got < 0)
        return errno == ECONNRESET || errno == EPIPE ? 0 : -errno;
    return got;
}

// Takes what was looked at. Its fds, if any, are ours by now or were none: nothing is dropped.
static void take(int sock, void *buf, size_t size)
{
    ssize_t got;
    do
        got = recv(sock, buf, size, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
}

int nb_wire_look(int sock, struct nb_wire_header *ret_header, bool *ret_has_fds)
{
    struct nb_wire_header header = {0};
    struct iovec part = {&header, sizeof(header)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t got = peek(sock, &message);
    if (got < 0)
        return (int)got;
    *ret_has_fds = message.msg_flags & MSG_CTRUNC;
    if (got == 0 && !*ret_has_fds)
        return 0;
    *ret_header = header;
    return 1;
}

int nb_wire_recv(int sock, void *buf, int *ret_fds, size_t *ret_n_fds)
{
    union control control;
    struct iovec part = {buf, NB_WIRE_MAX};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof(control.bytes)};
    *ret_n_fds = 0;
    ssize_t got = peek(sock, &message);
    if (got < 0)
        return (int)got;
    *ret_n_fds = take_fds(&message, ret_fds);
    if (message.msg_flags & MSG_CTRUNC)
        return *ret_n_fds < NB_WIRE_FDS_MAX ? -EMFILE : -EPROTO;
    struct nb_wire_header header = {0};
    if ((size_t)got >= sizeof(header))
        memcpy(&header, buf, sizeof(header));
    // An empty packet looks like the end, and is as good as one.
    if (message.msg_flags & MSG_TRUNC || header.size != (size_t)got)
        return -EPROTO;
    take(sock, NULL, 0);
    return (int)got;
}

// The kernel counts what lies in a socket. Where it cannot be asked, fds may lie in it.
bool nb_wire_end(int sock)
{
    char path[48], text[1024] = "";
    if (shutdown(sock, SHUT_RD) < 0 && errno == ENOTSOCK)
        return false;
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", sock);
    int info = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = info < 0 ? -1 : read(info, text, sizeof(text) - 1);
    if (info >= 0)
        close(info);
    const char *count = n > 0 ? strstr(text, "scm_fds:") : NULL;
    return !count || strtoul(count + strlen("scm_fds:"), NULL, 10) > 0;
}

void nb_wire_accept_fds(int sock, bool accept)
{
    const int value = accept;
    // Before Linux 6.16 there is no such option: fds come, and are never taken.
    (void)setsockopt(sock, SOL_SOCKET, SO_PASSRIGHTS, &value, sizeof(value));
}

int nb_wire_pair(int type, int ret_socks[2])
{
    if (socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ret_socks) < 0)
        return -errno;
    for (int i = 0; i < 2 && type == SOCK_STREAM; i++)
        nb_wire_accept_fds(ret_socks[i], false);
    return 0;
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
    struct iovec part = {bytes, sizeof(bytes)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t got = peek(sock, &message);
    if (got >= 0 && message.msg_flags & MSG_CTRUNC)
        return -EPROTO;
    if (got > 0)
        take(sock, bytes, (size_t)got); // no more: what came meanwhile was not looked at
    if (got > 0 || got == -EAGAIN)
        return 0;
    return got == 0 ? -EPIPE : (int)got;
}

bool nb_wake_end(int sock)
{
    int rc;
    shutdown(sock, SHUT_RD);
    while ((rc = nb_wake_drain(sock)) == 0)
        ; // ends: nothing more comes, and where there is nothing is the end
    return rc == -EPROTO;
}
