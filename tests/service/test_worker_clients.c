// nibble-worker's serve mode towards clients that ask too much, break the protocol, do not read or
// go away, and towards the broker.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/service/worker_harness.h"

#define N_OF(a) (sizeof(a) / sizeof((a)[0]))

// --- limits

static void what_does_not_fit_is_refused_with_a_status(void **state)
{
    static int32_t ids[CONTEXT + 1];
    struct client c = client_open(&worker, MODEL, ARENA);
    struct nb_desc_generate d = greedy(&c, ids, CONTEXT + 1, 4);
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), NIBBLE_E_CONTEXT);
    d.n_tokens = CONTEXT; // no room for a token more
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), NIBBLE_E_CONTEXT);
    d.n_tokens = 4;
    d.base = 1; // of an empty log
    assert_int_equal(status_of(&c, generate(&c, 1, &d)), -EINVAL);
    d.base = 0;
    d.n_replay = 5;
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), -EINVAL);
    d.n_replay = 0;
    d.temperature = NAN;
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), -EINVAL);
    d.temperature = 0;
    d.tokens = ARENA - 8;
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), -EINVAL);
    d.tokens = UINT64_MAX - 3;
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), -EINVAL);
    d = greedy(&c, (int32_t[]){1, 2, INT32_MAX}, 3, 4);
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), -EINVAL);
    assert_int_equal(status_of(&c, client_submit(&c, NB_OP_GENERATE, 0, &d, 8)), -EINVAL);
    assert_int_equal(status_of(&c, client_submit(&c, 77, 0, &d, 8)), -EOPNOTSUPP);
    d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 1);
    assert_int_equal(status_of(&c, generate(&c, NB_SESSIONS_MAX, &d)), -EINVAL);
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), 0);
    client_close(&c);
}

static void a_session_runs_one_job(void **state)
{
    struct client c = client_open(&worker, MODEL, ARENA);
    struct nb_desc_generate d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 400);
    d.flags = NB_GENERATE_IGNORE_EOS;
    uint64_t first = generate(&c, 0, &d), second = generate(&c, 0, &d);
    struct nb_completion got;
    do
        assert_true(client_next(&c, &got));
    while (got.user_data != second);
    assert_int_equal(got.kind, NB_COMPLETION_DONE);
    assert_int_equal(got.status, NIBBLE_E_BUSY);
    client_submit_raw(&c, &(struct nb_submission){.op = NB_OP_CANCEL, .target = first});
    assert_int_equal(status_of(&c, first), NIBBLE_E_CANCELLED);
    client_close(&c);
}

static void a_cancelled_job_says_so_and_frees_its_session(void **state)
{
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *a = new_answer();
    struct nb_desc_generate d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 0);
    d.flags = NB_GENERATE_IGNORE_EOS;
    uint64_t job = generate(&c, 0, &d);
    assert_true(client_answer(&c, job, 3, a));
    client_submit_raw(&c, &(struct nb_submission){.op = NB_OP_CANCEL, .target = job});
    assert_true(client_answer(&c, job, ALL, a));
    assert_int_equal(a->done.status, NIBBLE_E_CANCELLED);
    assert_int_equal(a->done.done.finish, NIBBLE_FINISH_ERROR);
    d.max_tokens = 1;
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), 0);
    assert_true(becomes(&page_of(&c)->sessions, 1));
    client_submit_raw(&c, &(struct nb_submission){.op = NB_OP_SESSION_CLOSE, .session = 0});
    assert_true(becomes(&page_of(&c)->sessions, 0));
    free(a);
    client_close(&c);
}

// --- clients that go away

static void a_client_that_hangs_up_leaves_nothing(void **state)
{
    struct nb_page_model *model = &worker.page->models[0];
    assert_true(becomes(&model->sessions, 0));
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *a = new_answer();
    struct nb_desc_generate d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 0);
    d.flags = NB_GENERATE_IGNORE_EOS;
    assert_true(client_answer(&c, generate(&c, 0, &d), 2, a));
    assert_int_equal(atomic_load(&model->sessions), 1);
    struct nb_page_channel *page = page_of(&c);
    assert_non_null(page);
    client_close(&c);
    alignas(8) char packet[NB_WIRE_MAX];
    const struct nb_link_ref *gone = (const void *)packet;
    do
        worker_expect(&worker, NB_LINK_CHANNEL_GONE, packet);
    while (gone->channel != c.key);
    assert_true(becomes(&model->sessions, 0));
    assert_int_equal(atomic_load(&page->channel), 0);
    free(a);
}

static void a_removed_channel_ends(void **state)
{
    struct client c = client_open(&worker, MODEL, ARENA);
    assert_int_equal(status_of(&c, client_submit(&c, NB_OP_NOP, 0, NULL, 0)), 0);
    struct nb_link_ref ref = {.channel = c.key};
    worker_send(&worker, NB_LINK_CHANNEL_REMOVE, &ref, sizeof(ref), NULL, 0);
    assert_true(client_hung_up(&c));
    worker_send(&worker, NB_LINK_CHANNEL_REMOVE, &ref, sizeof(ref), NULL, 0); // no error
    client_close(&c);
}

// --- clients that break the rules

static void wake(struct client *c)
{
    nb_wake_send(c->sock);
}

static void wild_submission_tail(struct client *c)
{
    atomic_store(&c->ring->sq_tail, c->sq_tail + NB_SQ_ENTRIES + 1);
    wake(c);
}

static void submission_tail_behind(struct client *c)
{
    atomic_store(&c->ring->sq_tail, c->sq_tail - 1);
    wake(c);
}

static void wild_completion_head(struct client *c)
{
    atomic_store(&c->ring->cq_head, c->cq_head + 1000);
    client_submit(c, NB_OP_NOP, 0, NULL, 0);
}

static void a_job_without_a_name(struct client *c)
{
    client_submit_raw(c, &(struct nb_submission){.op = NB_OP_NOP});
}

static void two_jobs_of_one_name(struct client *c)
{
    struct nb_desc_generate d = greedy(c, (int32_t[]){1, 2, 3}, 3, 0);
    d.flags = NB_GENERATE_IGNORE_EOS;
    generate(c, 0, &d);
    c->next_id--;
    generate(c, 1, &d);
}

static void who_breaks_the_protocol_is_closed_alone(void **state)
{
    static void (*const crimes[])(struct client *) = {
        wild_submission_tail, submission_tail_behind, wild_completion_head,
        a_job_without_a_name, two_jobs_of_one_name,
    };
    struct client good = client_open(&worker, MODEL, ARENA);
    struct answer *alone = continue_text(&good, 0, PROMPT, 12);
    for (size_t i = 0; i < N_OF(crimes); i++) {
        int32_t ids[CONTEXT];
        struct answer *a = new_answer();
        struct client bad = client_open(&worker, MODEL, ARENA);
        assert_int_equal(status_of(&bad, client_submit(&bad, NB_OP_NOP, 0, NULL, 0)), 0);
        good.used = 0;
        size_t n = client_tokenize(&good, PROMPT, NB_TEXT_BOS, ids, N_OF(ids));
        struct nb_desc_generate d = greedy(&good, ids, n, 12);
        uint64_t job = generate(&good, 1, &d);
        crimes[i](&bad);
        assert_true(client_hung_up(&bad));
        assert_true(client_answer(&good, job, ALL, a));
        assert_string_equal(a->text, alone->text);
        client_close(&bad);
        free(a);
    }
    free(alone);
    client_close(&good);
}

static void garbage_in_the_ring_and_the_arena_harms_no_one(void **state)
{
    srand(3);
    struct client good = client_open(&worker, MODEL, ARENA);
    for (int round = 0; round < 20; round++) {
        struct client bad = client_open(&worker, MODEL, NB_ARENA_MIN);
        for (uint64_t i = 0; i < bad.arena_bytes; i++)
            bad.arena[i] = (uint8_t)(rand() >> 7);
        for (int i = 0; i < 200; i++) {
            struct nb_submission s = {.op = (uint32_t)rand() % NB_OP_COUNT,
                                      .user_data = (uint64_t)i + 1,
                                      .session = (uint32_t)rand() % (NB_SESSIONS_MAX + 1),
                                      .desc = (uint64_t)rand() % (NB_ARENA_MIN + 64) & ~7ull,
                                      .desc_len = (uint32_t)rand() % 128 & ~7u};
            client_submit_raw(&bad, &s);
        }
        client_close(&bad);
    }
    struct answer *a = continue_text(&good, 0, PROMPT, 4);
    assert_int_equal(a->done.status, 0);
    free(a);
    client_close(&good);
}

// --- slow readers

static void a_parked_client_that_gives_up_lets_the_worker_sleep(void **state)
{
    struct client c = client_open(&worker, MODEL, ARENA);
    uint64_t jobs[NB_SESSIONS_MAX];
    size_t done = 0;
    struct nb_completion got;
    for (uint32_t i = 0; i < NB_SESSIONS_MAX; i++) {
        struct nb_desc_generate d = greedy(&c, (int32_t[]){1, 2, 3 + (int32_t)i}, 3, 0);
        d.flags = NB_GENERATE_IGNORE_EOS;
        jobs[i] = generate(&c, i, &d);
    }
    // Its ring is full up to what is reserved when the worker sleeps for room.
    assert_true(becomes(&c.ring->worker_sleeps, NB_SLEEPS_FOR_ROOM));
    for (uint32_t i = 0; i < NB_SESSIONS_MAX; i++)
        client_submit_raw(&c, &(struct nb_submission){.op = NB_OP_CANCEL, .target = jobs[i]});
    while (done < NB_SESSIONS_MAX && client_next(&c, &got))
        done += got.kind == NB_COMPLETION_DONE;
    assert_int_equal(done, NB_SESSIONS_MAX);
    assert_true(becomes(&c.ring->worker_sleeps, NB_SLEEPS));
    client_close(&c);
}

static void a_client_that_does_not_read_is_parked_alone(void **state)
{
    enum { SESSIONS = NB_SESSIONS_MAX, TOKENS = 24 };
    struct client slow = client_open(&worker, MODEL, ARENA);
    struct client good = client_open(&worker, MODEL, ARENA);
    size_t done = 0, tokens = 0;
    struct nb_completion got;
    for (uint32_t i = 0; i < SESSIONS; i++) {
        struct nb_desc_generate d = greedy(&slow, (int32_t[]){1, 2, 3 + (int32_t)i}, 3, TOKENS);
        d.flags = NB_GENERATE_IGNORE_EOS;
        generate(&slow, i, &d);
    }
    // It fills what its jobs do not reserve, then stands still, while another is served.
    uint32_t before;
    do {
        before = atomic_load(&slow.ring->cq_tail);
        struct answer *a = continue_text(&good, 0, PROMPT, 8);
        assert_int_equal(a->done.status, 0);
        free(a);
        good.used = 0;
    } while (atomic_load(&slow.ring->cq_tail) != before || before < 900);
    assert_true(before <= NB_CQ_ENTRIES);
    while (done < SESSIONS && client_next(&slow, &got)) {
        tokens += got.kind == NB_COMPLETION_TOKEN;
        done += got.kind == NB_COMPLETION_DONE;
        assert_true(got.kind != NB_COMPLETION_DONE || got.status == 0);
    }
    assert_int_equal(done, SESSIONS);
    assert_int_equal(tokens, SESSIONS * TOKENS);
    client_close(&slow);
    client_close(&good);
}

// --- the broker's part

static void wrong_choices_are_refused_in_a_line(void **state)
{
    static const char *const choices[][3] = {{"perfect", "f16", "balanced"},
                                             {"fast", "q4_0", "q8_0"}};
    for (int i = 0; i < 2; i++) {
        alignas(8) char packet[NB_WIRE_MAX];
        const struct nb_link_model_ready *ready = (const void *)packet;
        struct nb_link_model_add add = {.model = 9, .name = "m"};
        int image = random_image();
        snprintf(add.precision, sizeof(add.precision), "%s", choices[i][0]);
        snprintf(add.kv_type, sizeof(add.kv_type), "%s", choices[i][1]);
        worker_send(&worker, NB_LINK_MODEL_ADD, &add, sizeof(add), &image, 1);
        worker_expect(&worker, NB_LINK_MODEL_READY, packet);
        assert_int_equal(ready->model, 9);
        assert_true(ready->header.status < 0);
        assert_non_null(strstr(ready->text, choices[i][2]));
    }
}

static void two_models_take_turns(void **state)
{
    struct nb_link_model_ready ready = worker_add_model(&worker, 2, 256, random_image());
    assert_int_equal(ready.header.status, 0);
    struct client one = client_open(&worker, MODEL, ARENA), two = client_open(&worker, 2, ARENA);
    struct nb_desc_generate d = greedy(&one, (int32_t[]){1, 2, 3}, 3, 0);
    d.flags = NB_GENERATE_IGNORE_EOS;
    uint64_t long_job = generate(&one, 0, &d);
    struct answer *a = continue_text(&two, 0, PROMPT, 8), *cut = new_answer();
    assert_int_equal(a->done.status, 0);
    assert_true(client_answer(&one, long_job, 4, cut));
    client_close(&one);
    struct nb_link_ref ref = {.model = 2};
    worker_send(&worker, NB_LINK_MODEL_REMOVE, &ref, sizeof(ref), NULL, 0);
    assert_true(client_hung_up(&two));
    client_close(&two);
    free(a);
    free(cut);
}

static void the_page_counts_mixed_steps(void **state)
{
    static int32_t ids[900];
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *a = new_answer();
    uint64_t before = atomic_load(&worker.page->mixed_steps);
    struct nb_desc_generate d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 0);
    d.flags = NB_GENERATE_IGNORE_EOS;
    uint64_t stream = generate(&c, 0, &d);
    assert_true(client_answer(&c, stream, 2, a));
    struct client other = client_open(&worker, MODEL, ARENA);
    struct nb_desc_generate prefill = greedy(&other, ids, N_OF(ids), 1);
    assert_int_equal(status_of(&other, generate(&other, 0, &prefill)), 0);
    assert_true(atomic_load(&worker.page->mixed_steps) > before);
    free(a);
    client_close(&c);
    client_close(&other);
}

static void draining_finishes_what_runs(void **state)
{
    struct worker mine = worker_serve(), keep = worker;
    worker = mine;
    assert_int_equal(worker_add_model(&worker, MODEL, CONTEXT, random_image()).header.status, 0);
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *a = new_answer();
    struct nb_desc_generate d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 900);
    d.flags = NB_GENERATE_IGNORE_EOS;
    uint64_t job = generate(&c, 0, &d), late;
    assert_true(client_answer(&c, job, 2, a));
    struct nb_link_ref drain = {0};
    worker_send(&worker, NB_LINK_DRAIN, &drain, sizeof(drain), NULL, 0);
    // From some moment on nothing new is taken, while the job goes on to its end.
    struct nb_completion got;
    do {
        late = client_submit(&c, NB_OP_NOP, 0, NULL, 0);
        do
            assert_true(client_next(&c, &got));
        while (got.user_data != late);
    } while (got.status == 0);
    assert_int_equal(got.status, -ESHUTDOWN);
    assert_true(client_answer(&c, job, ALL, a));
    assert_int_equal(a->done.status, 0);
    assert_int_equal(a->done.b, 900);
    assert_int_equal(worker_wait(&worker), 0);
    worker = keep;
    free(a);
    client_close(&c);
}

static void the_links_end_ends_the_worker(void **state)
{
    struct worker w = worker_serve();
    int link = w.link;
    w.link = -1;
    close(link);
    assert_int_equal(worker_wait(&w), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_does_not_fit_is_refused_with_a_status),
        cmocka_unit_test(a_session_runs_one_job),
        cmocka_unit_test(a_cancelled_job_says_so_and_frees_its_session),
        cmocka_unit_test(a_client_that_hangs_up_leaves_nothing),
        cmocka_unit_test(a_removed_channel_ends),
        cmocka_unit_test(who_breaks_the_protocol_is_closed_alone),
        cmocka_unit_test(garbage_in_the_ring_and_the_arena_harms_no_one),
        cmocka_unit_test(a_parked_client_that_gives_up_lets_the_worker_sleep),
        cmocka_unit_test(a_client_that_does_not_read_is_parked_alone),
        cmocka_unit_test(wrong_choices_are_refused_in_a_line),
        cmocka_unit_test(two_models_take_turns),
        cmocka_unit_test(the_page_counts_mixed_steps),
        cmocka_unit_test(draining_finishes_what_runs),
        cmocka_unit_test(the_links_end_ends_the_worker),
    };
    return cmocka_run_group_tests_name("worker clients", tests, start_worker, kill_worker);
}
