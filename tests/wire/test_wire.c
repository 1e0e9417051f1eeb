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

static int take(void)
{
    n_fds = 0;
    return nb_wire_recv(ends[1], packet, fds, &n_fds);
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
            memcpy(CMSG_DATA(rights) + i * sizeof(int), &fd, sizeof fd);
    }
    assert_int_equal(sendmsg(ends[0], &message, 0), size);
}

static void a_packet_arrives_with_its_fds(void **state)
{
    struct nb_wire_progress out = {
        .header = {NB_WIRE_PROGRESS, sizeof out, 7, 0}, .done = 1, .total = 2};
    int given[NB_WIRE_FDS_MAX] = {0, 1, 2, 0};
    assert_int_equal(nb_wire_send(ends[0], &out, sizeof out, given, NB_WIRE_FDS_MAX), 0);
    assert_int_equal(take(), sizeof out);
    assert_memory_equal(packet, &out, sizeof out);
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
    struct nb_wire_empty out = {{NB_WIRE_STATUS, sizeof out, 1, 0}};
    assert_int_equal(nb_wire_send(ends[1], &out, sizeof out, NULL, 0), -EPIPE);
}

static void a_packet_that_is_too_long_is_refused(void **state)
{
    unsigned char bytes[NB_WIRE_MAX + 1] = {0};
    uint32_t size = sizeof bytes;
    memcpy(bytes + offsetof(struct nb_wire_header, size), &size, sizeof size);
    send_raw(bytes, sizeof bytes, 0, 1);
    assert_int_equal(take(), -EPROTO);
    assert_int_equal(nb_wire_send(ends[0], bytes, sizeof bytes, NULL, 0), -EINVAL);
}

static void short_and_misdescribed_packets_are_refused(void **state)
{
    struct nb_wire_progress out = {.header = {NB_WIRE_PROGRESS, sizeof out, 7, 0}};
    const size_t lengths[] = {1, 15, sizeof(struct nb_wire_header), sizeof out - 1};
    int free_fd = lowest_free_fd();
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        send_raw(&out, lengths[i], 0, 2);
        assert_int_equal(take(), -EPROTO);
    }
    uint32_t sizes[] = {0, 1, sizeof out + 1, UINT32_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        out.header.size = sizes[i];
        send_raw(&out, sizeof out, 0, 1);
        assert_int_equal(take(), -EPROTO);
    }
    assert_int_equal(lowest_free_fd(), free_fd);
}

static void too_many_fds_are_closed(void **state)
{
    struct nb_wire_empty out = {{NB_WIRE_STATUS, sizeof out, 1, 0}};
    int free_fd = lowest_free_fd();
    for (size_t n = NB_WIRE_FDS_MAX + 1; n <= 16; n++) {
        send_raw(&out, sizeof out, 0, n);
        assert_int_equal(take(), -EPROTO);
    }
    send_raw(&out, 0, 0, 2); // an empty packet looks like the end
    assert_int_equal(take(), 0);
    assert_int_equal(lowest_free_fd(), free_fd);
}

static void a_full_socket_is_eagain(void **state)
{
    static struct nb_wire_progress out = {.header = {NB_WIRE_PROGRESS, sizeof out, 7, 0}};
    int r = 0;
    for (int i = 0; i < 100000 && r == 0; i++)
        r = nb_wire_send(ends[0], &out, sizeof out, NULL, 0);
    assert_int_equal(r, -EAGAIN);
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
    int r = 0;
    for (int i = 0; i < 100000 && r == 0; i++)
        r = nb_wake_drain(pair[1]);
    assert_int_equal(r, -EPIPE);
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
        TEST(a_full_socket_is_eagain),
        TEST(the_table_is_consistent),
        TEST(a_wake_reaches_and_never_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
