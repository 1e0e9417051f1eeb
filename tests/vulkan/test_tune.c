// Tiles: each gives the same bits, those that tuning chooses too; what was chosen is kept, and then
// taken without another measurement. On Mesa's CPU driver; no time is compared.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/vulkan/tier.h"
#include "engine/vulkan/vulkan.h"
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

// The logits of a prompt, and what the device has to keep afterwards.
static struct blob compute(const struct nb_device_options *o, struct logits *ret)
{
    const struct random_model shape = {2, 128, 192, 4, 2, 512, 11, NB_TYPE_Q4_1};
    const struct nb_model_options options = {.precision = NB_PRECISION_BALANCED, .max_context = 64};
    const struct nb_request request = {.sampling = NB_SAMPLING_GREEDY, .score = true};
    struct test_model t;
    struct nb_sequence *s;
    struct blob kept = {0};
    int32_t tokens[PROMPT];
    char error[256] = "";
    for (uint32_t i = 0; i < PROMPT; i++)
        tokens[i] = (int32_t)(nb_random(1, i) % RANDOM_VOCAB);
    int fd = random_model_create(&shape);
    assert_true(fd >= 0);
    test_device(device);
    test_device_options(o);
    if (test_model_open_fd(fd, 1, &options, &t, error, sizeof(error)) < 0)
        fail_msg("%s", error);
    close(fd);
    nb_model_set_events(t.model, &(struct nb_model_events){.on_logits = on_logits});
    ret->n = 0;
    assert_int_equal(nb_sequence_create(t.model, ret, &s), 0);
    assert_int_equal(nb_sequence_set(s, 0, tokens, PROMPT), 0);
    assert_int_equal(nb_sequence_start(s, &request), 0);
    while (nb_model_has_work(t.model))
        assert_int_equal(nb_model_step(t.model, NULL), 1);
    assert_int_equal(ret->n, PROMPT);
    nb_sequence_destroy(s);
    assert_true(t.device->ops->cache(t.device, &kept.data, &kept.bytes) >= 0);
    test_model_close(&t);
    return kept;
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

static void chosen_and_kept(void **state)
{
    static struct logits want, got;
    struct blob bare = compute(&(struct nb_device_options){0}, &want);
    struct blob kept = compute(&(struct nb_device_options){.warm = true}, &got);
    assert_memory_equal(want.row, got.row, sizeof(want.row));
    assert_non_null(kept.data);
    assert_true(kept.bytes > bare.bytes); // the choices
    // Whoever has them measures nothing: there is nothing new to keep.
    struct nb_device_options with = {.warm = true, .cache = kept.data, .cache_bytes = kept.bytes};
    assert_null(compute(&with, &got).data);
    assert_memory_equal(want.row, got.row, sizeof(want.row));
    free(bare.data);
    free(kept.data);
}

// Vectors of 512 bits, which the driver takes where the CPU has them, and on others makes of two.
static void wider_vectors(void **state)
{
    static struct logits want, got;
    struct nb_vulkan_device_info info[NB_VULKAN_DEVICES];
    char error[256], *before = getenv("LP_NATIVE_VECTOR_WIDTH");
    before = before ? strdup(before) : NULL;
    for (int wide = 0; wide < 2; wide++) {
        setenv("LP_NATIVE_VECTOR_WIDTH", wide ? "512" : "256", 1);
        assert_true(nb_vulkan_enumerate(info, NB_VULKAN_DEVICES, error, sizeof(error)) > 0);
        assert_non_null(strstr(info[atoi(device + strlen("vulkan"))].name, wide ? "512" : "256"));
        free(compute(&(struct nb_device_options){.tier = "registers"}, wide ? &got : &want).data);
    }
    assert_memory_equal(want.row, got.row, sizeof(want.row));
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
        cmocka_unit_test(every_tile),
        cmocka_unit_test(chosen_and_kept),
        cmocka_unit_test(wider_vectors),
    };
    return cmocka_run_group_tests(tests, find_device, NULL);
}
