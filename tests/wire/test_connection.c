// The control connection: handshake, lists, administration, and a daemon that says what it should
// not.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/wire/fake.h"

static struct fake *fake;
static nibble *connection;
static int first_free_fd;

static int lowest_free_fd(void)
{
    int fd = dup(0);
    close(fd);
    return fd;
}

static int set_up(void **state)
{
    fake = fake_start();
    connection = NULL;
    return 0;
}

static int tear_down(void **state)
{
    nibble_close(connection);
    int violations = fake->violations;
    fake_stop(fake);
    return violations || lowest_free_fd() != first_free_fd; // no fd is lost, whatever came
}

static void connect_well(void)
{
    assert_int_equal(nibble_connect(fake->path, &connection), 0);
}

static void connects_by_path_and_by_environment(void **state)
{
    connect_well();
    setenv("NIBBLE_SOCKET", fake->path, 1);
    nibble *other;
    assert_int_equal(nibble_connect(NULL, &other), 0);
    struct nibble_status status;
    assert_int_equal(nibble_get_status(other, &status), 0);
    assert_int_equal(status.mixed_steps, 3);
    assert_int_equal(strlen(status.version), sizeof(status.version) - 1);
    nibble_close(other);
    unsetenv("NIBBLE_SOCKET");
}

static void no_daemon_names_path_and_remedy(void **state)
{
    nibble *untouched = (nibble *)1;
    assert_int_equal(nibble_connect("/nowhere/nibble.sock", &untouched), NIBBLE_E_NO_DAEMON);
    assert_ptr_equal(untouched, (nibble *)1);
    assert_non_null(strstr(nibble_error(NULL), "/nowhere/nibble.sock"));
    assert_non_null(strstr(nibble_error(NULL), "systemctl start nibble.socket"));
    assert_non_null(strstr(nibble_error(NULL), "NIBBLE_SOCKET"));
    assert_int_equal(nibble_connect_admin("/nowhere/nibble.sock", &untouched), NIBBLE_E_NO_DAEMON);
    assert_non_null(strstr(nibble_error(NULL), "/nowhere/admin.sock"));
    char path[200];
    memset(path, 'a', sizeof(path) - 1);
    path[sizeof(path) - 1] = 0;
    assert_int_equal(nibble_connect(path, &untouched), -ENAMETOOLONG);
}

static bool refuse_version(struct fake *f, int sock, const struct nb_wire_header *request)
{
    fake_refuse(sock, request, NIBBLE_E_VERSION,
                "this nibbled speaks versions 2 to 3: upgrade libnibble");
    return true;
}

static bool choose_version_2(struct fake *f, int sock, const struct nb_wire_header *request)
{
    struct nb_wire_hello hello = {.magic = NB_WIRE_MAGIC, .version_min = 2, .version_max = 2};
    fake_reply(sock, request, &hello, sizeof(hello), NULL, 0);
    return true;
}

static bool greet_wrongly(struct fake *f, int sock, const struct nb_wire_header *request)
{
    struct nb_wire_hello hello = {.magic = 1, .version_min = 1, .version_max = 1};
    fake_reply(sock, request, &hello, sizeof(hello), NULL, 0);
    return true;
}

static bool hang_up(struct fake *f, int sock, const struct nb_wire_header *request)
{
    shutdown(sock, SHUT_RDWR);
    return true;
}

// A daemon that takes no more connections says so before it has read a word.
static bool send_away(struct fake *f, int sock, const struct nb_wire_header *request)
{
    struct nb_wire_header unread = {.type = request->type};
    fake_refuse(sock, &unread, NIBBLE_E_QUOTA, "user 1000 has 64 of 64 connections");
    return hang_up(f, sock, request);
}

static void a_handshake_can_fail(void **state)
{
    nibble *c;
    fake->override = refuse_version;
    assert_int_equal(nibble_connect(fake->path, &c), NIBBLE_E_VERSION);
    assert_string_equal(nibble_error(NULL),
                        "this nibbled speaks versions 2 to 3: upgrade libnibble");
    fake->override = choose_version_2;
    assert_int_equal(nibble_connect(fake->path, &c), NIBBLE_E_VERSION);
    fake->override = greet_wrongly;
    assert_int_equal(nibble_connect(fake->path, &c), NIBBLE_E_PROTOCOL);
    fake->override = send_away;
    assert_int_equal(nibble_connect(fake->path, &c), NIBBLE_E_QUOTA);
    assert_string_equal(nibble_error(NULL), "user 1000 has 64 of 64 connections");
    fake->override = hang_up;
    assert_int_equal(nibble_connect(fake->path, &c), NIBBLE_E_CLOSED);
}

static void lists_come_by_cursor(void **state)
{
    connect_well();
    struct nibble_model models[FAKE_MODELS + 1];
    assert_int_equal(nibble_models(connection, NULL, 0), FAKE_MODELS);
    assert_int_equal(nibble_models(connection, models, FAKE_MODELS + 1), FAKE_MODELS);
    assert_string_equal(models[4].name, "m4");
    assert_int_equal(models[4].vocab, FAKE_VOCAB);
    assert_int_equal(strlen(models[0].architecture),
                     sizeof(models[0].architecture) - 1); // ended for us
    memset(&models[3], 0, sizeof(models[3]));
    assert_int_equal(nibble_models(connection, models, 3), FAKE_MODELS);
    assert_string_equal(models[3].name, ""); // not written past max
    assert_int_equal(nibble_devices(connection, NULL, 0), 0);
    assert_int_equal(nibble_holders(connection, NULL, 0), 0);
}

// Pages that cannot be right, one for each call.
static struct nb_wire_list_reply page;
static uint32_t page_bytes;
static bool send_page(struct fake *f, int sock, const struct nb_wire_header *request)
{
    static unsigned char bytes[NB_WIRE_MAX];
    if (request->type != NB_WIRE_LIST)
        return false;
    memcpy(bytes, &page, sizeof(page));
    fake_reply(sock, request, bytes, page_bytes, NULL, 0);
    return true;
}

static void wild_pages_are_refused(void **state)
{
    const struct {
        uint32_t n, next, row, bytes;
    } wild[] = {
        {1000, 0, 4, sizeof(page) + 8}, {1, 0, 0, sizeof(page)},
        {0xffffffff, 0, 1, 4096},       {1, 0, 0xffffffff, sizeof(page) + 1},
        {0, 5, 8, sizeof(page)},        {0x40000000, 0, 4, sizeof(page)},
        {1, 0, 8, sizeof(page) + 7},    {1, 0, 8, sizeof(page) - 1},
    };
    for (size_t i = 0; i < sizeof(wild) / sizeof(*wild); i++) {
        nibble *c;
        assert_int_equal(nibble_connect(fake->path, &c), 0);
        page = (struct nb_wire_list_reply){
            .n = wild[i].n, .total = 1, .next_cursor = wild[i].next, .row_size = wild[i].row};
        page_bytes = wild[i].bytes;
        fake->override = send_page;
        assert_int_equal(nibble_models(c, NULL, 0), NIBBLE_E_PROTOCOL);
        fake->override = NULL;
        assert_int_equal(nibble_models(c, NULL, 0), NIBBLE_E_PROTOCOL); // for good
        nibble_close(c);
    }
}

static void rows_of_another_version_are_read(void **state)
{
    connect_well();
    page = (struct nb_wire_list_reply){.n = 1, .total = 1, .row_size = 70};
    page_bytes = sizeof(page) + 70;
    fake->override = send_page;
    struct nibble_model model = {.vocab = 5};
    assert_int_equal(nibble_models(connection, &model, 1), 1);
    assert_int_equal(model.vocab, 0);
    page.row_size = 2000;
    page_bytes = sizeof(page) + 2000;
    assert_int_equal(nibble_models(connection, &model, 1), 1);
}

// ---- Replies that no request has ----

static int garbage;
static bool send_garbage(struct fake *f, int sock, const struct nb_wire_header *request)
{
    if (request->type == NB_WIRE_HELLO)
        return false;
    struct nb_wire_status_reply reply = {0};
    unsigned char bytes[NB_WIRE_MAX + 8] = {0};
    int fds[8] = {0};
    switch (garbage) {
    case 0: // no packet at all
        send(sock, "hello", 5, 0);
        break;
    case 1: // longer than a packet may be
        send(sock, bytes, sizeof(bytes), 0);
        break;
    case 2: // with fds that it does not have
        fake_reply(sock, request, &reply, sizeof(reply), fds, 2);
        break;
    case 3: // of another size
        fake_reply(sock, request, &reply, sizeof(reply) - 8, NULL, 0);
        break;
    case 4: // a positive status
        reply.header.status = 1;
        fake_reply(sock, request, &reply, sizeof(reply), NULL, 0);
        break;
    case 5: // a failure without its sentence
        reply.header.status = -5;
        fake_reply(sock, request, &reply, sizeof(reply), NULL, 0);
        break;
    case 6: { // to another request
        struct nb_wire_header other = {.type = NB_WIRE_UNLOAD, .serial = request->serial};
        fake_reply(sock, &other, &reply, sizeof(struct nb_wire_empty), NULL, 0);
        break;
    }
    case 7: { // a type that there is not
        struct nb_wire_header other = {.type = 0x3ff, .size = sizeof(other)};
        nb_wire_send(sock, &other, sizeof(other), NULL, 0);
        break;
    }
    case 8: { // a request
        struct nb_wire_empty other = {{.type = NB_WIRE_STATUS, .size = sizeof(other)}};
        nb_wire_send(sock, &other, sizeof(other), NULL, 0);
        break;
    }
    case 9: { // an event without its fds
        struct nb_wire_channel other = {.header = {.type = NB_WIRE_REBIND, .size = sizeof(other)},
                                        .channel = 1};
        nb_wire_send(sock, &other, sizeof(other), NULL, 0);
        break;
    }
    }
    return true;
}

static void garbage_ends_the_connection(void **state)
{
    for (garbage = 0; garbage <= 9; garbage++) {
        nibble *c;
        struct nibble_status status;
        fake->override = send_garbage;
        assert_int_equal(nibble_connect(fake->path, &c), 0);
        assert_int_equal(nibble_get_status(c, &status), NIBBLE_E_PROTOCOL);
        assert_int_equal(nibble_dispatch(c, 0), NIBBLE_E_PROTOCOL);
        nibble_close(c);
    }
}

static bool chatter(struct fake *f, int sock, const struct nb_wire_header *request)
{
    struct nb_wire_progress progress = {
        .header = {.type = NB_WIRE_PROGRESS, .size = sizeof(progress), .serial = 99}};
    struct nb_wire_channel_ref lost = {
        .header = {.type = NB_WIRE_CHANNEL_LOST, .size = sizeof(lost), .status = -5},
        .channel = 77};
    struct nb_wire_channel rebind = {.header = {.type = NB_WIRE_REBIND, .size = sizeof(rebind)},
                                     .channel = 77};
    struct nb_wire_header stale = {.type = NB_WIRE_CLOSE_CHANNEL, .serial = 12345};
    struct nb_wire_empty empty = {0};
    nb_wire_send(sock, &progress, sizeof(progress), NULL, 0);
    nb_wire_send(sock, &lost, sizeof(lost), NULL, 0);
    nb_wire_send(sock, &rebind, sizeof(rebind), (int[]){0, 1}, 2);
    fake_reply(sock, &stale, &empty, sizeof(empty), NULL, 0);
    return false;
}

static void events_between_replies_are_handled(void **state)
{
    fake->override = chatter;
    connect_well();
    struct nibble_status status;
    assert_int_equal(nibble_get_status(connection, &status), 0);
    assert_int_equal(nibble_models(connection, NULL, 0), FAKE_MODELS);
    assert_int_equal(nibble_dispatch(connection, 0), 0);
}

// ---- Administration ----

static int progress_calls, stop_at;
static nibble *progress_connection;
static int on_progress(void *user, uint64_t done, uint64_t total)
{
    struct nibble_status status;
    assert_int_equal(total, 100);
    assert_int_equal(nibble_get_status(progress_connection, &status), -EBUSY);
    return ++progress_calls == stop_at;
}

static void loads_with_progress_and_can_be_cancelled(void **state)
{
    assert_int_equal(nibble_connect_admin(fake->path, &connection), 0);
    progress_connection = connection;
    struct nibble_load_options options = {
        .size = sizeof(options), .name = "m", .progress = on_progress};
    progress_calls = stop_at = 0;
    assert_int_equal(nibble_load(connection, "/proc/self/exe", &options), 0);
    assert_int_equal(progress_calls, 3);
    assert_int_equal(nibble_load(connection, "/nonexistent", &options), -ENOENT);
    assert_string_equal(nibble_error(connection), "No such file or directory");
    options.name = "slow";
    progress_calls = 0;
    stop_at = 2;
    assert_int_equal(nibble_load(connection, "/proc/self/exe", &options), NIBBLE_E_CANCELLED);
    assert_int_equal(progress_calls, 2);
    assert_int_equal(fake->cancel_load_seen, 1);
    assert_int_equal(nibble_unload(connection, "m", 1), 0);
}

static void bad_administration_is_refused_here(void **state)
{
    struct nibble_load_options options = {.size = sizeof(options), .name = "a/b"};
    connect_well();
    assert_int_equal(nibble_unload(connection, "m", 0), NIBBLE_E_DENIED);
    assert_non_null(strstr(nibble_error(connection), "nibble_connect_admin"));
    nibble_close(connection);
    assert_int_equal(nibble_connect_admin(fake->path, &connection), 0);
    assert_int_equal(nibble_load(connection, "/proc/self/exe", &options), -EINVAL);
    options.name = NULL;
    assert_int_equal(nibble_load(connection, "/proc/self/exe", &options), -EINVAL);
    options = (struct nibble_load_options){
        .size = sizeof(options), .name = "m", .precision = "of a length that no precision has"};
    assert_int_equal(nibble_load(connection, "/proc/self/exe", &options), -EINVAL);
    assert_int_equal(nibble_unload(connection, "", 0), -EINVAL);
}

// ---- Channels that a daemon should not offer ----

static unsigned seals;
static uint64_t memory_bytes, told_bytes;
static bool offer_channel(struct fake *f, int sock, const struct nb_wire_header *request)
{
    if (request->type == NB_WIRE_CLOSE_CHANNEL)
        return true;
    if (request->type != NB_WIRE_OPEN_CHANNEL)
        return false;
    struct nb_wire_channel reply = {.channel = 1, .arena_bytes = told_bytes};
    int pair[2];
    assert_int_equal(nb_wire_pair(SOCK_STREAM, pair), 0);
    int memory = fake_memory(memory_bytes, seals);
    fake_reply(sock, request, &reply, sizeof(reply), (int[]){memory, pair[1]}, 2);
    nb_wire_close_fds((int[]){memory, pair[0], pair[1]}, 3);
    return true;
}

static void bad_memory_is_refused(void **state)
{
    const unsigned all = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    const struct {
        unsigned seals;
        uint64_t bytes, told;
    } bad[] = {
        {F_SEAL_GROW | F_SEAL_SEAL, NB_CHANNEL_BYTES(NB_ARENA_MIN), NB_ARENA_MIN},
        {F_SEAL_SHRINK | F_SEAL_GROW, NB_CHANNEL_BYTES(NB_ARENA_MIN), NB_ARENA_MIN},
        {all, NB_CHANNEL_BYTES(NB_ARENA_MIN) - 4096, NB_ARENA_MIN},
        {all, 4096, NB_ARENA_MIN},
        {all, NB_CHANNEL_BYTES(4096), 4096},
        {all, 4096, UINT64_MAX - 4095},
        {all, NB_CHANNEL_BYTES(NB_ARENA_MIN + 8), NB_ARENA_MIN + 8},
    };
    connect_well();
    fake->override = offer_channel;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        nibble_session *session;
        seals = bad[i].seals;
        memory_bytes = bad[i].bytes;
        told_bytes = bad[i].told;
        assert_int_equal(nibble_session_open(connection, "m0", NULL, &session), NIBBLE_E_PROTOCOL);
    }
    seals = all; // the same way, but sound
    memory_bytes = NB_CHANNEL_BYTES(NB_ARENA_MIN);
    told_bytes = NB_ARENA_MIN;
    nibble_session *session;
    assert_int_equal(nibble_session_open(connection, "m0", NULL, &session), 0);
}

static void the_daemons_sentence_is_kept(void **state)
{
    nibble_session *session;
    connect_well();
    assert_int_equal(nibble_session_open(connection, "nope", NULL, &session), NIBBLE_E_NO_MODEL);
    assert_string_equal(nibble_error(connection),
                        "no model of that name is loaded: nibble load FILE");
    assert_int_equal(nibble_session_open(connection, "m9", NULL, &session),
                     NIBBLE_E_NO_MODEL); // opened, not listed
    assert_int_equal(nibble_session_open(connection, "", NULL, &session), NIBBLE_E_NO_MODEL);
    struct nibble_session_options options = {.size = sizeof(options), .arena_bytes = 1ull << 40};
    assert_int_equal(nibble_session_open(connection, "m0", &options, &session), NIBBLE_E_QUOTA);
    assert_string_equal(nibble_strerror(NIBBLE_E_QUOTA), "over a limit");
    assert_string_equal(nibble_strerror(-ENOENT), "No such file or directory");
    assert_string_equal(nibble_strerror(123456), "unknown error");
}

// ---- Waiting ----

static int alarms;
static void on_alarm(int signal)
{
    alarms++;
}

static void signals_do_not_end_a_wait(void **state)
{
    connect_well();
    struct sigaction action = {.sa_handler = on_alarm};
    struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    sigaction(SIGALRM, &action, NULL);
    alarms = 0;
    setitimer(ITIMER_REAL, &often, NULL);
    while (alarms < 5)
        assert_int_equal(nibble_dispatch(connection, 20), 0);
    for (int i = 0; i < 20; i++) {
        nibble *other;
        assert_int_equal(nibble_connect(fake->path, &other), 0);
        assert_int_equal(nibble_models(other, NULL, 0), FAKE_MODELS);
        nibble_close(other);
    }
    setitimer(ITIMER_REAL, &never, NULL);
}

static void an_end_makes_the_fd_readable(void **state)
{
    connect_well();
    struct pollfd readable = {nibble_get_fd(connection), POLLIN, 0};
    assert_int_equal(poll(&readable, 1, 0), 0);
    fake->override = hang_up;
    struct nibble_status status;
    assert_int_equal(nibble_get_status(connection, &status), NIBBLE_E_CLOSED);
    assert_int_equal(poll(&readable, 1, 1000), 1);
    assert_int_equal(nibble_dispatch(connection, -1), NIBBLE_E_CLOSED);
    nibble_session *session;
    assert_int_equal(nibble_session_open(connection, "m0", NULL, &session), NIBBLE_E_CLOSED);
}

int main(void)
{
    first_free_fd = lowest_free_fd();
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(connects_by_path_and_by_environment),
        TEST(no_daemon_names_path_and_remedy),
        TEST(a_handshake_can_fail),
        TEST(lists_come_by_cursor),
        TEST(wild_pages_are_refused),
        TEST(rows_of_another_version_are_read),
        TEST(garbage_ends_the_connection),
        TEST(events_between_replies_are_handled),
        TEST(loads_with_progress_and_can_be_cancelled),
        TEST(bad_administration_is_refused_here),
        TEST(bad_memory_is_refused),
        TEST(the_daemons_sentence_is_kept),
        TEST(signals_do_not_end_a_wait),
        TEST(an_end_makes_the_fd_readable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
