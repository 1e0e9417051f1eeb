// The limit of pipelines for a model (engine/vulkan/program.h): the packaged model and random ones
// of the mixtures that quantizers write, in every tier that the device has and at every precision.
// And that models share them (engine/vulkan/store.h). On Mesa's CPU driver.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/vulkan/model.h"
#include "engine/vulkan/store.h"
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

static struct nb_plan *make_plan(const struct nb_image *image, int precision,
                                 enum nb_kv_type kv_type)
{
    struct nb_plan *plan = NULL;
    struct nb_error error = {""};
    const struct nb_plan_options how = {.precision = (enum nb_precision)precision,
                                        .kv_type = kv_type};
    if (nb_plan_create(image, &how, &plan, &error) < 0)
        fail_msg("%s", error.text);
    return plan;
}

// For steps of one row: what is named is what counts, and making it would take long.
static struct nb_device_model *open_model(struct nb_device *d, const struct nb_plan *plan)
{
    const struct nb_device_model_options options = {.kv_blocks = 1, .max_rows = 1};
    struct nb_device_model *m = NULL;
    struct nb_error error = {""};
    if (d->ops->model_open(d, plan, &options, &m, &error) < 0)
        fail_msg("%s", error.text);
    return m;
}

static uint32_t pipelines(struct nb_device *d, const struct nb_image *image, int precision,
                          enum nb_kv_type kv_type)
{
    struct nb_plan *plan = make_plan(image, precision, kv_type);
    struct nb_device_model *m = open_model(d, plan);
    uint32_t n = count(m);
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

static PFN_vkCreateComputePipelines really_create;
static PFN_vkDestroyPipeline really_destroy;
static atomic_uint made, destroyed;

static VkResult VKAPI_CALL create(VkDevice d, VkPipelineCache cache, uint32_t n,
                                  const VkComputePipelineCreateInfo *info,
                                  const VkAllocationCallbacks *memory, VkPipeline *ret)
{
    atomic_fetch_add(&made, n);
    return really_create(d, cache, n, info, memory, ret);
}

static void VKAPI_CALL destroy(VkDevice d, VkPipeline pipeline, const VkAllocationCallbacks *memory)
{
    atomic_fetch_add(&destroyed, 1);
    really_destroy(d, pipeline, memory);
}

static struct nb_device *counting_device(void)
{
    const struct nb_device_options how = {.tile = 1};
    struct nb_device *d = NULL;
    struct nb_error error = {""};
    if (nb_device_create(device, &how, &d, &error) < 0)
        fail_msg("%s", error.text);
    struct nb_vk *vk = &((struct nb_vulkan_device *)d)->vk;
    really_create = vk->CreateComputePipelines;
    really_destroy = vk->DestroyPipeline;
    vk->CreateComputePipelines = create;
    vk->DestroyPipeline = destroy;
    return d;
}

static void models_share_pipelines(void **state)
{
    struct nb_image *image = pack(1);
    struct nb_plan *plan = make_plan(image, NB_PRECISION_FAST, NB_KV_F16);
    struct nb_device *d = counting_device();
    made = destroyed = 0;
    struct nb_device_model *m[2] = {open_model(d, plan), NULL};
    const uint32_t once = made;
    assert_in_range(once, 1, NB_VULKAN_PIPELINES);
    m[1] = open_model(d, plan);
    assert_int_equal(made, once);
    d->ops->model_close(m[0]); // the other has them still
    assert_int_equal(destroyed, 0);
    d->ops->model_close(m[1]);
    m[0] = open_model(d, plan); // what nobody had was kept
    assert_int_equal(made, once);
    d->ops->model_close(m[0]);
    d->ops->destroy(d);
    assert_int_equal(destroyed, once);
    nb_plan_destroy(plan);
    nb_image_unmap(image);
}

// Not for ever: a device that models of all shapes come to and leave has what the last ones had.
static void the_last_are_kept(void **state)
{
    struct nb_device *base = counting_device();
    struct nb_vulkan_device *d = (struct nb_vulkan_device *)base;
    const uint32_t all = NB_VULKAN_IDLE + 8;
    made = destroyed = 0;
    for (uint32_t heads = 1; heads <= all + 1; heads++) {
        const uint32_t constants[CONST_TIER] = {[CONST_HEADS] = heads > all ? 9 : heads};
        VkPipeline pipeline;
        assert_int_equal(
            nb_vulkan_store_take(d, &d->tier->variant[NB_SHADER_ROPE][0], constants, &pipeline), 0);
        nb_vulkan_store_give(d, pipeline);
    }
    assert_int_equal(made, all);
    assert_int_equal(destroyed, 8); // those of 1 to 8 heads, which nobody had for longest
    base->ops->destroy(base);
    assert_int_equal(destroyed, all);
}

static int find_device(void **state)
{
    device = test_cpu_driver();
    return device ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(few_pipelines),
                                       cmocka_unit_test(models_share_pipelines),
                                       cmocka_unit_test(the_last_are_kept)};
    return cmocka_run_group_tests(tests, find_device, NULL);
}
