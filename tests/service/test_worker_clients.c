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

static void what_does_not_fit_is_refused_in_a_sentence(void **state)
{
    static int32_t ids[CONTEXT + 1];
    struct client c = client_open(&worker, MODEL, ARENA);
    const struct nb_desc_generate good = greedy(&c, ids, CONTEXT + 1, 4);
    const struct {
        uint32_t n_tokens, base, n_replay, flags, n_stop, window;
        float temperature, top_p, min_p, penalty;
        uint64_t tokens, stop_len;
        int32_t status;
        const char *words;
    } cases[] = {
        {.n_tokens = CONTEXT + 1,
         .status = NIBBLE_E_CONTEXT,
         .words = "1025 tokens do not fit into the context of 1024: shorten"},
        {.n_tokens = CONTEXT,
         .status = NIBBLE_E_CONTEXT,
         .words = "the prompt's 1024 tokens fill the context of 1024"},
        {.n_tokens = 4, .base = 1, .words = "base is 1: the session's log has 0 tokens"},
        {.words = "n_tokens is 0"},
        {.n_tokens = 4, .n_replay = 5, .words = "n_replay is 5: the log has 4 tokens"},
        {.n_tokens = 4, .flags = 64, .words = "flags are 0x40: at most 0xf"},
        {.n_tokens = 4, .flags = 12, .words = "drafts are asked for both never and always"},
        {.n_tokens = 4, .temperature = NAN, .words = "temperature is nan: 0 to 100 (0 is greedy)"},
        {.n_tokens = 4, .temperature = 1e30f, .words = "temperature is 1e+30: 0 to 100"},
        {.n_tokens = 4, .temperature = -1, .words = "temperature is -1: 0 to 100"},
        {.n_tokens = 4, .top_p = -1, .words = "top_p is -1: above 0 to 1 (1 is off)"},
        {.n_tokens = 4, .min_p = 2, .words = "min_p is 2: 0 to 1"},
        {.n_tokens = 4, .penalty = -2, .words = "repeat_penalty is -2: above 0 to 100"},
        {.n_tokens = 4, .window = 100000, .words = "repeat_window is 100000: 0 to 4096"},
        {.n_tokens = 4, .n_stop = 17, .words = "17 stop strings: at most 16"},
        {.n_tokens = 4, .n_stop = 1, .stop_len = 1 << 20, .words = "stop_len is 1048576: at most"},
        {.n_tokens = 4, .n_stop = 1, .words = "list of 1 stop strings does not end"},
        {.n_tokens = 4, .n_stop = 1, .stop_len = 8, .words = "stop string 1 has 0 bytes: 1 to 128"},
        {.n_tokens = 4, .tokens = ARENA - 8, .words = "tokens of 16 bytes at 4194296: not all"},
        {.n_tokens = 4,
         .tokens = UINT64_MAX - 3,
         .words = "not all within the 4194304 of the arena"},
    };
    for (size_t i = 0; i < N_OF(cases); i++) {
        struct nb_desc_generate d = good;
        d.n_tokens = cases[i].n_tokens;
        d.base = cases[i].base;
        d.n_replay = cases[i].n_replay;
        d.flags = cases[i].flags;
        d.n_stop = cases[i].n_stop;
        d.stop_len = cases[i].stop_len;
        d.stop = good.tokens; // zeros
        d.temperature = cases[i].temperature;
        d.top_p = cases[i].top_p < 0 ? cases[i].top_p : 1;
        d.min_p = cases[i].min_p;
        d.repeat_penalty = cases[i].penalty < 0 ? cases[i].penalty : 1;
        d.repeat_window = cases[i].window;
        d.tokens = cases[i].tokens ? cases[i].tokens : good.tokens;
        refused(&c, generate(&c, (uint32_t)i, &d), cases[i].status ? cases[i].status : -EINVAL,
                cases[i].words);
    }
    struct nb_desc_generate d = greedy(&c, (int32_t[]){1, 2, INT32_MAX}, 3, 4);
    refused(&c, generate(&c, 0, &d), -EINVAL, "token 2147483647 at 2: the model has 0 to");
    refused(&c, client_submit(&c, NB_SUBMIT_GENERATE, 0, &d, 8), -EINVAL,
            "a descriptor of 8 bytes at ");
    refused(&c, client_submit(&c, 77, 0, &d, 8), -EOPNOTSUPP, "op 77: this worker has no such");
    refused(&c, generate(&c, NB_SESSIONS_MAX, &d), -EINVAL, "session 64: at most 63");
    d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 1);
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), 0);
    client_close(&c);
}

static void other_ops_say_why_too(void **state)
{
    struct client c = client_open(&worker, MODEL, NB_ARENA_MIN);
    const uint64_t zeros = client_put(&c, (char[512]){0}, 512), over = NB_ARENA_MIN;
    const struct nb_desc_score scores[] = {
        {.n_tokens = 4, .tokens = zeros, .what = 2},
        {.n_tokens = 4, .tokens = zeros, .first = 4},
        {.n_tokens = 4, .tokens = zeros, .out = zeros, .out_len = 8},
    };
    const struct nb_desc_tokenize texts[] = {
        {.flags = 64},
        {.flags = NB_TEXT_RENDER},
        {.out = over, .out_max = 1},
        {.text = zeros, .text_len = NB_TEXT_MAX + 1},
        {.text = over - 8, .text_len = 16},
    };
    const struct nb_desc_detokenize ids[] = {
        {.flags = 1}, {.out = over, .out_max = 1}, {.n_tokens = 1u << 30}, {.tokens = 2}};
    const struct nb_desc_tensor names[] = {
        {.name_len = 300},
        {.name_len = 4, .name = client_put(&c, "no\x01pe", 5), .out = 64},
        {.name_len = 18, .name = client_put(&c, "output_norm.weight", 18), .out = 64},
        {.name_len = 4, .out = over},
    };
    const struct nb_desc_counters counters = {.out = over};
    const struct nb_place beyond = {.offset = over}, at = {.offset = zeros};
    struct nb_desc_matrix w = {.tensor = NB_NO_TENSOR, .bits = 4, .rows = 4, .cols = 32};
    const struct nb_desc_gemm products[] = {
        {.w.tensor = 100000, .x = at, .y = at, .n = 1, .terms = 1},
        {.w = {.tensor = 0, .bits = 4}, .n = 1, .terms = 1},
        {.w = {.tensor = NB_NO_TENSOR, .bits = 3, .rows = 1, .cols = 1}, .n = 1, .terms = 1},
        {.w = {.tensor = NB_NO_TENSOR, .flags = 8}, .n = 1, .terms = 1},
        {.w = w, .n = 0, .terms = 1},
        {.w = w, .n = 1, .terms = 3},
        {.w = w, .n = 1, .terms = 1, .x = beyond},
    };
    const struct nb_desc_dequantize numbers[] = {
        {.w = w, .count = 1, .number = 3},
        {.w = w, .first = 3, .count = 2},
        {.w = w, .count = 1, .scales = {.region = 1}},
        {.w = w, .count = 1, .out = beyond},
    };
    const struct {
        uint32_t op;
        const void *desc;
        uint32_t size;
        int32_t status;
        const char *words;
    } cases[] = {
        {NB_SUBMIT_SCORE, &scores[0], sizeof(*scores), -EINVAL, "what is 2: 0 or 1"},
        {NB_SUBMIT_SCORE, &scores[1], sizeof(*scores), -EINVAL, "first is 4: from base, 0, to"},
        {NB_SUBMIT_SCORE, &scores[2], sizeof(*scores), -ENOSPC, "3 rows take 12 bytes: out has 8"},
        {NB_SUBMIT_TOKENIZE, &texts[0], sizeof(*texts), -EINVAL, "flags are 0x40"},
        {NB_SUBMIT_TOKENIZE, &texts[1], sizeof(*texts), -EINVAL, "0x8 only with 0x4"},
        {NB_SUBMIT_TOKENIZE, &texts[2], sizeof(*texts), -EINVAL,
         "out of 1 at 65536: not all within"},
        {NB_SUBMIT_TOKENIZE, &texts[3], sizeof(*texts), -E2BIG, "a text of 4194305 bytes: at most"},
        {NB_SUBMIT_TOKENIZE, &texts[4], sizeof(*texts), -EINVAL, "text of 16 bytes at 65528"},
        {NB_SUBMIT_DETOKENIZE, &ids[0], sizeof(*ids), -EINVAL, "flags are 0x1: 0"},
        {NB_SUBMIT_DETOKENIZE, &ids[1], sizeof(*ids), -EINVAL, "out of 1 bytes at 65536"},
        {NB_SUBMIT_DETOKENIZE, &ids[2], sizeof(*ids), -E2BIG, "1073741824 tokens: at most 1048576"},
        {NB_SUBMIT_DETOKENIZE, &ids[3], sizeof(*ids), -EINVAL, "tokens of 0 bytes at 2"},
        {NB_SUBMIT_TENSOR, &names[0], sizeof(*names), -EINVAL, "name has 300 bytes: 1 to 256"},
        {NB_SUBMIT_TENSOR, &names[1], sizeof(*names), -ENOENT, "the model has no tensor no?p"},
        {NB_SUBMIT_TENSOR, &names[2], sizeof(*names), -EINVAL, "output_norm.weight is a vector"},
        {NB_SUBMIT_TENSOR, &names[3], sizeof(*names), -EINVAL, "out is not all within the arena"},
        {NB_SUBMIT_COUNTERS, &counters, sizeof(counters), -EINVAL, "not all within the arena"},
        {NB_SUBMIT_GEMM, &products[0], sizeof(*products), -ENOENT, "has no tensor 100000"},
        {NB_SUBMIT_GEMM, &products[1], sizeof(*products), -EINVAL, "its other fields are 0"},
        {NB_SUBMIT_GEMM, &products[2], sizeof(*products), -EINVAL,
         "1 by 1 with 3 bits in groups of 0"},
        {NB_SUBMIT_GEMM, &products[3], sizeof(*products), -EINVAL, "flags are 0x8: at most 0x3"},
        {NB_SUBMIT_GEMM, &products[4], sizeof(*products), -EINVAL, "n is 0: 1 to 1048576"},
        {NB_SUBMIT_GEMM, &products[5], sizeof(*products), -EINVAL, "terms is 3: 1 or 2"},
        {NB_SUBMIT_GEMM, &products[6], sizeof(*products), -EFAULT,
         "x: 128 bytes at 65536 are not all"},
        {NB_SUBMIT_DEQUANTIZE, &numbers[0], sizeof(*numbers), -EINVAL, "number is 3: at most 2"},
        {NB_SUBMIT_DEQUANTIZE, &numbers[1], sizeof(*numbers), -EINVAL,
         "2 rows from 3 on: the matrix"},
        {NB_SUBMIT_DEQUANTIZE, &numbers[2], sizeof(*numbers), -EINVAL, "only int8 has scales"},
        {NB_SUBMIT_DEQUANTIZE, &numbers[3], sizeof(*numbers), -EFAULT, "out: 128 bytes at 65536"},
    };
    for (size_t i = 0; i < N_OF(cases); i++) {
        c.used = 4096;
        refused(&c, client_submit(&c, cases[i].op, 0, cases[i].desc, cases[i].size),
                cases[i].status, cases[i].words);
    }
    client_close(&c);
}

static bool is_full(const struct client *c)
{
    return c->sq_tail - atomic_load(&c->ring->sq_head) >= NB_SQ_ENTRIES;
}

// A client that asks what is refused, and reads nothing, is held like any other.
static void reasons_wait_for_room_too(void **state)
{
    enum { REFUSED = 2000 };
    struct client c = client_open(&worker, MODEL, ARENA);
    struct nb_completion got;
    size_t done = 0, sent = 0, pieces = 0;
    for (; sent < REFUSED; sent++) {
        while (is_full(&c) && atomic_load(&c.ring->worker_sleeps) != NB_SLEEPS_FOR_ROOM)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        if (is_full(&c))
            break; // it takes no more
        client_submit(&c, 77, 0, NULL, 0);
    }
    assert_true(sent < REFUSED);
    while (done < sent && client_next(&c, &got)) {
        pieces += got.kind == NB_COMPLETION_REASON;
        done += got.kind == NB_COMPLETION_DONE;
    }
    assert_int_equal(done, sent);
    assert_int_equal(pieces, 2 * sent);
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
    while (got.user_data != second || got.kind != NB_COMPLETION_DONE);
    assert_int_equal(got.status, NIBBLE_E_BUSY);
    client_submit_raw(&c, &(struct nb_submission){.op = NB_SUBMIT_CANCEL, .target = first});
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
    client_submit_raw(&c, &(struct nb_submission){.op = NB_SUBMIT_CANCEL, .target = job});
    assert_true(client_answer(&c, job, ALL, a));
    assert_int_equal(a->done.status, NIBBLE_E_CANCELLED);
    assert_int_equal(a->done.done.finish, NIBBLE_FINISH_ERROR);
    d.max_tokens = 1;
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), 0);
    assert_true(becomes(&page_of(&c)->sessions, 1));
    client_submit_raw(&c, &(struct nb_submission){.op = NB_SUBMIT_SESSION_CLOSE, .session = 0});
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
    assert_int_equal(status_of(&c, client_submit(&c, NB_SUBMIT_NOP, 0, NULL, 0)), 0);
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
    client_submit(c, NB_SUBMIT_NOP, 0, NULL, 0);
}

static void a_job_without_a_name(struct client *c)
{
    client_submit_raw(c, &(struct nb_submission){.op = NB_SUBMIT_NOP});
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
        assert_int_equal(status_of(&bad, client_submit(&bad, NB_SUBMIT_NOP, 0, NULL, 0)), 0);
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
            struct nb_submission s = {.op = (uint32_t)rand() % NB_SUBMIT_COUNT,
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
        client_submit_raw(&c, &(struct nb_submission){.op = NB_SUBMIT_CANCEL, .target = jobs[i]});
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
        snprintf(add.params.precision, sizeof(add.params.precision), "%s", choices[i][0]);
        snprintf(add.params.kv_type, sizeof(add.params.kv_type), "%s", choices[i][1]);
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
        late = client_submit(&c, NB_SUBMIT_NOP, 0, NULL, 0);
        do
            assert_true(client_next(&c, &got));
        while (got.user_data != late || got.kind != NB_COMPLETION_DONE);
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
        cmocka_unit_test(what_does_not_fit_is_refused_in_a_sentence),
        cmocka_unit_test(other_ops_say_why_too),
        cmocka_unit_test(reasons_wait_for_room_too),
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
