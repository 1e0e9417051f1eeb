// Vectors of texts, on small random models: what pooling makes of the rows, that company, chunks,
// threads and lost KV blocks change no bit, who waits for whom, and what is refused.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/model_file.h"
#include "tensor/fail.h"
#include "tests/support/random_model.h"

#define WIDTH   256
#define CONTEXT 256
#define LAYERS  3
// Of a block of 32 positions: keys and values of 2 KV heads of 64 in halves, of BERT of 4.
#define BLOCK_BYTES(kv_heads) (LAYERS * 2 * 64 * 32 * 2 * (kv_heads))

enum { NONE, MEAN, CLS, LAST }; // pooling_type

struct shape {
    bool bert;
    uint32_t pooling, max_rows, threads, kv_blocks;
    const char *loud; // a norm whose weights are too large
};

struct record {
    struct nb_sequence *s;
    float vector[WIDTH];
    int32_t token[CONTEXT];
    uint32_t vectors, tokens, finishes;
    enum nb_finish finish;
    int error;
};

static void on_token(void *user, int32_t token, float logprob)
{
    struct record *r = user;
    r->token[r->tokens++] = token;
}

static void on_finish(void *user, enum nb_finish finish, int error)
{
    struct record *r = user;
    r->finish = finish;
    r->error = error;
    r->finishes++;
}

static void on_vector(void *user, const float *vector, uint32_t n)
{
    struct record *r = user;
    assert_int_equal(n, WIDTH);
    memcpy(r->vector, vector, sizeof(r->vector));
    r->vectors++;
}

static struct test_model open_shape(const struct shape *s)
{
    struct random_model r = RANDOM_MODEL;
    const uint32_t blocks = s->kv_blocks ? s->kv_blocks : 64;
    const struct nb_model_options o = {.precision = NB_PRECISION_BALANCED,
                                       .max_rows = s->max_rows,
                                       .kv_bytes = blocks * BLOCK_BYTES(s->bert ? 4u : 2u)};
    r.context = CONTEXT;
    int fd = random_model_create_pooled(&r, s->bert, s->pooling, s->loud, 3e38f);
    assert_true(fd >= 0);
    struct test_model t;
    struct nb_error error = {""};
    if (test_model_open_fd(fd, s->threads ? s->threads : 1, &o, &t, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
    nb_model_set_events(t.model, &(struct nb_model_events){.on_token = on_token,
                                                           .on_finish = on_finish,
                                                           .on_vector = on_vector});
    return t;
}

// Tokens of a text that the seed gives.
static void begin(struct test_model *t, struct record *r, uint32_t n, uint64_t seed)
{
    int32_t tokens[CONTEXT];
    *r = (struct record){0};
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(nb_random(seed, i) % RANDOM_VOCAB);
    assert_int_equal(nb_sequence_create(t->model, r, &r->s), 0);
    assert_int_equal(nb_sequence_set(r->s, 0, tokens, n), 0);
}

static int start(struct record *r, bool normalise)
{
    const struct nb_request q = {
        .embed = true, .normalise = normalise, .sampling = NB_SAMPLING_GREEDY};
    return nb_sequence_start(r->s, &q);
}

static void generate(struct record *r, uint32_t n)
{
    const struct nb_request q = {
        .max_tokens = n, .ignore_eos = true, .sampling = NB_SAMPLING_GREEDY};
    assert_int_equal(nb_sequence_start(r->s, &q), 0);
}

static void run(struct test_model *t)
{
    for (uint32_t steps = 0; nb_model_has_work(t->model); steps++) {
        assert_true(steps < 10000);
        assert_true(nb_model_step(t->model, NULL) >= 0);
    }
}

static void assert_embedded(const struct record *r)
{
    assert_int_equal(r->vectors, 1);
    assert_int_equal(r->finishes, 1);
    assert_int_equal(r->finish, NB_FINISH_SCORED);
    assert_int_equal(r->error, 0);
}

// The vector of n tokens with nobody else about.
static void embed(const struct shape *s, uint32_t n, uint64_t seed, bool normalise,
                  float ret[WIDTH])
{
    struct test_model t = open_shape(s);
    static struct record r;
    begin(&t, &r, n, seed);
    assert_int_equal(start(&r, normalise), 0);
    run(&t);
    assert_embedded(&r);
    memcpy(ret, r.vector, sizeof(r.vector));
    nb_sequence_destroy(r.s);
    test_model_close(&t);
}

#define assert_same(a, b) assert_memory_equal(a, b, WIDTH * sizeof(float))

// Of a causal model the vector of a text's last row is that of each text that it begins: so the
// other poolings follow from it.
static void pooling_of_a_causal_model(void **state)
{
    enum { N = 40 };
    static float last[N][WIDTH];
    float got[WIDTH];
    const struct shape shape = {.pooling = LAST, .max_rows = 64};
    for (uint32_t i = 0; i < N; i++)
        embed(&shape, i + 1, 3, false, last[i]);
    embed(&(struct shape){.max_rows = 64}, N, 3, false, got); // its metadata does not say
    assert_same(got, last[N - 1]);
    for (uint32_t rows = 7; rows <= 64; rows += 57) { // in chunks and at once
        embed(&(struct shape){.pooling = CLS, .max_rows = rows}, N, 3, false, got);
        assert_same(got, last[0]);
        embed(&(struct shape){.pooling = LAST, .max_rows = rows}, N, 3, false, got);
        assert_same(got, last[N - 1]);
        embed(&(struct shape){.pooling = MEAN, .max_rows = rows}, N, 3, false, got);
        for (uint32_t i = 0; i < WIDTH; i++) {
            double sum = 0;
            for (uint32_t p = 0; p < N; p++)
                sum += (double)last[p][i];
            assert_true(fabs(sum / N - (double)got[i]) <= 1e-6 * (1 + fabs(sum / N)));
        }
    }
}

static void normalised(void **state)
{
    for (int bert = 0; bert < 2; bert++) {
        const struct shape shape = {.bert = bert, .pooling = MEAN, .max_rows = 64};
        float plain[WIDTH], unit[WIDTH];
        double squares = 0, of_unit = 0;
        embed(&shape, 30, 1, false, plain);
        embed(&shape, 30, 1, true, unit);
        for (uint32_t i = 0; i < WIDTH; i++) {
            squares += (double)plain[i] * (double)plain[i];
            of_unit += (double)unit[i] * (double)unit[i];
        }
        assert_true(fabs(of_unit - 1) < 1e-6);
        for (uint32_t i = 0; i < WIDTH; i++)
            assert_true(fabs((double)plain[i] / sqrt(squares) - (double)unit[i]) < 1e-6);
    }
}

// Texts of many lengths at once, on a model that also generates if it can.
static void company(const struct shape *s, uint32_t texts)
{
    static struct record r[40], other;
    struct test_model t = open_shape(s);
    if (!s->bert) {
        begin(&t, &other, 50, 99);
        generate(&other, 30);
    }
    for (uint32_t i = 0; i < texts; i++) {
        begin(&t, &r[i], 1 + i * 37 % 64, i);
        assert_int_equal(start(&r[i], true), 0);
    }
    run(&t);
    for (uint32_t i = 0; i < texts; i++) {
        float wanted[WIDTH];
        embed(&(struct shape){s->bert, s->pooling, 64, 1, 0, NULL}, 1 + i * 37 % 64, i, true,
              wanted);
        assert_embedded(&r[i]);
        assert_same(r[i].vector, wanted);
        nb_sequence_destroy(r[i].s);
    }
    if (!s->bert) {
        assert_int_equal(other.tokens, 30);
        nb_sequence_destroy(other.s);
    }
    struct nb_model_info info;
    nb_model_info(t.model, &info);
    assert_int_equal(info.kv_blocks_free, info.kv_blocks);
    test_model_close(&t);
}

static void company_changes_nothing(void **state)
{
    company(&(struct shape){.bert = true, .pooling = MEAN, .max_rows = 512}, 40);
    company(&(struct shape){.bert = true, .pooling = CLS, .max_rows = 64, .threads = 2}, 40);
    company(&(struct shape){.pooling = LAST, .max_rows = 64, .threads = 2}, 20);
    company(&(struct shape){.pooling = MEAN, .max_rows = 7}, 20);
}

// Rows that are computed again, because an older text took their blocks, count once.
static void lost_blocks_change_nothing(void **state)
{
    static struct record r[2];
    float wanted[WIDTH];
    company(&(struct shape){.bert = true, .pooling = MEAN, .max_rows = 512, .kv_blocks = 8}, 40);
    for (uint32_t pooling = MEAN; pooling <= LAST; pooling++) {
        const struct shape shape = {.pooling = pooling, .max_rows = 32, .kv_blocks = 8};
        const uint32_t lengths[] = {250, 200};
        struct test_model t = open_shape(&shape);
        uint32_t most = 0, lost = 0;
        for (uint32_t i = 0; i < 2; i++) {
            begin(&t, &r[i], lengths[i], i);
            assert_int_equal(start(&r[i], true), 0);
        }
        while (nb_model_has_work(t.model)) {
            assert_true(nb_model_step(t.model, NULL) >= 0);
            const uint32_t computed = nb_sequence_computed(r[1].s);
            lost += computed < most;
            most = computed;
        }
        assert_true(lost > 0);
        for (uint32_t i = 0; i < 2; i++) {
            embed(&(struct shape){.pooling = pooling, .max_rows = 64}, lengths[i], i, true, wanted);
            assert_embedded(&r[i]);
            assert_same(r[i].vector, wanted);
            nb_sequence_destroy(r[i].s);
        }
        test_model_close(&t);
    }
}

// A token of an encoder sees those after it.
static void sees_what_follows(void **state)
{
    const struct shape shape = {.bert = true, .pooling = CLS, .max_rows = 64};
    float vector[2][WIDTH];
    for (int32_t i = 0; i < 2; i++) {
        struct test_model t = open_shape(&shape);
        static struct record r;
        begin(&t, &r, 40, 1);
        assert_int_equal(nb_sequence_set(r.s, 39, &i, 1), 0);
        assert_int_equal(start(&r, true), 0);
        run(&t);
        assert_embedded(&r);
        memcpy(vector[i], r.vector, sizeof(r.vector));
        nb_sequence_destroy(r.s);
        test_model_close(&t);
    }
    assert_memory_not_equal(vector[0], vector[1], sizeof(vector[0]));
}

// While somebody streams, a step that embeds is a quarter of a full one, and every second step is
// the stream's.
static void streams_go_on(void **state)
{
    struct test_model t = open_shape(&(struct shape){.pooling = MEAN, .max_rows = 64});
    static struct record stream, text[4];
    struct nb_step_stats stats;
    begin(&t, &stream, 10, 1);
    generate(&stream, 100);
    assert_int_equal(nb_model_step(t.model, NULL), 1);
    for (uint32_t i = 0; i < 4; i++) {
        begin(&t, &text[i], 200, i);
        assert_int_equal(start(&text[i], true), 0);
    }
    uint32_t steps = 0, before = stream.tokens;
    for (; !(text[0].finishes && text[1].finishes && text[2].finishes && text[3].finishes);
         steps++) {
        assert_int_equal(nb_model_step(t.model, &stats), 1);
        assert_true(stats.decode_rows + stats.prefill_rows <= 16);
    }
    assert_true(stream.tokens - before >= steps / 2);
    run(&t);
    nb_sequence_destroy(stream.s);
    for (uint32_t i = 0; i < 4; i++)
        nb_sequence_destroy(text[i].s);
    test_model_close(&t);
}

// Texts of one token come and come; a long one, which an encoder computes in one step, is not put
// off.
static void long_text_gets_its_turn(void **state)
{
    struct test_model t = open_shape(&(struct shape){.bert = true, .max_rows = 128});
    static struct record small[8], longer;
    begin(&t, &longer, 128, 1);
    assert_int_equal(start(&longer, true), 0);
    for (uint32_t i = 0; i < 8; i++) {
        begin(&t, &small[i], 1, i);
        assert_int_equal(start(&small[i], true), 0);
    }
    for (uint32_t steps = 0; !longer.finishes; steps++) {
        assert_true(steps < 3);
        assert_int_equal(nb_model_step(t.model, NULL), 1);
        for (uint32_t i = 0; i < 8; i++)
            if (small[i].finishes) {
                small[i].finishes = 0;
                assert_int_equal(start(&small[i], true), 0);
            }
    }
    run(&t);
    nb_sequence_destroy(longer.s);
    for (uint32_t i = 0; i < 8; i++)
        nb_sequence_destroy(small[i].s);
    test_model_close(&t);
}

static void parked_and_stopped(void **state)
{
    struct test_model t = open_shape(&(struct shape){.pooling = MEAN, .max_rows = 32});
    static struct record a, b;
    float wanted[WIDTH];
    embed(&(struct shape){.pooling = MEAN, .max_rows = 32}, 100, 1, true, wanted);
    begin(&t, &a, 100, 1);
    begin(&t, &b, 100, 2);
    assert_int_equal(start(&a, true), 0);
    assert_int_equal(nb_model_step(t.model, NULL), 1);
    nb_sequence_park(a.s, true);
    assert_false(nb_model_has_work(t.model));
    assert_int_equal(start(&b, true), 0);
    assert_int_equal(nb_model_step(t.model, NULL), 1);
    nb_sequence_stop(b.s);
    assert_false(nb_model_has_work(t.model));
    nb_sequence_park(a.s, false);
    run(&t);
    assert_embedded(&a);
    assert_same(a.vector, wanted);
    assert_int_equal(b.finishes + b.vectors, 0);
    nb_sequence_destroy(a.s);
    nb_sequence_destroy(b.s);
    test_model_close(&t);
}

static void refusals(void **state)
{
    struct nb_model_info info;
    static struct record r;
    struct test_model t = open_shape(&(struct shape){.bert = true, .max_rows = 64});
    nb_model_info(t.model, &info);
    assert_false(info.generates);
    assert_int_equal(info.embedding, WIDTH);
    assert_int_equal(info.longest_embedded, 64);
    begin(&t, &r, 65, 1);
    assert_int_equal(start(&r, true), -E2BIG);
    assert_int_equal(nb_sequence_set(r.s, 64, NULL, 0), 0);
    struct nb_request q = {.max_tokens = 1, .sampling = NB_SAMPLING_GREEDY};
    assert_int_equal(nb_sequence_start(r.s, &q), -EOPNOTSUPP);
    q = (struct nb_request){.score = true, .sampling = NB_SAMPLING_GREEDY};
    assert_int_equal(nb_sequence_start(r.s, &q), -EOPNOTSUPP);
    q.embed = true;
    assert_int_equal(nb_sequence_start(r.s, &q), -EINVAL);
    q = (struct nb_request){.max_tokens = 1, .embed = true, .sampling = NB_SAMPLING_GREEDY};
    assert_int_equal(nb_sequence_start(r.s, &q), -EINVAL);
    assert_int_equal(start(&r, true), 0);
    run(&t);
    assert_embedded(&r);
    nb_sequence_destroy(r.s);
    test_model_close(&t);
    t = open_shape(&(struct shape){.max_rows = 64});
    nb_model_info(t.model, &info);
    assert_true(info.generates);
    assert_int_equal(info.longest_embedded, CONTEXT);
    test_model_close(&t);
}

// Weights that are too large in one norm: no vector comes of it, and the sentence names the op.
static void not_finite(void **state)
{
    static const struct {
        struct shape shape;
        const char *where;
    } cases[] = {
        {{true, MEAN, 64, 1, 0, "blk.1.attn_output_norm.weight"}, "out of layer 1"},
        {{true, CLS, 64, 1, 0, "blk.2.layer_output_norm.weight"}, "down of layer 2"},
        {{false, MEAN, 16, 1, 0, "blk.2.ffn_norm.weight"}, "gate_up of layer 2"},
        {{false, LAST, 16, 1, 0, "output_norm.weight"}, "the head"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct test_model t = open_shape(&cases[i].shape);
        static struct record r;
        begin(&t, &r, 40, 1);
        assert_int_equal(start(&r, true), 0);
        run(&t);
        assert_int_equal(r.vectors, 0);
        assert_int_equal(r.finishes, 1);
        assert_int_equal(r.finish, NB_FINISH_ERROR);
        assert_int_equal(r.error, -EBADMSG);
        const char *why = nb_sequence_error(r.s);
        if (!strstr(why, "vectors are not finite") || !strstr(why, cases[i].where))
            fail_msg("%s: not %s", why, cases[i].where);
        nb_sequence_destroy(r.s);
        test_model_close(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pooling_of_a_causal_model),
        cmocka_unit_test(normalised),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(lost_blocks_change_nothing),
        cmocka_unit_test(sees_what_follows),
        cmocka_unit_test(streams_go_on),
        cmocka_unit_test(long_text_gets_its_turn),
        cmocka_unit_test(parked_and_stopped),
        cmocka_unit_test(refusals),
        cmocka_unit_test(not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
