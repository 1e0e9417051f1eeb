// The promise of docs/numerics.md: a row's logits are the same bits whatever runs beside it,
// however its prompt was cut, by prefill or decode, with any number of threads, at each ISA level.
// A random model of every weight type for the wide product of these, the real model for a narrower
// one.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/cpu/kernels.h"
#include "tensor/image.h"
#include "tensor/fail.h"
#include "tests/support/model_file.h"
#include "tests/support/random_model.h"

#define MOST_ROWS   640 // and the context
#define MOST_OTHERS 15
#define ADAPTERS    3

struct variant {
    const char *isa; // NULL: the best
    enum nb_precision precision;
    uint32_t threads, chunk, others;
    enum nb_kv_type kv_type;
    bool adapted; // the sequence has an adapter, and the others have that, others, or none
};

// What is computed: a prompt, then tokens that follow greedily. The prompt's head is only computed,
// as a request that hands out logits cuts its chunks shorter than the largest.
struct work {
    bool real;
    uint32_t head, prompt, generate;
};

struct watch {
    struct nb_sequence *s;
    uint64_t hash[MOST_ROWS]; // of each position's logits
    uint32_t rows;
    bool other;
};

static void on_logits(void *user, uint32_t position, const float *logits, uint32_t vocab)
{
    struct watch *w = user;
    if (w->other)
        return;
    assert_true(position < MOST_ROWS);
    uint64_t h = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof(bits));
        h = (h ^ bits) * 0x9E3779B97F4A7C15u;
        h ^= h >> 29;
    }
    w->hash[position] = h;
    w->rows++;
}

static struct test_model open_variant(const struct work *work, const struct variant *v)
{
    struct nb_model_options o = {.precision = v->precision,
                                 .kv_type = v->kv_type,
                                 .max_rows = v->chunk,
                                 .max_context = MOST_ROWS};
    if (v->isa)
        setenv("NIBBLE_ISA", v->isa, 1);
    else
        unsetenv("NIBBLE_ISA");
    struct test_model t;
    struct nb_error error = {""};
    struct random_model r = RANDOM_MODEL;
    r.context = MOST_ROWS;
    int fd = work->real ? -1 : random_model_create(&r), rc;
    if (work->real)
        rc = test_model_open(NULL, v->threads, &o, &t, &error);
    else
        rc = test_model_open_fd(fd, v->threads, &o, &t, &error);
    if (rc < 0)
        fail_msg("%s", error.text);
    if (fd >= 0)
        close(fd);
    nb_model_set_events(t.model, &(struct nb_model_events){.on_logits = on_logits});
    return t;
}

// Of different ranks and types.
static void open_adapters(const struct test_model *t, struct nb_adapter *ret[ADAPTERS])
{
    static const uint32_t ranks[ADAPTERS] = {17, 3, 40},
                          types[ADAPTERS] = {NB_TYPE_F32, NB_TYPE_F16, NB_TYPE_BF16};
    for (uint32_t i = 0; i < ADAPTERS; i++) {
        const int fd = random_adapter_create(&RANDOM_MODEL, ranks[i], types[i], 20 + i);
        struct nb_error error = {""};
        struct nb_image *image;
        if (fd < 0 || test_image_map(fd, &image, &error) < 0 ||
            nb_adapter_create(t->model, image, "a", 0.5, &ret[i], &error) < 0)
            fail_msg("%s", error.text);
        close(fd);
    }
}

// Tokens [from, to) of a text that the seed gives; with none to generate they are only computed.
static void start(struct test_model *t, struct watch *w, uint64_t seed, uint32_t from, uint32_t to,
                  uint32_t generate)
{
    struct nb_model_info info;
    nb_model_info(t->model, &info);
    int32_t tokens[MOST_ROWS];
    for (uint32_t i = from; i < to; i++)
        tokens[i - from] = (int32_t)(nb_random(seed, i) % info.vocab);
    struct nb_request r = {.max_tokens = generate,
                           .sampling = NB_SAMPLING_GREEDY,
                           .ignore_eos = true,
                           .score = generate && !w->other,
                           .score_from = from};
    assert_int_equal(nb_sequence_set(w->s, from, tokens, to - from), 0);
    assert_int_equal(nb_sequence_start(w->s, &r), 0);
}

// Every few steps another sequence joins, with a prompt and an answer of its own length, and leaves
// when it is done.
static void keep_company(struct test_model *t, struct nb_adapter *const *adapters,
                         struct watch *others, uint32_t n, uint32_t step)
{
    if (!n || step % 3)
        return;
    struct watch *w = &others[step / 3 % n];
    uint64_t r = nb_random(77, step);
    if (w->s) {
        nb_sequence_destroy(w->s);
        w->s = NULL;
    }
    w->other = true;
    assert_int_equal(nb_sequence_create(t->model, w, &w->s), 0);
    nb_sequence_adapt(w->s,
                      step / 3 % (ADAPTERS + 1) ? adapters[step / 3 % (ADAPTERS + 1) - 1] : NULL);
    start(t, w, step, 0, 1 + r % 40, 1 + (uint32_t)(r >> 32) % 60);
}

static void advance(struct test_model *t, struct nb_adapter *const *adapters, struct watch *others,
                    uint32_t n, uint32_t step)
{
    assert_true(step < 20000);
    assert_int_equal(nb_model_step(t->model, NULL), 1);
    keep_company(t, adapters, others, n, step);
}

static uint32_t steps_of(const struct work *work, uint32_t chunk)
{
    uint32_t tail = work->prompt - work->head;
    return (work->head + chunk - 1) / chunk + (tail + chunk - 1) / chunk + work->generate - 1;
}

static void compute(const struct work *work, const struct variant *v, struct watch *ret)
{
    struct test_model t = open_variant(work, v);
    struct nb_adapter *adapters[ADAPTERS] = {NULL};
    static struct watch others[MOST_OTHERS];
    memset(others, 0, sizeof(others));
    *ret = (struct watch){0};
    uint32_t step = 0;
    if (v->adapted)
        open_adapters(&t, adapters);
    for (; step < 3 * v->others; step++) // the others come first
        keep_company(&t, adapters, others, v->others, step);
    assert_int_equal(nb_sequence_create(t.model, ret, &ret->s), 0);
    nb_sequence_adapt(ret->s, adapters[0]);
    if (work->head)
        start(&t, ret, 1, 0, work->head, 0);
    while (nb_sequence_computed(ret->s) < work->head)
        advance(&t, adapters, others, v->others, step++);
    start(&t, ret, 1, work->head, work->prompt, work->generate);
    while (nb_sequence_length(ret->s) < work->prompt + work->generate)
        advance(&t, adapters, others, v->others, step++);
    assert_int_equal(ret->rows, work->prompt - work->head + work->generate - 1);
    if (!v->others) // the prompt was cut as the variant says
        assert_int_equal(step, steps_of(work, v->chunk));
    for (uint32_t i = 0; i < v->others; i++)
        nb_sequence_destroy(others[i].s);
    nb_sequence_destroy(ret->s);
    for (uint32_t i = 0; i < ADAPTERS; i++)
        nb_adapter_destroy(adapters[i]);
    test_model_close(&t);
}

static void assert_equal_rows(const struct watch *a, const struct watch *b, const struct variant *v)
{
    for (uint32_t i = 0; i < MOST_ROWS; i++)
        if (a->hash[i] != b->hash[i])
            fail_msg("row %u differs: isa %s, precision %d, KV %d, %u threads, chunks of %u, %u "
                     "others%s",
                     i, v->isa ? v->isa : "best", v->precision, v->kv_type, v->threads, v->chunk,
                     v->others, v->adapted ? ", adapters" : "");
}

static void assert_all_equal(const struct work *work, const struct variant *variants, size_t n)
{
    static struct watch reference, other;
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || variants[i].precision != variants[i - 1].precision ||
            variants[i].kv_type != variants[i - 1].kv_type ||
            variants[i].adapted != variants[i - 1].adapted)
            compute(work, &variants[i], &reference);
        compute(work, &variants[i], &other);
        assert_equal_rows(&reference, &other, &variants[i]);
    }
    unsetenv("NIBBLE_ISA");
}

static void random_model_wide(void **state)
{
    static const uint32_t chunks[] = {512, 64, 7, 1}, companies[] = {0, 1, 4, 15};
    static struct variant v[3 * 2 * 4 * 4];
    size_t n = 0;
    for (int precision = 0; precision < 3; precision++)
        for (uint32_t threads = 1; threads <= 2; threads++)
            for (int c = 0; c < 4; c++)
                for (int o = 0; o < 4; o++)
                    if (precision == NB_PRECISION_EXACT || c == o)
                        v[n++] = (struct variant){NULL,         (enum nb_precision)precision,
                                                  threads,      chunks[c],
                                                  companies[o], NB_KV_F16,
                                                  false};
    assert_all_equal(&(struct work){false, 0, 70, 10}, v, n);
}

// A prompt that is longer than the largest chunk, at the tier that is the default.
static void long_prompt(void **state)
{
    static const uint32_t chunks[] = {512, 64, 7, 1};
    struct variant v[2 * 4];
    for (int c = 0; c < 4; c++)
        for (uint32_t o = 0; o < 2; o++)
            v[2 * c + o] = (struct variant){
                NULL, NB_PRECISION_BALANCED, 2, chunks[c], o * MOST_OTHERS, NB_KV_F16, false};
    assert_all_equal(&(struct work){false, 590, 600, 10}, v, 2 * 4);
}

// Keys and values as codes: of a position's own numbers alone.
static void codes(void **state)
{
    static const uint32_t chunks[] = {512, 64, 7, 1};
    struct variant v[2 * 4];
    static struct watch halves, bytes;
    for (uint32_t i = 0; i < 8; i++)
        v[i] = (struct variant){
            NULL, NB_PRECISION_BALANCED, 1 + i % 2, chunks[i / 2], 5 * (i % 3), NB_KV_Q8_0, false};
    const struct work work = {false, 90, 110, 10};
    assert_all_equal(&work, v, 8);
    compute(&work, &v[0], &bytes);
    v[0].kv_type = NB_KV_F16;
    compute(&work, &v[0], &halves);
    assert_memory_not_equal(halves.hash + 100, bytes.hash + 100, 8 * sizeof(uint64_t));
}

// Rows with an adapter, beside some with others and with none.
static void adapters(void **state)
{
    static const uint32_t chunks[] = {512, 64, 7, 1}, companies[] = {0, 1, 4, 15};
    static const char *const names[NB_ISA_COUNT] = {"scalar", "avx2", "avx512"};
    struct variant v[3 * (4 + NB_ISA_COUNT)];
    static struct watch plain, adapted;
    size_t n = 0;
    for (int precision = 0; precision < 3; precision++) {
        for (uint32_t i = 0; i < 4; i++)
            v[n++] = (struct variant){NULL,
                                      (enum nb_precision)precision,
                                      1 + i % 2,
                                      chunks[i],
                                      companies[3 - i],
                                      NB_KV_F16,
                                      true};
        for (int isa = 0; isa < NB_ISA_COUNT; isa++)
            if (nb_kernels_of((enum nb_isa)isa))
                v[n++] = (struct variant){
                    names[isa], (enum nb_precision)precision, 2, 64, 4, NB_KV_F16, true};
    }
    const struct work work = {false, 20, 160, 6};
    assert_all_equal(&work, v, n);
    compute(&work, &v[0], &adapted);
    v[0].adapted = false;
    compute(&work, &v[0], &plain);
    for (uint32_t i = work.head; i < work.prompt; i++)
        assert_true(plain.hash[i] != adapted.hash[i]);
}

static void isa_levels(void **state)
{
    static const char *const names[NB_ISA_COUNT] = {"scalar", "avx2", "avx512"};
    struct variant v[4 * NB_ISA_COUNT];
    size_t n = 0;
    for (int precision = 0; precision < 4; precision++)
        for (int isa = 0; isa < NB_ISA_COUNT; isa++)
            if (nb_kernels_of((enum nb_isa)isa))
                v[n++] =
                    (struct variant){names[isa], (enum nb_precision)(precision % 3),     2,    64,
                                     1,          precision < 3 ? NB_KV_F16 : NB_KV_Q8_0, false};
    assert_all_equal(&(struct work){false, 0, 70, 4}, v, n);
}

static void real_model(void **state)
{
    static const struct variant v[] = {
        {NULL, NB_PRECISION_BALANCED, 2, 512, 0, NB_KV_F16, false},
        {NULL, NB_PRECISION_BALANCED, 1, 64, 1, NB_KV_F16, false},
        {NULL, NB_PRECISION_BALANCED, 2, 7, 4, NB_KV_F16, false},
        {NULL, NB_PRECISION_BALANCED, 2, 1, 0, NB_KV_F16, false},
        {NULL, NB_PRECISION_BALANCED, 1, 512, 15, NB_KV_F16, false},
        {NULL, NB_PRECISION_FAST, 2, 64, 4, NB_KV_F16, false},
        {NULL, NB_PRECISION_FAST, 1, 7, 0, NB_KV_F16, false},
    };
    assert_all_equal(&(struct work){true, 0, 66, 4}, v, sizeof(v) / sizeof(v[0]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_model_wide),
        cmocka_unit_test(long_prompt),
        cmocka_unit_test(codes),
        cmocka_unit_test(isa_levels),
        cmocka_unit_test(adapters),
        cmocka_unit_test(real_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
