// Jobs of the service in the library: what it sends, what it makes of the answers, and a daemon
// that answers what it should not.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdalign.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/wire/client_util.h"

static char model[64];
static struct nb_wire_job_start started;
static struct nb_wire_job_control controlled;
static uint32_t what_listed;
static bool takes_files = true;
static struct nb_wire_file file; // the last one
static size_t n_files;

static void send_progress(int sock, uint32_t serial, uint64_t done)
{
    struct nb_wire_job_progress p = {
        .header = {.type = NB_WIRE_JOB_PROGRESS, .size = sizeof(p), .serial = serial},
        .job = 7,
        .done = done,
        .total = 100,
        .eta_ms = 5};
    memset(p.state, 'r', sizeof(p.state)); // without its NUL
    memset(p.text, 't', sizeof(p.text));
    nb_wire_send(sock, &p, sizeof(p), NULL, 0);
}

static void answer_list(struct fake *f, int sock, const struct nb_wire_header *request)
{
    struct {
        struct nb_wire_list_reply head;
        struct nibble_jobs_row row;
    } list = {.head = {.n = 1, .total = 1, .row_size = sizeof(list.row)},
              .row = {.id = 7, .done = 5, .total = 10, .uid = 3}};
    what_listed = ((const struct nb_wire_list_request *)request)->what;
    memset(list.row.text, 'x', sizeof(list.row.text));
    fake_reply(sock, request, &list, sizeof(list), NULL, 0);
}

// Takes the files, or closes the socket without a look.
static void ask_for_files(int sock, const struct nb_wire_header *request)
{
    struct nb_wire_job event = {.header = {NB_WIRE_JOB_FILES, sizeof(event), request->serial, 0},
                                .job = 7};
    alignas(8) unsigned char packet[NB_WIRE_MAX];
    int pair[2], fds[NB_WIRE_FDS_MAX];
    size_t n_fds;
    assert_int_equal(nb_wire_pair(SOCK_SEQPACKET, pair), 0);
    nb_wire_send(sock, &event, sizeof(event), &pair[1], 1);
    close(pair[1]);
    struct pollfd readable = {pair[0], POLLIN, 0};
    while (takes_files && poll(&readable, 1, -1) == 1 &&
           nb_wire_recv(pair[0], packet, fds, &n_fds) == sizeof(file)) {
        memcpy(&file, packet, sizeof(file));
        n_files += n_fds;
        nb_wire_close_fds(fds, n_fds);
    }
    close(pair[0]);
}

static bool answer(struct fake *f, int sock, const struct nb_wire_header *request)
{
    struct nb_wire_job job = {.job = 7};
    struct nb_wire_empty empty = {0};
    struct nb_wire_job_result result = {.job = 7, .bytes = 5, .n = 2};
    int fd;
    memset(result.name, 'n', sizeof(result.name));
    switch (request->type) {
    case NB_WIRE_LIST:
        answer_list(f, sock, request);
        return true;
    case NB_WIRE_JOB_START:
        memcpy(&started, request, sizeof(started));
        ask_for_files(sock, request);
        fake_reply(sock, request, &job, sizeof(job), NULL, 0);
        return true;
    case NB_WIRE_JOB_WAIT:
        send_progress(sock, request->serial + 1, 1); // of another wait
        for (uint64_t done = 10; done <= 30; done += 10)
            send_progress(sock, request->serial, done);
        if (((const struct nb_wire_job *)request)->job == 8)
            fake_refuse(sock, request, -ENOSPC, "the disk is full");
        else
            fake_reply(sock, request, &empty, sizeof(empty), NULL, 0);
        return true;
    case NB_WIRE_JOB_CONTROL:
        memcpy(&controlled, request, sizeof(controlled));
        fake_reply(sock, request, &empty, sizeof(empty), NULL, 0);
        return true;
    case NB_WIRE_JOB_RESULT:
        fd = memfd_create("result", MFD_CLOEXEC);
        assert_int_equal(write(fd, "hello", 5), 5);
        fake_reply(sock, request, &result, sizeof(result), &fd, 1);
        close(fd);
        return true;
    default:
        return false;
    }
}

static int set_up(void **state)
{
    int rc = client_set_up(state);
    fake->override = answer;
    return rc;
}
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, client_tear_down)

static const struct nibble_compress_options to_q8_0 = {
    .size = sizeof(to_q8_0), .detached = 1, .recipe = "{\"to\": \"Q8_0\"}"};

static void starts(void **state)
{
    uint64_t job = 0;
    assert_int_equal(nibble_compress(connection, model, &to_q8_0, &job), 0);
    assert_int_equal(job, 7);
    assert_string_equal(started.kind, "round");
    assert_int_equal(started.flags, NB_JOB_DETACHED);
    assert_string_equal(started.name, strrchr(model, '/') + 1);
    assert_int_equal(started.files, 1);
    assert_int_equal(n_files, 1);
    assert_int_equal(file.header.type, NB_WIRE_FILE);
    assert_string_equal(file.name, started.name);
    // A worker that has ended takes none: the reply says what that means.
    takes_files = false;
    assert_int_equal(nibble_compress(connection, model, &to_q8_0, &job), 0);
    takes_files = true;
}

static void refuses_what_it_cannot_send(void **state)
{
    struct nibble_compress_options options = to_q8_0;
    uint64_t job = 99;
    char *large = calloc(1, NB_JOB_RECIPE_MAX + 2);
    memset(large, ' ', NB_JOB_RECIPE_MAX + 1);
    options.recipe = large;
    assert_int_equal(nibble_compress(connection, model, &options, &job), -EINVAL);
    assert_non_null(strstr(nibble_error(connection), "1 to 65536 bytes, not 65537"));
    options.recipe = NULL;
    assert_int_equal(nibble_compress(connection, model, &options, &job), -EINVAL);
    assert_non_null(strstr(nibble_error(connection), "needs a recipe"));
    options = to_q8_0;
    options.kind = "a-kind-with-a-long-name";
    assert_int_equal(nibble_compress(connection, model, &options, &job), -EINVAL);
    options.size = 0;
    assert_int_equal(nibble_compress(connection, model, &options, &job), -EINVAL);
    assert_int_equal(nibble_compress(connection, "/nowhere", &to_q8_0, &job), -ENOENT);
    assert_int_equal(job, 99);
    free(large);
}

static int on_progress(void *user, const struct nibble_jobs_row *row)
{
    uint64_t *stop = user;
    assert_int_equal(row->id, 7);
    assert_int_equal(row->total, 100);
    assert_int_equal(strlen(row->state), sizeof(row->state) - 1);
    assert_int_equal(strlen(row->text), 119);
    // Nothing else can be asked meanwhile.
    assert_int_equal(nibble_jobs_control(connection, 7, NIBBLE_JOBS_PAUSE), -EBUSY);
    return row->done == *stop;
}

static void waits(void **state)
{
    uint64_t stop = 0;
    const struct nibble_jobs_wait_options options = {
        .size = sizeof(options), .progress = on_progress, .user = &stop};
    assert_int_equal(nibble_jobs_wait(connection, 7, NULL), 0);
    assert_int_equal(nibble_jobs_wait(connection, 7, &options), 0);
    assert_int_equal(nibble_jobs_wait(connection, 8, &options), -ENOSPC);
    assert_string_equal(nibble_error(connection), "the disk is full");
    // One who does not wait any longer can ask other things: what comes late is of no matter.
    stop = 20;
    assert_int_equal(nibble_jobs_wait(connection, 7, &options), NIBBLE_E_CANCELLED);
    assert_int_equal(nibble_jobs_control(connection, 7, NIBBLE_JOBS_RESUME), 0);
    assert_int_equal(nibble_jobs(connection, NULL, 0), 1);
}

static void lists_and_steers(void **state)
{
    struct nibble_jobs_row row;
    assert_int_equal(nibble_jobs(connection, &row, 1), 1);
    assert_int_equal(what_listed, NB_LIST_JOBS);
    assert_int_equal(row.id, 7);
    assert_int_equal(strlen(row.text), sizeof(row.text) - 1);
    assert_int_equal(nibble_jobs_control(connection, 7, NIBBLE_JOBS_RESUME), 0);
    assert_int_equal(controlled.job, 7);
    assert_int_equal(controlled.what, NB_JOB_RESUME);
}

static void fetches(void **state)
{
    struct nibble_jobs_result info;
    char bytes[8] = "";
    int fd = -1;
    assert_int_equal(nibble_jobs_result(connection, 7, 0, &fd, &info), 0);
    assert_int_equal(info.bytes, 5);
    assert_int_equal(info.n, 2);
    assert_int_equal(strlen(info.name), sizeof(info.name) - 1);
    assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), 5);
    assert_string_equal(bytes, "hello");
    close(fd);
    assert_int_equal(nibble_jobs_result(connection, 7, 0, &fd, NULL), 0);
    close(fd);
}

static bool without_fd(struct fake *f, int sock, const struct nb_wire_header *request)
{
    struct nb_wire_job_result result = {.job = 7};
    if (request->type != NB_WIRE_JOB_RESULT)
        return false;
    fake_reply(sock, request, &result, sizeof(result), NULL, 0);
    return true;
}

static void a_result_without_its_file_ends_the_connection(void **state)
{
    int fd = -1;
    fake->override = without_fd;
    assert_int_equal(nibble_jobs_result(connection, 7, 0, &fd, NULL), NIBBLE_E_PROTOCOL);
    assert_int_equal(fd, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(starts),  TEST(refuses_what_it_cannot_send),
        TEST(waits),   TEST(lists_and_steers),
        TEST(fetches), TEST(a_result_without_its_file_ends_the_connection),
    };
    snprintf(model, sizeof(model), "/tmp/nibble-jobs-%ld.gguf", (long)getpid());
    int fd = open(model, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, "GGUF", 4) != 4)
        return 1;
    close(fd);
    client_begin();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(model);
    return failed;
}
