// The scheduler and the KV blocks, on small random models: who runs when, and that losing blocks
// changes no result.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/model_file.h"
#include "tensor/fail.h"
#include "tests/support/random_model.h"

#define MOST 600

// What a sequence's events said.
struct record {
    struct nb_sequence *s;
    int32_t token[MOST];
    float logprob[MOST];
    uint32_t n, stop_after; // 0: never
    enum nb_finish finish;
    uint32_t finishes;
};

static void on_token(void *user, int32_t token, float logprob)
{
    struct record *r = user;
    r->token[r->n] = token;
    r->logprob[r->n++] = logprob;
    if (r->n == r->stop_after)
        nb_sequence_stop(r->s);
}

static void on_finish(void *user, enum nb_finish finish, int error)
{
    struct record *r = user;
    assert_int_equal(error, 0);
    r->finish = finish;
    r->finishes++;
}

static struct test_model open_model(uint32_t context, uint32_t max_rows, uint32_t contexts)
{
    struct random_model r = RANDOM_MODEL;
    r.layers = 2;
    r.context = context;
    int fd = random_model_create(&r);
    assert_true(fd >= 0);
    // Two layers' K and V of 2 heads of 64, fp16.
    uint64_t kv = contexts * ((context + 31) / 32) * (2 * 2 * 2 * 64 * 32 * 2);
    struct nb_model_options o = {
        .precision = NB_PRECISION_FAST, .max_rows = max_rows, .kv_bytes = kv};
    struct test_model t;
    struct nb_error error = {""};
    if (test_model_open_fd(fd, 1, &o, &t, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
    nb_model_set_events(t.model,
                        &(struct nb_model_events){.on_token = on_token, .on_finish = on_finish});
    return t;
}

static void prompt(struct record *r, uint32_t n, uint64_t seed)
{
    int32_t tokens[2048];
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(nb_random(seed, i) % RANDOM_VOCAB);
    assert_int_equal(nb_sequence_set(r->s, 0, tokens, n), 0);
}

static void begin(struct test_model *t, struct record *r, uint32_t n, uint64_t seed)
{
    *r = (struct record){0};
    assert_int_equal(nb_sequence_create(t->model, r, &r->s), 0);
    prompt(r, n, seed);
}

static void start(struct record *r, uint32_t max_tokens)
{
    struct nb_request q = {.max_tokens = max_tokens,
                           .sampling = {.temperature = 1,
                                        .top_p = 1,
                                        .repeat_penalty = 1,
                                        .seed = 5,
                                        .logprobs = true},
                           .ignore_eos = true};
    assert_int_equal(nb_sequence_start(r->s, &q), 0);
}

static void run(struct test_model *t)
{
    for (uint32_t steps = 0; nb_model_has_work(t->model); steps++) {
        assert_true(steps < 10000);
        assert_int_equal(nb_model_step(t->model, NULL), 1);
    }
}

static void assert_same(const struct record *a, const struct record *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->token, b->token, a->n * sizeof(a->token[0]));
    assert_memory_equal(a->logprob, b->logprob, a->n * sizeof(a->logprob[0]));
}

static void short_prompt_overtakes(void **state)
{
    struct test_model t = open_model(2048, 128, 2);
    struct record longer, shorter;
    begin(&t, &longer, 2000, 1);
    start(&longer, 1);
    struct nb_step_stats stats;
    assert_int_equal(nb_model_step(t.model, &stats), 1);
    assert_int_equal(stats.prefill_rows, 128);
    begin(&t, &shorter, 20, 2);
    start(&shorter, 8);
    uint32_t steps = 0, mixed = 0;
    for (; !shorter.n; steps++)
        assert_int_equal(nb_model_step(t.model, &stats), 1);
    assert_true(steps <= 3);
    assert_int_equal(stats.sequences, 2);
    // While the short one streams, every step carries its row beside rows of the long one.
    for (; !shorter.finishes; mixed++) {
        assert_int_equal(nb_model_step(t.model, &stats), 1);
        assert_int_equal(stats.decode_rows, 1);
        assert_true(stats.prefill_rows > 0);
    }
    assert_int_equal(mixed, 7);
    run(&t);
    assert_int_equal(longer.n, 1);
    nb_sequence_destroy(longer.s);
    nb_sequence_destroy(shorter.s);
    test_model_close(&t);
}

static void more_sequences_than_rows(void **state)
{
    struct test_model t = open_model(64, 4, 8);
    struct record r[7];
    for (int i = 0; i < 7; i++) {
        begin(&t, &r[i], 5, (uint64_t)i);
        start(&r[i], 20);
    }
    run(&t);
    for (int i = 0; i < 7; i++) {
        assert_int_equal(r[i].n, 20);
        assert_int_equal(r[i].finish, NB_FINISH_LENGTH);
        nb_sequence_destroy(r[i].s);
    }
    test_model_close(&t);
}

// What a prompt of n tokens and `seed` generates with nobody else about.
static void alone(struct record *ret, uint32_t n, uint64_t seed, uint32_t max_tokens)
{
    struct test_model t = open_model(256, 64, 1);
    begin(&t, ret, n, seed);
    start(ret, max_tokens);
    run(&t);
    nb_sequence_destroy(ret->s);
    test_model_close(&t);
}

static void idle_loses_blocks(void **state)
{
    static struct record wanted, a, b;
    alone(&wanted, 150, 1, 30);
    struct test_model t = open_model(256, 64, 1);
    begin(&t, &a, 150, 1);
    start(&a, 10);
    run(&t);
    uint32_t before = nb_sequence_computed(a.s);
    begin(&t, &b, 200, 2);
    start(&b, 5);
    run(&t);
    // 8 blocks in all, 7 of them b's.
    assert_int_equal(before, 159);
    assert_int_equal(nb_sequence_computed(a.s), 32);
    start(&a, 20);
    run(&t);
    assert_same(&a, &wanted);
    nb_sequence_destroy(a.s);
    nb_sequence_destroy(b.s);
    struct nb_model_info info;
    nb_model_info(t.model, &info);
    assert_int_equal(info.kv_blocks_free, info.kv_blocks);
    test_model_close(&t);
}

static void active_ones_share_too_few_blocks(void **state)
{
    static struct record wanted, r[4];
    struct test_model t = open_model(256, 64, 1);
    for (int i = 0; i < 4; i++) {
        begin(&t, &r[i], 100 + 20 * (uint32_t)i, (uint64_t)i);
        start(&r[i], 40);
    }
    run(&t);
    for (int i = 0; i < 4; i++) {
        alone(&wanted, 100 + 20 * (uint32_t)i, (uint64_t)i, 40);
        assert_int_equal(r[i].finish, NB_FINISH_LENGTH);
        assert_same(&r[i], &wanted);
        nb_sequence_destroy(r[i].s);
    }
    test_model_close(&t);
}

static void parked_ones_wait(void **state)
{
    static struct record wanted, a, b;
    alone(&wanted, 150, 1, 10);
    struct test_model t = open_model(256, 64, 1);
    begin(&t, &a, 150, 1);
    start(&a, 10);
    while (a.n < 3)
        assert_int_equal(nb_model_step(t.model, NULL), 1);
    nb_sequence_park(a.s, true);
    assert_false(nb_model_has_work(t.model));
    assert_int_equal(nb_model_step(t.model, NULL), 0);
    // Its blocks may go to others meanwhile.
    begin(&t, &b, 250, 2);
    start(&b, 1);
    run(&t);
    assert_int_equal(a.n, 3);
    nb_sequence_park(a.s, false);
    run(&t);
    assert_same(&a, &wanted);
    nb_sequence_destroy(a.s);
    nb_sequence_destroy(b.s);
    test_model_close(&t);
}

static void cancel(void **state)
{
    struct test_model t = open_model(256, 64, 1);
    static struct record a;
    begin(&t, &a, 10, 1);
    a.stop_after = 4;
    start(&a, 100);
    run(&t);
    assert_int_equal(a.n, 4);
    assert_int_equal(a.finishes, 0);
    assert_int_equal(nb_sequence_length(a.s), 14);
    // A new turn, which keeps what is computed of the log's beginning.
    int32_t more[] = {1, 2, 3};
    assert_int_equal(nb_sequence_set(a.s, 12, more, 3), 0);
    assert_int_equal(nb_sequence_computed(a.s), 12);
    a.stop_after = 0;
    start(&a, 2);
    assert_int_equal(nb_sequence_set(a.s, 0, more, 3), -EBUSY);
    run(&t);
    assert_int_equal(a.n, 6);
    assert_int_equal(nb_sequence_length(a.s), 17);
    start(&a, 100);
    nb_sequence_destroy(a.s); // while active
    assert_false(nb_model_has_work(t.model));
    test_model_close(&t);
}

static void ends(void **state)
{
    struct test_model t = open_model(64, 64, 1);
    static struct record a;
    begin(&t, &a, 60, 1);
    start(&a, 100);
    run(&t);
    assert_int_equal(a.finish, NB_FINISH_CONTEXT);
    assert_int_equal(nb_sequence_length(a.s), 64);
    struct nb_request q = {.max_tokens = 1, .sampling = NB_SAMPLING_GREEDY};
    assert_int_equal(nb_sequence_start(a.s, &q), -E2BIG);
    int32_t token = RANDOM_VOCAB;
    assert_int_equal(nb_sequence_set(a.s, 64, &token, 1), -E2BIG);
    assert_int_equal(nb_sequence_set(a.s, 10, &token, 1), -EINVAL);
    assert_int_equal(nb_sequence_set(a.s, 65, NULL, 0), -EINVAL);
    assert_int_equal(nb_sequence_length(a.s), 64);
    q = (struct nb_request){.sampling = NB_SAMPLING_GREEDY, .score = true, .score_from = 64};
    assert_int_equal(nb_sequence_start(a.s, &q), -EINVAL);
    q.score_from = 0;
    assert_int_equal(nb_sequence_start(a.s, &q), 0);
    run(&t);
    assert_int_equal(a.finish, NB_FINISH_SCORED);
    assert_int_equal(nb_sequence_set(a.s, 0, NULL, 0), 0);
    assert_int_equal(nb_sequence_start(a.s, &q), -EINVAL);
    nb_sequence_destroy(a.s);
    test_model_close(&t);
}

// A context that is twice as long, nearly, in the same memory: a byte and a 32nd of a half for each
// element.
static void each_cache_takes_its_memory(void **state)
{
    struct random_model r = RANDOM_MODEL;
    r.context = 480;
    const uint64_t halves = 8 * 3 * 2 * 2 * 64 * 32 * 2; // 8 blocks of three layers
    static const struct {
        uint64_t bytes; // of 32 elements
        const char *room;
        uint32_t blocks;
    } want[NB_KV_TYPES] = {
        [NB_KV_F16] = {64, "at most 256", 0},
        [NB_KV_Q8_0] = {34, NULL, 15},
        [NB_KV_F32] = {128, "at most 128", 0},
    };
    for (enum nb_kv_type type = NB_KV_F16; type < NB_KV_TYPES; type++) {
        const struct nb_model_options o = {.kv_type = type, .kv_bytes = halves};
        struct nb_error error = {""};
        struct test_model t;
        int fd = random_model_create(&r), rc;
        assert_true(fd >= 0);
        rc = test_model_open_fd(fd, 1, &o, &t, &error);
        close(fd);
        assert_int_equal(rc, want[type].room ? -ENOMEM : 0);
        if (rc < 0) {
            assert_non_null(strstr(error.text, want[type].room ? want[type].room : "none"));
            continue;
        }
        struct nb_model_info info;
        nb_model_info(t.model, &info);
        assert_int_equal(info.kv_block_bytes, halves / 8 * want[type].bytes / 64);
        assert_int_equal(info.kv_blocks, want[type].blocks);
        test_model_close(&t);
    }
}

static void refusals(void **state)
{
    static const struct {
        struct nb_model_options options;
        uint32_t heads, kv_heads;
        int rc;
        const char *says;
    } cases[] = {
        {{.max_context = 513}, 4, 2, -EINVAL, "512"},
        {{.kv_bytes = 1}, 4, 2, -ENOMEM, "context"},
        {{.max_rows = 1u << 20}, 4, 2, -EINVAL, "4096"},
        {{0}, 3, 1, -EINVAL, "is odd"},
        {{0}, 4, 3, -EINVAL, "heads"},
        {{.kv_type = NB_KV_Q8_0}, 16, 2, -ENOTSUP, "use f16"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct random_model r = RANDOM_MODEL;
        r.heads = cases[i].heads;
        r.kv_heads = cases[i].kv_heads;
        int fd = random_model_create(&r);
        assert_true(fd >= 0);
        struct nb_error error = {""};
        struct test_model t;
        assert_int_equal(test_model_open_fd(fd, 1, &cases[i].options, &t, &error), cases[i].rc);
        assert_non_null(strstr(error.text, cases[i].says));
        close(fd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_prompt_overtakes),
        cmocka_unit_test(more_sequences_than_rows),
        cmocka_unit_test(idle_loses_blocks),
        cmocka_unit_test(active_ones_share_too_few_blocks),
        cmocka_unit_test(parked_ones_wait),
        cmocka_unit_test(cancel),
        cmocka_unit_test(ends),
        cmocka_unit_test(each_cache_takes_its_memory),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
