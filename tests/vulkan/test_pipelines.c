// The limit of pipelines for a model (engine/vulkan/program.h): the packaged model and random ones
// of the mixtures that quantizers write, in every tier that the device has and at every precision.
// On Mesa's CPU driver.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/vulkan/model.h"
#include "tensor/fail.h"
#include "tensor/image.h"
#include "tensor/type.h"
#include "tests/support/cpu_driver.h"
#include "tests/support/model_file.h"
#include "tests/support/pack.h"
#include "tests/support/random_model.h"

static const char *device;
static const char *const tiers[] = {"registers", "subgroups", "subgroups-dot", "matrices"};
#define N_TIERS (sizeof(tiers) / sizeof(tiers[0]))

// More bits where it hurts most, and other types where rows do not divide into super-blocks.
static const struct random_mix q4_k_m[] = {{"attn_v", NB_TYPE_Q5_0, NB_TYPE_Q8_0},
                                           {"ffn_down", NB_TYPE_Q4_K, NB_TYPE_Q6_K},
                                           {"token_embd", NB_TYPE_Q8_0, 0},
                                           {"output", NB_TYPE_Q8_0, 0},
                                           {0}};
// What a search for the best types for so many bytes finds.
static const struct random_mix searched[] = {{"attn_q", NB_TYPE_IQ4_XS, NB_TYPE_Q3_K},
                                             {"attn_k", NB_TYPE_IQ4_XS, NB_TYPE_Q5_K},
                                             {"attn_v", NB_TYPE_Q6_K, NB_TYPE_Q8_0},
                                             {"attn_output", NB_TYPE_Q4_K, NB_TYPE_Q5_K},
                                             {"ffn_gate", NB_TYPE_Q3_K, NB_TYPE_Q4_K},
                                             {"ffn_up", NB_TYPE_Q3_K, NB_TYPE_Q4_K},
                                             {"ffn_down", NB_TYPE_Q5_K, NB_TYPE_Q6_K},
                                             {"token_embd", NB_TYPE_BF16, 0},
                                             {"output", NB_TYPE_F16, 0},
                                             {0}};

static const struct {
    const char *name;
    int type;
    const struct random_mix *mix;
} models[] = {
    {"the packaged model", 0, NULL},
    {"Q4_K_M", NB_TYPE_Q5_0, q4_k_m},
    {"searched types", NB_TYPE_Q4_K, searched},
};
#define N_MODELS (sizeof(models) / sizeof(models[0]))

static struct nb_image *pack(size_t i)
{
    const struct random_model shape = {.layers = 8,
                                       .embedding = 256,
                                       .ffn = 256,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .context = 512,
                                       .seed = 23,
                                       .type = models[i].type};
    struct nb_image *image = NULL;
    uint64_t bytes;
    struct nb_error error = {""};
    int fd = i == 0 ? open(test_model_path(NULL), O_RDONLY | O_CLOEXEC)
                    : random_model_create_mixed(&shape, models[i].mix);
    int memfd = memfd_create("image", MFD_CLOEXEC);
    assert_true(fd >= 0 && memfd >= 0);
    if (test_pack(fd, memfd, NULL, &bytes, &error) < 0 ||
        nb_image_map(memfd, 0, &image, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
    close(memfd);
    return image;
}

// Of those that some dispatch can take.
static uint32_t count(const struct nb_device_model *m)
{
    bool used[UINT16_MAX + 1] = {false};
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->program.n; i++)
        for (uint32_t t = 0; t < NB_TIER_TILES; t++) {
            n += !used[m->program.dispatches[i].pipeline[t]];
            used[m->program.dispatches[i].pipeline[t]] = true;
        }
    return n;
}

// For steps of one row: what is named is what counts, and making it would take long.
static uint32_t pipelines(struct nb_device *d, const struct nb_image *image, int precision,
                          enum nb_kv_type kv_type)
{
    const struct nb_device_model_options options = {.kv_blocks = 1, .max_rows = 1};
    struct nb_device_model *m = NULL;
    struct nb_plan *plan = NULL;
    struct nb_error error = {""};
    const struct nb_plan_options how = {.precision = (enum nb_precision)precision,
                                        .kv_type = kv_type};
    if (nb_plan_create(image, &how, &plan, &error) < 0 ||
        d->ops->model_open(d, plan, &options, &m, &error) < 0)
        fail_msg("%s", error.text);
    uint32_t n = m ? count(m) : 0;
    d->ops->model_close(m);
    nb_plan_destroy(plan);
    return n;
}

static void few_pipelines(void **state)
{
    struct nb_device *d[N_TIERS] = {NULL};
    for (size_t t = 0; t < N_TIERS; t++) {
        const struct nb_device_options how = {.tier = tiers[t], .tile = 1};
        struct nb_error error = {""};
        int rc = nb_device_create(device, &how, &d[t], &error);
        if (rc < 0)
            print_message("%s\n", error.text);
        assert_true(rc == 0 || (rc == -ENOTSUP && t > 0));
    }
    for (size_t i = 0; i < N_MODELS; i++) {
        struct nb_image *image = pack(i);
        for (size_t t = 0; t < N_TIERS; t++) {
            uint32_t n[NB_PRECISION_EXACT + 1];
            for (int p = 0; d[t] && p <= NB_PRECISION_EXACT; p++) {
                n[p] = pipelines(d[t], image, p, NB_KV_F16);
                assert_in_range(n[p], 1, NB_VULKAN_PIPELINES);
            }
            if (d[t])
                assert_in_range(pipelines(d[t], image, NB_PRECISION_BALANCED, NB_KV_Q8_0), 1,
                                NB_VULKAN_PIPELINES);
            if (d[t])
                print_message("%s, %s: %u fast, %u balanced, %u exact\n", models[i].name, tiers[t],
                              n[NB_PRECISION_FAST], n[NB_PRECISION_BALANCED],
                              n[NB_PRECISION_EXACT]);
        }
        nb_image_unmap(image);
    }
    for (size_t t = 0; t < N_TIERS; t++)
        if (d[t])
            d[t]->ops->destroy(d[t]);
}

static int find_device(void **state)
{
    device = test_cpu_driver();
    return device ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(few_pipelines)};
    return cmocka_run_group_tests(tests, find_device, NULL);
}
