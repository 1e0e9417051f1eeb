// Tiles: each gives the same bits, those that a model begins with and those that tuning chooses
// too, in every state between; what was chosen is kept, and then taken without another measurement.
// On Mesa's CPU driver; no time is compared.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/model.h"
#include "engine/vulkan/model.h"
#include "tensor/fail.h"
#include "tensor/type.h"
#include "tests/support/cpu_driver.h"
#include "tests/support/model_file.h"
#include "tests/support/random_model.h"

#define PROMPT 19

static const char *device;

struct logits {
    float row[PROMPT][RANDOM_VOCAB];
    uint32_t n;
};

static void on_logits(void *user, uint32_t position, const float *logits, uint32_t vocab)
{
    struct logits *l = user;
    assert_true(position < PROMPT && vocab == RANDOM_VOCAB);
    memcpy(l->row[position], logits, sizeof(l->row[position]));
    l->n++;
}

struct blob {
    void *data;
    size_t bytes;
};

static void open_model(const struct nb_device_options *o, struct test_model *ret)
{
    const struct random_model shape = {2, 128, 192, 4, 2, 512, 11, NB_TYPE_Q4_1};
    const struct nb_model_options options = {.precision = NB_PRECISION_BALANCED, .max_context = 64};
    struct nb_error error = {""};
    int fd = random_model_create(&shape);
    assert_true(fd >= 0);
    test_device(device);
    test_device_options(o);
    if (test_model_open_fd(fd, 1, &options, ret, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
    nb_model_set_events(ret->model, &(struct nb_model_events){.on_logits = on_logits});
}

// The logits of a prompt.
static void score(const struct test_model *t, struct logits *ret)
{
    const struct nb_request request = {.sampling = NB_SAMPLING_GREEDY, .score = true};
    struct nb_sequence *s;
    int32_t tokens[PROMPT];
    for (uint32_t i = 0; i < PROMPT; i++)
        tokens[i] = (int32_t)(nb_random(1, i) % RANDOM_VOCAB);
    ret->n = 0;
    assert_int_equal(nb_sequence_create(t->model, ret, &s), 0);
    assert_int_equal(nb_sequence_set(s, 0, tokens, PROMPT), 0);
    assert_int_equal(nb_sequence_start(s, &request), 0);
    while (nb_model_has_work(t->model))
        assert_int_equal(nb_model_step(t->model, NULL), 1);
    assert_int_equal(ret->n, PROMPT);
    nb_sequence_destroy(s);
}

// What the device has to keep when its model goes.
static struct blob close_model(struct test_model *t)
{
    struct blob kept = {0};
    assert_true(t->device->ops->cache(t->device, &kept.data, &kept.bytes) >= 0);
    test_model_close(t);
    return kept;
}

static struct blob compute(const struct nb_device_options *o, struct logits *ret)
{
    struct test_model t;
    open_model(o, &t);
    score(&t, ret);
    return close_model(&t);
}

static void every_tile(void **state)
{
    static const char *const tiers[] = {"registers", "subgroups"}; // that this driver runs
    static struct logits want, got;
    for (size_t i = 0; i < sizeof(tiers) / sizeof(tiers[0]); i++) {
        free(compute(&(struct nb_device_options){.tier = tiers[i]}, &want).data);
        for (uint32_t tile = 1; tile <= NB_TIER_TILES; tile++) {
            struct nb_device_options o = {.tier = tiers[i], .tile = tile};
            free(compute(&o, &got).data);
            print_message("tier %s, tile %u\n", tiers[i], tile);
            assert_memory_equal(want.row, got.row, sizeof(want.row));
        }
    }
}

// A recording is for up to 32 rows, and GEMMs launch what these need.
static void rows_of_a_bucket(void **state)
{
    static struct logits all;
    struct test_model t;
    uint32_t gemms = 0;
    open_model(&(struct nb_device_options){0}, &t);
    score(&t, &all);
    const struct nb_device_model *m = t.model->dm;
    const uint32_t *words = m->buffers.step.map, bucket = nb_vulkan_bucket(PROMPT);
    assert_int_equal(bucket, 5);
    for (uint32_t i = 0; i < m->program.n; i++) {
        const struct nb_vulkan_dispatch *p = &m->program.dispatches[i];
        const uint32_t tokens = nb_vulkan_variant(m->device, p, p->tile[bucket])->tokens;
        if (p->shape != NB_VULKAN_TOKENS)
            continue;
        assert_int_equal(words[m->tables.groups + 3 * i + 1], (PROMPT + tokens - 1) / tokens);
        gemms++;
    }
    assert_true(gemms > 8);
    test_model_close(&t);
}

// Pieces until there are no more; with `want` each is followed by a step, which must give the same.
static uint32_t prepare(const struct test_model *t, const struct logits *want)
{
    static struct logits got;
    uint32_t pieces = 0;
    for (int rc = 1; rc > 0; pieces += rc > 0) {
        assert_false(nb_model_is_prepared(t->model));
        rc = nb_model_prepare(t->model);
        assert_true(rc >= 0);
        if (!want)
            continue;
        score(t, &got);
        assert_memory_equal(want->row, got.row, sizeof(got.row));
    }
    assert_true(nb_model_is_prepared(t->model));
    assert_int_equal(nb_model_prepare(t->model), 0);
    return pieces;
}

static void chosen_and_kept(void **state)
{
    static struct logits want, got;
    struct test_model t;
    struct blob bare = compute(&(struct nb_device_options){0}, &want);
    open_model(&(struct nb_device_options){.warm = true}, &t);
    score(&t, &got); // with the tiles that are there at first
    assert_memory_equal(want.row, got.row, sizeof(want.row));
    uint32_t cold = prepare(&t, &want);
    struct blob kept = close_model(&t);
    assert_non_null(kept.data);
    assert_true(kept.bytes > bare.bytes); // the choices
    // Whoever has them measures nothing: there is nothing new to keep.
    struct nb_device_options with = {.warm = true, .cache = kept.data, .cache_bytes = kept.bytes};
    open_model(&with, &t);
    uint32_t warm = prepare(&t, NULL);
    print_message("%u pieces without choices, %u with them\n", cold, warm);
    assert_true(warm > 0 && warm < cold);
    score(&t, &got);
    assert_memory_equal(want.row, got.row, sizeof(want.row));
    assert_null(close_model(&t).data);
    free(bare.data);
    free(kept.data);
}

// As if measuring had chosen `tile` for every GEMM.
static struct blob choose_all(const struct blob *kept, const struct nb_vulkan_cache_id *id,
                              uint8_t tile)
{
    struct nb_vulkan_cache_parts parts;
    struct blob ret = {0};
    assert_int_equal(nb_vulkan_cache_read(kept->data, kept->bytes, id, &parts), 0);
    struct nb_vulkan_choice *choices = calloc(parts.n_choices, sizeof(*choices));
    assert_true(choices && parts.n_choices > 0);
    for (uint32_t i = 0; i < parts.n_choices; i++) {
        choices[i].gemm = parts.choices[i].gemm;
        memset(choices[i].tile, tile, NB_VULKAN_BUCKETS);
    }
    parts.choices = choices;
    assert_int_equal(nb_vulkan_cache_write(id, &parts, &ret.data, &ret.bytes), 0);
    free(choices);
    return ret;
}

// Whether every GEMM takes this tile for every count of rows.
static bool all_take(const struct nb_device_model *m, uint32_t tile)
{
    uint32_t gemms = 0;
    for (uint32_t i = 0; i < m->program.n; i++) {
        const struct nb_vulkan_dispatch *p = &m->program.dispatches[i];
        if (p->pipeline[0] == p->pipeline[NB_TIER_TILES - 1])
            continue;
        gemms++;
        for (uint32_t b = 0; b <= nb_vulkan_bucket(m->extent.padded_rows); b++)
            if (p->tile[b] != tile)
                return false;
    }
    return gemms > 0;
}

static void taken_once_ready(void **state)
{
    static struct logits want, got;
    struct test_model t;
    open_model(&(struct nb_device_options){.warm = true}, &t);
    prepare(&t, NULL);
    score(&t, &want);
    const struct nb_vulkan_cache_id id = ((struct nb_vulkan_device *)t.device)->cache.id;
    struct blob kept = close_model(&t);
    for (uint32_t tile = 0; tile < NB_TIER_TILES; tile++) {
        struct blob chosen = choose_all(&kept, &id, (uint8_t)tile);
        open_model(&(struct nb_device_options){.warm = true,
                                               .cache = chosen.data,
                                               .cache_bytes = chosen.bytes},
                   &t);
        const struct nb_device_model *m = t.model->dm;
        assert_true(all_take(m, m->device->tier->first));
        prepare(&t, NULL);
        assert_true(all_take(m, tile));
        score(&t, &got);
        assert_memory_equal(want.row, got.row, sizeof(want.row));
        assert_null(close_model(&t).data);
        free(chosen.data);
    }
    free(kept.data);
}

// Vectors of 512 bits, which the driver takes where the CPU has them, and on others makes of two.
static void wider_vectors(void **state)
{
    static struct logits want, got;
    struct nb_vulkan_device_info info[NB_VULKAN_DEVICES];
    struct nb_error error;
    char *before = getenv("LP_NATIVE_VECTOR_WIDTH");
    before = before ? strdup(before) : NULL;
    for (int wide = 0; wide < 2; wide++) {
        test_device_forget(); // the driver reads it when it is loaded
        setenv("LP_NATIVE_VECTOR_WIDTH", wide ? "512" : "256", 1);
        assert_true(nb_vulkan_enumerate(info, NB_VULKAN_DEVICES, &error) > 0);
        assert_non_null(strstr(info[atoi(device + strlen("vulkan"))].name, wide ? "512" : "256"));
        free(compute(&(struct nb_device_options){.tier = "registers"}, wide ? &got : &want).data);
    }
    assert_memory_equal(want.row, got.row, sizeof(want.row));
    test_device_forget();
    if (before)
        setenv("LP_NATIVE_VECTOR_WIDTH", before, 1);
    else
        unsetenv("LP_NATIVE_VECTOR_WIDTH");
    free(before);
}

static int find_device(void **state)
{
    device = test_cpu_driver();
    return device ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_tile),      cmocka_unit_test(rows_of_a_bucket),
        cmocka_unit_test(chosen_and_kept), cmocka_unit_test(taken_once_ready),
        cmocka_unit_test(wider_vectors),
    };
    return cmocka_run_group_tests(tests, find_device, NULL);
}
