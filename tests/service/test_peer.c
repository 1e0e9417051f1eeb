// The last words of a worker that dies: heard, whatever the broker was sending it meanwhile.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "daemon/peer.h"

struct end {
    sd_event *loop;
    struct nb_peer *peer;
    int other; // the worker's end
    int packets, closed, why;
};

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

static const struct nb_peer_ops ops = {on_packet, on_closed};
static const struct nb_wire_header packet = {.type = 1, .size = sizeof(packet)};

static void begin(struct end *e)
{
    int pair[2];
    *e = (struct end){.why = 1};
    assert_int_equal(nb_wire_pair(SOCK_SEQPACKET, pair), 0);
    e->other = pair[1];
    assert_true(sd_event_new(&e->loop) >= 0);
    assert_int_equal(nb_peer_create(e->loop, pair[0], &ops, e, 4096, &e->peer), 0);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(after_a_packet_that_failed),
        cmocka_unit_test(beside_packets_that_it_had_not_read),
        cmocka_unit_test(after_both),
        cmocka_unit_test(not_of_one_that_broke_the_rules),
    };
    return cmocka_run_group_tests_name("peer", tests, NULL, NULL);
}
