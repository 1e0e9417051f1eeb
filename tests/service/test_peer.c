// The last words of a worker that dies: heard, whatever the broker was sending it meanwhile. And
// descriptors: those that nobody asked for are never received, those that the kernel holds up are
// sent later.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdalign.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "daemon/peer.h"

struct end {
    sd_event *loop;
    struct nb_peer *peer;
    int other; // the worker's end
    int packets, closed, why, dropped;
};
#define WITH_FDS 2

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds)
{
    struct end *e = owner;
    e->packets++;
}

static void on_closed(void *owner, int why)
{
    struct end *e = owner;
    e->closed++;
    e->why = why;
}

static bool may_bring_fds(void *owner, const struct nb_wire_header *header)
{
    return header->type == WITH_FDS;
}

static void drop(void *owner, int fd)
{
    struct end *e = owner;
    e->dropped++;
    close(fd);
}

static const struct nb_peer_ops ops = {may_bring_fds, on_packet, on_closed, drop, false};
static const struct nb_peer_ops patient_ops = {may_bring_fds, on_packet, on_closed, drop, true};
static const struct nb_wire_header packet = {.type = 1, .size = sizeof(packet)};

static void begin_with(struct end *e, const struct nb_peer_ops *with)
{
    int pair[2];
    *e = (struct end){.why = 1};
    assert_int_equal(nb_wire_pair(SOCK_SEQPACKET, pair), 0);
    e->other = pair[1];
    assert_true(sd_event_new(&e->loop) >= 0);
    assert_int_equal(nb_peer_create(e->loop, pair[0], with, e, 4096, &e->peer), 0);
}

static void begin(struct end *e)
{
    begin_with(e, &ops);
}

// It says something and is gone.
static void die(struct end *e)
{
    assert_int_equal(nb_wire_send(e->other, &packet, sizeof(packet), NULL, 0), 0);
    close(e->other);
}

static void finish(struct end *e, int packets, int why)
{
    for (int i = 0; i < 8 && !e->closed; i++)
        assert_true(sd_event_run(e->loop, 0) >= 0);
    assert_int_equal(e->packets, packets);
    assert_int_equal(e->closed, 1);
    assert_int_equal(e->why, why);
    nb_peer_destroy(e->peer);
    sd_event_unref(e->loop);
}

static void after_a_packet_that_failed(void **state)
{
    struct end e;
    begin(&e);
    die(&e);
    nb_peer_send(e.peer, &packet, NULL, 0);
    nb_peer_drain(e.peer);
    finish(&e, 1, -EPIPE);
}

static void beside_packets_that_it_had_not_read(void **state)
{
    struct end e;
    begin(&e);
    nb_peer_send(e.peer, &packet, NULL, 0);
    die(&e);
    finish(&e, 1, 0);
}

static void after_both(void **state)
{
    struct end e;
    begin(&e);
    nb_peer_send(e.peer, &packet, NULL, 0);
    die(&e);
    nb_peer_send(e.peer, &packet, NULL, 0);
    nb_peer_drain(e.peer);
    finish(&e, 1, -EPIPE);
}

static void not_of_one_that_broke_the_rules(void **state)
{
    struct end e;
    begin(&e);
    die(&e);
    nb_peer_break(e.peer, -EPROTO);
    nb_peer_drain(e.peer);
    finish(&e, 0, -EPROTO);
}

static void with_fds(struct end *e, uint32_t type, int fd, size_t n)
{
    const struct nb_wire_header p = {.type = type, .size = sizeof(p)};
    const int fds[] = {fd, fd};
    assert_int_equal(nb_wire_send(e->other, &p, sizeof(p), fds, n), 0);
}

// Whether the pipe's last writer is gone.
static bool is_closed(int reader)
{
    char byte;
    return read(reader, &byte, 1) == 0;
}

static void fds_come_where_they_belong_alone(void **state)
{
    struct end e;
    int away[2];
    begin(&e);
    assert_int_equal(pipe2(away, O_NONBLOCK), 0);
    with_fds(&e, WITH_FDS, away[1], 2);
    assert_true(sd_event_run(e.loop, 0) >= 0);
    assert_int_equal(e.packets, 1);
    assert_int_equal(e.dropped, 2); // nobody took them
    with_fds(&e, WITH_FDS + 1, away[1], 1);
    close(away[1]);
    assert_true(sd_event_run(e.loop, 0) >= 0);
    assert_int_equal(e.packets, 1);
    assert_false(is_closed(away[0])); // never received, and not dropped by the way
    assert_int_equal(e.dropped, 2);
    finish(&e, 1, -EPROTO);
    assert_true(is_closed(away[0]));
    close(away[0]);
    close(e.other);
}

static void a_socket_with_fds_in_it_is_closed_elsewhere(void **state)
{
    struct end e;
    begin(&e);
    with_fds(&e, WITH_FDS, 0, 1);
    nb_peer_destroy(e.peer);
    assert_int_equal(e.dropped, 1);
    sd_event_unref(e.loop);
    close(e.other);
}

// As a user whom the kernel counts, and with as many fds under way as it allows.
static int too_many_under_way(const struct nb_peer_ops *with, int *ret_held)
{
    const struct rlimit few = {16, 16};
    struct end e;
    int pair[2], n = 0, rc = 0;
    if (setresuid(65534, 65534, 65534) < 0)
        return -errno;
    begin_with(&e, with);
    if (nb_wire_pair(SOCK_SEQPACKET, pair) < 0 || setrlimit(RLIMIT_NOFILE, &few) < 0)
        return -errno;
    while (n < 100 && (rc = nb_wire_send(pair[0], &packet, sizeof(packet), (int[]){0}, 1)) == 0)
        n++;
    if (rc != -ETOOMANYREFS)
        return -ENOTSUP;
    nb_peer_send(e.peer, &packet, (int[]){dup(0)}, 1);
    nb_peer_send(e.peer, &packet, NULL, 0); // behind it
    for (int i = 0; i < 5; i++)
        sd_event_run(e.loop, 10000);
    *ret_held = (int)nb_peer_queued(e.peer);
    if (e.closed)
        return e.why;
    close(pair[0]);
    close(pair[1]);
    for (int i = 0; i < 100 && nb_peer_queued(e.peer); i++)
        sd_event_run(e.loop, 100000);
    return (int)nb_peer_queued(e.peer);
}

static int in_a_child(const struct nb_peer_ops *with, int expected, int expected_held)
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int held = 0, rc = too_many_under_way(with, &held);
        if (rc != expected || held != expected_held)
            fprintf(stderr, "%d, held %d\n", rc, held);
        _exit(rc == -EPERM || rc == -ENOTSUP ? 77 : rc != expected || held != expected_held);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void fds_that_the_kernel_holds_up_end_a_client_and_wait_for_a_worker(void **state)
{
    int client = in_a_child(&ops, -ETOOMANYREFS, 0);
    if (client == 77)
        skip(); // not root, or a kernel that counts otherwise
    assert_int_equal(client, 0);
    assert_int_equal(in_a_child(&patient_ops, 0, 2), 0);
}

static void what_was_read_is_known(void **state)
{
    struct end e;
    alignas(8) char got[NB_WIRE_MAX];
    begin(&e);
    assert_true(nb_peer_is_read(e.peer));
    nb_peer_send(e.peer, &packet, (int[]){dup(0)}, 1);
    assert_false(nb_peer_is_read(e.peer));
    assert_int_equal(read(e.other, got, sizeof(got)), sizeof(packet));
    assert_true(nb_peer_is_read(e.peer));
    nb_peer_destroy(e.peer);
    sd_event_unref(e.loop);
    close(e.other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(after_a_packet_that_failed),
        cmocka_unit_test(beside_packets_that_it_had_not_read),
        cmocka_unit_test(after_both),
        cmocka_unit_test(not_of_one_that_broke_the_rules),
        cmocka_unit_test(fds_come_where_they_belong_alone),
        cmocka_unit_test(a_socket_with_fds_in_it_is_closed_elsewhere),
        cmocka_unit_test(fds_that_the_kernel_holds_up_end_a_client_and_wait_for_a_worker),
        cmocka_unit_test(what_was_read_is_known),
    };
    return cmocka_run_group_tests_name("peer", tests, NULL, NULL);
}
