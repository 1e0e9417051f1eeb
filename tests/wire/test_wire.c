// Packets: what nb_wire_recv takes, and what it refuses without losing an fd.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdalign.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cmocka.h>

#include "libclient/include/nibble.h"
#include "libclient/wire.h"

static int ends[2];
static alignas(8) unsigned char packet[NB_WIRE_MAX];
static int fds[NB_WIRE_FDS_MAX];
static size_t n_fds;

static int open_ends(void **state)
{
    n_fds = 0;
    return nb_wire_pair(SOCK_SEQPACKET, ends);
}

static int close_ends(void **state)
{
    nb_wire_close_fds(ends, 2);
    return 0;
}

static int lowest_free_fd(void)
{
    int fd = dup(0);
    close(fd);
    return fd;
}

// A packet that is refused stays: here it goes, so that the next one can be looked at.
static int take(void)
{
    int rc = nb_wire_recv(ends[1], packet, fds, &n_fds);
    if (rc <= 0) {
        nb_wire_close_fds(fds, n_fds);
        recv(ends[1], NULL, 0, MSG_DONTWAIT);
    }
    return rc;
}

static void send_raw(const void *bytes, size_t size, int fd, size_t n)
{
    char control[CMSG_SPACE(16 * sizeof(int))] = {0};
    struct iovec part = {(void *)(uintptr_t)bytes, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (n) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(n * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(n * sizeof(int));
        for (size_t i = 0; i < n; i++)
            memcpy(CMSG_DATA(rights) + i * sizeof(int), &fd, sizeof(fd));
    }
    assert_int_equal(sendmsg(ends[0], &message, 0), size);
}

static void a_packet_arrives_with_its_fds(void **state)
{
    struct nb_wire_progress out = {
        .header = {NB_WIRE_PROGRESS, sizeof(out), 7, 0}, .done = 1, .total = 2};
    int given[NB_WIRE_FDS_MAX] = {0, 1, 2, 0};
    assert_int_equal(nb_wire_send(ends[0], &out, sizeof(out), given, NB_WIRE_FDS_MAX), 0);
    assert_int_equal(take(), sizeof(out));
    assert_memory_equal(packet, &out, sizeof(out));
    assert_int_equal(n_fds, NB_WIRE_FDS_MAX);
    for (size_t i = 0; i < n_fds; i++)
        assert_true(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
    nb_wire_close_fds(fds, n_fds);
}

static void nothing_is_eagain_and_the_end_is_0(void **state)
{
    assert_int_equal(take(), -EAGAIN);
    shutdown(ends[0], SHUT_RDWR);
    assert_int_equal(take(), 0);
    struct nb_wire_empty out = {{NB_WIRE_STATUS, sizeof(out), 1, 0}};
    assert_int_equal(nb_wire_send(ends[1], &out, sizeof(out), NULL, 0), -EPIPE);
}

static void a_packet_that_is_too_long_is_refused(void **state)
{
    unsigned char bytes[NB_WIRE_MAX + 1] = {0};
    uint32_t size = sizeof(bytes);
    memcpy(bytes + offsetof(struct nb_wire_header, size), &size, sizeof(size));
    send_raw(bytes, sizeof(bytes), 0, 1);
    assert_int_equal(take(), -EPROTO);
    assert_int_equal(nb_wire_send(ends[0], bytes, sizeof(bytes), NULL, 0), -EINVAL);
}

static void short_and_misdescribed_packets_are_refused(void **state)
{
    struct nb_wire_progress out = {.header = {NB_WIRE_PROGRESS, sizeof(out), 7, 0}};
    const size_t lengths[] = {1, 15, sizeof(struct nb_wire_header), sizeof(out) - 1};
    int free_fd = lowest_free_fd();
    for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
        send_raw(&out, lengths[i], 0, 2);
        assert_int_equal(take(), -EPROTO);
    }
    uint32_t sizes[] = {0, 1, sizeof(out) + 1, UINT32_MAX};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        out.header.size = sizes[i];
        send_raw(&out, sizeof(out), 0, 1);
        assert_int_equal(take(), -EPROTO);
    }
    assert_int_equal(lowest_free_fd(), free_fd);
}

static void too_many_fds_are_closed(void **state)
{
    struct nb_wire_empty out = {{NB_WIRE_STATUS, sizeof(out), 1, 0}};
    int free_fd = lowest_free_fd();
    for (size_t n = NB_WIRE_FDS_MAX + 1; n <= 16; n++) {
        send_raw(&out, sizeof(out), 0, n);
        assert_int_equal(take(), -EPROTO);
    }
    send_raw(&out, 0, 0, 2); // an empty packet looks like the end
    assert_int_equal(take(), 0);
    assert_int_equal(lowest_free_fd(), free_fd);
}

// The last close of a stranger's fd may block: what is refused is not dropped by the way.
static void what_is_refused_stays_with_its_fds(void **state)
{
    struct nb_wire_empty out = {{NB_WIRE_STATUS, sizeof(out), 1, 0}};
    struct nb_wire_header header;
    int away[2];
    bool has_fds = false;
    char byte;
    assert_int_equal(pipe2(away, O_NONBLOCK), 0);
    send_raw(&out, sizeof(out), away[1], NB_WIRE_FDS_MAX + 1);
    close(away[1]);
    assert_int_equal(nb_wire_look(ends[1], &header, &has_fds), 1);
    assert_true(has_fds && header.type == NB_WIRE_STATUS && header.size == sizeof(out));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(nb_wire_recv(ends[1], packet, fds, &n_fds), -EPROTO);
        assert_int_equal(n_fds, NB_WIRE_FDS_MAX);
        nb_wire_close_fds(fds, n_fds);
    }
    assert_int_equal(read(away[0], &byte, 1), -1); // the pipe still has a writer
    assert_true(nb_wire_end(ends[1]));
    assert_int_equal(read(away[0], &byte, 1), -1);
    close(away[0]);
}

static void the_end_of_a_socket_tells_of_fds_in_it(void **state)
{
    struct nb_wire_empty out = {{NB_WIRE_STATUS, sizeof(out), 1, 0}};
    struct nb_wire_header header;
    bool has_fds = true;
    for (int i = 0; i < 3; i++) {
        send_raw(&out, sizeof(out), 0, 0);
        send_raw("", 0, 0, 0);
    }
    assert_int_equal(nb_wire_look(ends[1], &header, &has_fds), 1);
    assert_false(has_fds);
    assert_false(nb_wire_end(ends[1]));
    assert_int_equal(nb_wire_send(ends[0], &out, sizeof(out), NULL, 0), -EPIPE);
    assert_int_equal(close_ends(NULL) | open_ends(NULL), 0);
    send_raw(&out, sizeof(out), 0, 0);
    send_raw("", 0, 0, 0);
    send_raw("", 0, 0, 1); // an empty packet, with an fd
    send_raw(&out, sizeof(out), 0, 0);
    assert_true(nb_wire_end(ends[1]));
    assert_false(nb_wire_end(0)); // no socket
}

static void no_room_for_fds_is_no_fault_of_the_peer(void **state)
{
    struct nb_wire_empty out = {{NB_WIRE_STATUS, sizeof(out), 1, 0}};
    struct rlimit before, none;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    send_raw(&out, sizeof(out), 0, 2);
    none = (struct rlimit){(rlim_t)lowest_free_fd() + 1, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    int rc = nb_wire_recv(ends[1], packet, fds, &n_fds);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(rc, -EMFILE);
    assert_int_equal(n_fds, 1);
    nb_wire_close_fds(fds, n_fds);
    assert_int_equal(nb_wire_recv(ends[1], packet, fds, &n_fds), sizeof(out));
    assert_int_equal(n_fds, 2);
    nb_wire_close_fds(fds, n_fds);
}

static int send_byte_with_fd(int sock)
{
    int kept = ends[0];
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {"x", 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    *rights = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(rights), &kept, sizeof(kept));
    return sendmsg(sock, &message, 0) < 0 ? -errno : 0;
}

static void a_wake_brings_no_fd(void **state)
{
    int pair[2];
    assert_int_equal(nb_wire_pair(SOCK_STREAM, pair), 0);
    int rc = send_byte_with_fd(pair[0]);
    assert_true(rc == 0 || rc == -EPERM); // at the door, where the kernel can
    nb_wire_accept_fds(pair[1], true);    // as before Linux 6.16
    assert_int_equal(nb_wake_send(pair[0]), 0);
    if (rc < 0)
        assert_int_equal(nb_wake_drain(pair[1]), 0);
    assert_int_equal(send_byte_with_fd(pair[0]), 0);
    assert_int_equal(nb_wake_send(pair[0]), 0);
    while ((rc = nb_wake_drain(pair[1])) == 0)
        ;
    assert_int_equal(rc, -EPROTO);
    assert_true(nb_wake_end(pair[1]));
    nb_wire_close_fds(pair, 2);
    assert_int_equal(nb_wire_pair(SOCK_STREAM, pair), 0);
    assert_int_equal(nb_wake_send(pair[0]), 0);
    assert_false(nb_wake_end(pair[1]));
    nb_wire_close_fds(pair, 2);
}

static void a_full_socket_is_eagain(void **state)
{
    static struct nb_wire_progress out = {.header = {NB_WIRE_PROGRESS, sizeof(out), 7, 0}};
    int rc = 0;
    for (int i = 0; i < 100000 && rc == 0; i++)
        rc = nb_wire_send(ends[0], &out, sizeof(out), NULL, 0);
    assert_int_equal(rc, -EAGAIN);
}

static void the_table_is_consistent(void **state)
{
    for (uint32_t type = 0; type < 0x300; type++) {
        const struct nb_wire_message *message = nb_wire_message(type);
        if (!message)
            continue;
        assert_int_equal(message->type, type);
        assert_int_equal(message->roles != 0, type < NB_WIRE_REPLY);
        assert_in_range(message->reply_size, 0, NB_WIRE_MAX);
        assert_in_range(message->fds + message->reply_fds, 0, NB_WIRE_FDS_MAX);
        assert_int_equal(message->size >= sizeof(struct nb_wire_header), message->roles != 0);
    }
    assert_null(nb_wire_message(0));
    assert_null(nb_wire_message(NB_WIRE_HELLO | NB_WIRE_REPLY));
}

static void a_wake_reaches_and_never_blocks(void **state)
{
    int pair[2];
    assert_int_equal(nb_wire_pair(SOCK_STREAM, pair), 0);
    assert_int_equal(nb_wake_drain(pair[1]), 0);
    for (int i = 0; i < 100000 && nb_wake_send(pair[0]) == 0; i++)
        if (i == 99999)
            assert_int_equal(nb_wake_send(pair[0]), 0); // full long since
    close(pair[0]);
    int rc = 0;
    for (int i = 0; i < 100000 && rc == 0; i++)
        rc = nb_wake_drain(pair[1]);
    assert_int_equal(rc, -EPIPE);
    assert_int_equal(nb_wake_send(pair[1]), -EPIPE);
    close(pair[1]);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, open_ends, close_ends)
    const struct CMUnitTest tests[] = {
        TEST(a_packet_arrives_with_its_fds),
        TEST(nothing_is_eagain_and_the_end_is_0),
        TEST(a_packet_that_is_too_long_is_refused),
        TEST(short_and_misdescribed_packets_are_refused),
        TEST(too_many_fds_are_closed),
        TEST(what_is_refused_stays_with_its_fds),
        TEST(the_end_of_a_socket_tells_of_fds_in_it),
        TEST(no_room_for_fds_is_no_fault_of_the_peer),
        TEST(a_wake_brings_no_fd),
        TEST(a_full_socket_is_eagain),
        TEST(the_table_is_consistent),
        TEST(a_wake_reaches_and_never_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
