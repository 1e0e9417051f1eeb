// The Vulkan device against the CPU device, logit by logit, on random models of every weight type
// and of odd shapes; and its own promise: a row's logits are the same bits however the rows were
// cut and whatever runs beside them. On Mesa's CPU driver, which a machine without a GPU has too;
// where it is missing this fails. Arguments: a tier of shaders to force, and the types to try
// there.
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

#include "engine/arch.h"
#include "tensor/fail.h"
#include "tensor/image.h"
#include "tensor/type.h"
#include "tests/support/cpu_driver.h"
#include "tests/support/model_file.h"
#include "tests/support/random_model.h"

#define MOST_ROWS 128
#define ADAPTERS  2

static const char *device;             // the driver's name among the devices
static struct nb_device_options usual; // the tier, and time for a driver that compiles
static char **only_types;              // or NULL

// A run: the logits of each position of a prompt and of what follows it greedily.
struct run {
    struct random_model model;
    enum nb_precision precision;
    uint32_t prompt, generate, chunk, others;
    enum nb_kv_type kv_type;
    // The sequence has an adapter and the others that, another or none; or the others alone.
    enum { ADAPTED_NONE, ADAPTED_ALL, ADAPTED_OTHERS } adapted;
};

struct logits {
    float row[MOST_ROWS][RANDOM_VOCAB];
    uint32_t n;
};

static void on_logits(void *user, uint32_t position, const float *logits, uint32_t vocab)
{
    struct logits *l = user;
    if (!l)
        return;
    assert_true(position < MOST_ROWS && vocab == RANDOM_VOCAB);
    memcpy(l->row[position], logits, sizeof(l->row[position]));
    l->n++;
}

static void start(struct nb_sequence *s, uint64_t seed, const struct run *r, bool score)
{
    int32_t tokens[MOST_ROWS];
    for (uint32_t i = 0; i < r->prompt; i++)
        tokens[i] = (int32_t)(nb_random(seed, i) % RANDOM_VOCAB);
    struct nb_request request = {.max_tokens = r->generate,
                                 .sampling = NB_SAMPLING_GREEDY,
                                 .ignore_eos = true,
                                 .score = score};
    assert_int_equal(nb_sequence_set(s, 0, tokens, r->prompt), 0);
    assert_int_equal(nb_sequence_start(s, &request), 0);
}

// Of different ranks and types.
static void open_adapters(struct nb_model *m, const struct run *r, struct nb_adapter *ret[ADAPTERS])
{
    static const uint32_t ranks[ADAPTERS] = {17, 3},
                          types_of[ADAPTERS] = {NB_TYPE_F32, NB_TYPE_F16};
    for (uint32_t i = 0; i < ADAPTERS; i++) {
        const int fd = random_adapter_create(&r->model, ranks[i], types_of[i], 20 + i);
        struct nb_error error = {""};
        struct nb_image *image;
        ret[i] = NULL;
        if (r->adapted && (test_image_map(fd, &image, &error) < 0 ||
                           nb_adapter_create(m, image, "style", 0.5, &ret[i], &error) < 0))
            fail_msg("%s", error.text);
        close(fd);
    }
}

static void compute(const char *name, const struct run *r, struct logits *ret)
{
    struct nb_model_options o = {
        .precision = r->precision, .max_rows = r->chunk, .max_context = MOST_ROWS};
    o.kv_type = r->kv_type;
    struct nb_sequence *s, *other[8];
    struct nb_adapter *adapters[ADAPTERS];
    struct test_model t;
    struct nb_error error = {""};
    int fd = random_model_create(&r->model);
    assert_true(fd >= 0 && r->others <= 8);
    test_device(name);
    if (test_model_open_fd(fd, 1, &o, &t, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
    nb_model_set_events(t.model, &(struct nb_model_events){.on_logits = on_logits});
    open_adapters(t.model, r, adapters);
    for (uint32_t i = 0; i < r->others; i++) {
        assert_int_equal(nb_sequence_create(t.model, NULL, &other[i]), 0);
        nb_sequence_adapt(other[i], i % (ADAPTERS + 1) ? adapters[i % (ADAPTERS + 1) - 1] : NULL);
        start(other[i], 100 + i, r, false);
    }
    ret->n = 0;
    assert_int_equal(nb_sequence_create(t.model, ret, &s), 0);
    nb_sequence_adapt(s, r->adapted == ADAPTED_ALL ? adapters[0] : NULL);
    start(s, 1, r, true);
    while (nb_model_has_work(t.model))
        assert_int_equal(nb_model_step(t.model, NULL), 1);
    assert_int_equal(ret->n, r->prompt + (r->generate ? r->generate - 1 : 0));
    nb_sequence_destroy(s);
    for (uint32_t i = 0; i < r->others; i++)
        nb_sequence_destroy(other[i]);
    for (uint32_t i = 0; i < ADAPTERS; i++)
        nb_adapter_destroy(adapters[i]);
    test_model_close(&t);
}

// The largest difference over the largest logit.
static double difference(const struct logits *a, const struct logits *b)
{
    double most = 0, size = 0;
    for (uint32_t i = 0; i < a->n; i++)
        for (uint32_t j = 0; j < RANDOM_VOCAB; j++) {
            double d = fabs((double)a->row[i][j] - (double)b->row[i][j]);
            most = d > most || isnan(d) ? d : most;
            size = fmax(size, fabs((double)a->row[i][j]));
        }
    return most / size;
}

// docs/numerics.md says what may differ. Two-term inputs hardly feel another rounding; with one
// term an input that lies between two codes may fall to the other side, as may a key or a value.
static void check_close(const struct run *r, const char *what)
{
    static struct logits cpu, gpu;
    compute("cpu", r, &cpu);
    compute(device, r, &gpu);
    assert_int_equal(cpu.n, gpu.n);
    double d = difference(&cpu, &gpu);
    double most = r->precision != NB_PRECISION_EXACT ? 5e-2 : r->kv_type == NB_KV_F16 ? 5e-4 : 5e-3;
    if (!(d <= most))
        fail_msg("%s: logits differ by %g of the largest, more than %g", what, d, most);
    print_message("%s: %.2g\n", what, d);
}

static const int types[] = {NB_TYPE_F32,  NB_TYPE_F16,  NB_TYPE_BF16,   NB_TYPE_Q4_0,
                            NB_TYPE_Q4_1, NB_TYPE_Q5_0, NB_TYPE_Q5_1,   NB_TYPE_Q8_0,
                            NB_TYPE_Q2_K, NB_TYPE_Q3_K, NB_TYPE_Q4_K,   NB_TYPE_Q5_K,
                            NB_TYPE_Q6_K, NB_TYPE_Q2_0, NB_TYPE_IQ4_NL, NB_TYPE_IQ4_XS};
#define N_TYPES (sizeof(types) / sizeof(types[0]))

static bool wanted(const char *type)
{
    char **t = only_types;
    while (t && *t && strcmp(*t, type) != 0)
        t++;
    return !t || *t;
}

// Wide batches against the CPU device, and one row at a time against them: a tier has a shader of
// its own for each.
static void types_of_a_tier(void **state)
{
    static struct logits wide, one;
    for (size_t i = 0; i < N_TYPES; i++) {
        const char *name = nb_type_name((uint32_t)types[i]);
        if (!wanted(name))
            continue;
        struct run r = {.model = {1, 256, 256, 4, 2, 512, 3, types[i]},
                        .precision = NB_PRECISION_EXACT,
                        .prompt = 35};
        check_close(&r, name);
        compute(device, &r, &wide);
        r.prompt = 3;
        r.chunk = 1;
        compute(device, &r, &one);
        if (memcmp(wide.row, one.row, one.n * sizeof(one.row[0])) != 0)
            fail_msg("%s: a row alone and among others has other bits", name);
    }
}

static void every_type(void **state)
{
    struct nb_device_options narrow = usual; // one tile: wider ones take longer to compile
    narrow.tile = 1;
    test_device_options(&narrow);
    for (size_t i = 0; i < N_TYPES; i++) {
        struct run r = {.model = {1, 256, 256, 4, 2, 512, 3, types[i]},
                        .precision = NB_PRECISION_EXACT,
                        .prompt = 3};
        check_close(&r, nb_type_name((uint32_t)types[i]));
    }
    test_device_options(&usual);
}

// Types mixed within an op, so that its matrices take dispatches of their own, and so many that
// most of them do with fewer tiles (engine/vulkan/limit.c).
static void mixed_types(void **state)
{
    static struct logits want, got;
    struct run r = {
        .model = {2, 256, 256, 4, 2, 512, 5, -1}, .precision = NB_PRECISION_EXACT, .prompt = 5};
    check_close(&r, "mixed types");
    compute(device, &r, &want);
    r.chunk = 2;
    compute(device, &r, &got);
    assert_memory_equal(want.row, got.row, want.n * sizeof(want.row[0]));
}

static void odd_shapes(void **state)
{
    static const struct random_model models[] = {
        {1, 96, 160, 3, 1, 512, 7, NB_TYPE_Q4_1},
        {1, 32, 32, 1, 1, 512, 8, NB_TYPE_Q8_0},
        {2, 192, 96, 6, 3, 512, 9, NB_TYPE_F32},
        // No multiples of 32: the inputs of matrices of floats, and the heads' values.
        {2, 72, 172, 4, 2, 512, 9, NB_TYPE_F32},
        {1, 72, 36, 2, 1, 512, 10, NB_TYPE_F16},
        {1, 130, 77, 13, 13, 512, 11, NB_TYPE_BF16},
    };
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++)
        for (int p = i ? NB_PRECISION_EXACT : NB_PRECISION_FAST; p <= NB_PRECISION_EXACT; p += 2) {
            struct run r = {.model = models[i],
                            .precision = (enum nb_precision)p,
                            .prompt = 70,
                            .generate = i ? 0 : 4};
            check_close(&r, p ? "odd shape, exact" : "odd shape, fast");
        }
}

static void alone_and_together(enum nb_kv_type kv_type)
{
    static struct logits want, got;
    struct run r = {.model = {2, 128, 192, 4, 2, 512, 11, NB_TYPE_Q4_1},
                    .precision = NB_PRECISION_BALANCED,
                    .prompt = 75,
                    .generate = 5,
                    .kv_type = kv_type};
    static const uint32_t chunks[] = {1, 3, 7, 20, 128}, companies[] = {0, 1, 3, 8, 5};
    compute(device, &r, &want);
    for (int i = 0; i < 5; i++) {
        r.chunk = chunks[i];
        r.others = companies[i];
        compute(device, &r, &got);
        assert_int_equal(want.n, got.n);
        if (memcmp(want.row, got.row, want.n * sizeof(want.row[0])) != 0)
            fail_msg("chunks of %u beside %u others give other bits", r.chunk, r.others);
    }
}

static void rows_alone_and_together(void **state)
{
    alone_and_together(NB_KV_F16);
}

// Keys and values as codes: close to the CPU's, and as invariant.
static void codes(void **state)
{
    struct run r = {.model = {2, 128, 192, 4, 2, 512, 11, NB_TYPE_Q4_1},
                    .precision = NB_PRECISION_EXACT,
                    .prompt = 75,
                    .kv_type = NB_KV_Q8_0};
    check_close(&r, "codes");
    alone_and_together(NB_KV_Q8_0);
}

// Dispatches of all steps of a prompt in chunks of `chunk` rows.
static uint64_t dispatches(uint32_t layers, uint32_t chunk, enum nb_kv_type kv_type)
{
    const struct random_model model = {layers, 128, 192, 4, 2, 512, 11, NB_TYPE_Q4_1};
    struct nb_model_options o = {.kv_type = kv_type, .max_rows = chunk, .max_context = MOST_ROWS};
    const struct run r = {.prompt = chunk};
    struct nb_op_time times[NB_SECTIONS];
    struct nb_sequence *s;
    struct test_model t;
    struct nb_error error = {""};
    int fd = random_model_create(&model);
    assert_true(fd >= 0);
    test_device(device);
    if (test_model_open_fd(fd, 1, &o, &t, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
    assert_int_equal(nb_sequence_create(t.model, NULL, &s), 0);
    start(s, 1, &r, true);
    while (nb_model_has_work(t.model))
        assert_int_equal(nb_model_step(t.model, NULL), 1);
    nb_model_times(t.model, times);
    nb_sequence_destroy(s);
    test_model_close(&t);
    uint64_t n = 0;
    for (int i = 0; i < NB_SECTIONS; i++)
        n += times[i].dispatches;
    return n;
}

// A dispatch is dear where threads sleep between two of them, and a GPU drains. Keys and values are
// written by products in the plainest tier, unless they are codes or floats.
static void dispatches_of_a_layer(void **state)
{
    for (enum nb_kv_type t = NB_KV_F16; t < NB_KV_TYPES; t++) {
        bool plain = !usual.tier || !strcmp(usual.tier, "registers");
        uint32_t turning = !plain || t != NB_KV_F16;
        assert_int_equal(dispatches(3, 1, t) - dispatches(2, 1, t), 5 + turning);
        assert_int_equal(dispatches(3, 16, t) - dispatches(2, 16, t), 8 + turning);
    }
}

// A model in many small buffers, each seen through smaller windows, and copied rather than
// imported: the same bits as in one piece.
static void weights_in_pieces(void **state)
{
    static struct logits want, got;
    static const struct nb_device_options how[] = {
        {.buffer_bytes = 80 << 10, .window_bytes = 32 << 10},
        {.buffer_bytes = 24 << 10},
        {.window_bytes = 18 << 10, .weights = NB_WEIGHTS_COPIED},
        {.buffer_bytes = 80 << 10, .weights = NB_WEIGHTS_COPIED},
        {.weights = NB_WEIGHTS_MEASURED},
    };
    struct run r = {
        .model = {2, 256, 256, 4, 2, 512, 13, -1}, .precision = NB_PRECISION_BALANCED, .prompt = 3};
    compute(device, &r, &want);
    for (size_t i = 0; i < sizeof(how) / sizeof(how[0]); i++) {
        struct nb_device_options one = how[i];
        one.tier = usual.tier;
        test_device_options(&one);
        compute(device, &r, &got);
        test_device_options(&usual);
        if (memcmp(want.row, got.row, want.n * sizeof(want.row[0])) != 0)
            fail_msg("weights cut in the way %zu give other bits", i);
    }
}

static const char *refuse(const char *name, const struct run *r, struct nb_device_options how,
                          int code, const char *why)
{
    static struct nb_error error;
    struct nb_model_options o = {
        .precision = r->precision, .max_rows = r->chunk, .max_context = MOST_ROWS};
    struct test_model t;
    int fd = random_model_create(&r->model);
    assert_true(fd >= 0);
    test_device(name);
    how.tier = usual.tier;
    test_device_options(&how);
    assert_int_equal(test_model_open_fd(fd, 1, &o, &t, &error), code);
    test_device_options(&usual);
    close(fd);
    print_message("%s\n", error.text);
    assert_non_null(strstr(error.text, why));
    return strstr(error.text, why);
}

// A model that does not fit is refused with what would: as many layers, and not one more.
static void memory_is_counted(void **state)
{
    struct run r = {.model = {6, 256, 512, 4, 2, 512, 19, NB_TYPE_Q8_0}, .prompt = 2, .chunk = 64};
    struct nb_device_options how = {
        .memory_bytes = 3500000, .tier = usual.tier, .weights = NB_WEIGHTS_COPIED};
    struct nb_model_options o = {.max_context = MOST_ROWS, .max_rows = 64};
    static struct logits got;
    struct nb_device_info before, open, after;
    struct test_model t;
    struct nb_error error = {""};
    char name[160];
    unsigned layers = 0;
    const char *advice = refuse(device, &r, how, -ENOMEM, "--gpu-layers");
    assert_int_equal(sscanf(advice, "--gpu-layers %u", &layers), 1);
    assert_true(layers > 0 && layers < 5);
    snprintf(name, sizeof(name), "cpu+%s:%u", device, layers + 1);
    refuse(name, &r, how, -ENOMEM, "left");
    snprintf(name, sizeof(name), "cpu+%s:%u", device, layers);
    test_device_options(&how);
    compute(name, &r, &got);
    test_device_options(&usual);

    struct nb_device *d;
    assert_int_equal(nb_device_create(device, &how, &d, &error), 0);
    d->ops->info(d, &before);
    d->ops->destroy(d);
    int fd = random_model_create(&r.model);
    how.memory_bytes = 0;
    test_device(device);
    test_device_options(&how);
    assert_int_equal(test_model_open_fd(fd, 1, &o, &t, &error), 0);
    test_device_options(&usual);
    close(fd);
    t.device->ops->info(t.device, &open);
    assert_true(open.memory_used > before.memory_used + 1000000);
    assert_true(open.memory_free < open.memory_bytes);
    assert_non_null(strstr(open.weights, "copied"));
    nb_model_close(t.model);
    t.device->ops->info(t.device, &after);
    assert_true(after.memory_used == before.memory_used);
    t.device->ops->destroy(t.device);
}

static void same_bits(const char *name, const struct run *r, const struct logits *want)
{
    static struct logits got;
    compute(name, r, &got);
    assert_int_equal(want->n, got.n);
    if (memcmp(want->row, got.row, want->n * sizeof(want->row[0])) != 0)
        fail_msg("%s: other bits", name);
}

// Layers on several devices: where a model is cut changes no bit, nor do chunks and company.
static void split_over_devices(void **state)
{
    static struct logits cpu, gpu, mixed;
    struct run r = {.model = {4, 128, 192, 4, 2, 512, 17, NB_TYPE_Q4_1},
                    .precision = NB_PRECISION_EXACT,
                    .prompt = 40,
                    .generate = 4};
    char name[160];
    compute("cpu", &r, &cpu);
    same_bits("cpu:1+cpu", &r, &cpu);
    same_bits("cpu:1+cpu:2+cpu:1", &r, &cpu);
    compute(device, &r, &gpu);
    snprintf(name, sizeof(name), "%s:1+%s", device, device);
    same_bits(name, &r, &gpu);
    snprintf(name, sizeof(name), "cpu+%s:2", device);
    compute(name, &r, &mixed);
    assert_true(difference(&cpu, &mixed) <= 5e-4 && difference(&gpu, &mixed) <= 5e-4);
    r.chunk = 20; // no multiple of a tile, nor a power of two
    r.others = 3;
    same_bits(name, &r, &mixed);
    r.chunk = r.others = 0;
    snprintf(name, sizeof(name), "%s:1+cpu:1+%s", device, device);
    compute(name, &r, &mixed);
    assert_true(difference(&cpu, &mixed) <= 5e-4 && difference(&gpu, &mixed) <= 5e-4);
    refuse("cpu+cpu:4", &r, (struct nb_device_options){.threads = 1}, -EINVAL, "leaves none");
    refuse("cpu:3+cpu:4", &r, (struct nb_device_options){.threads = 1}, -EINVAL, "runs 7 layers");
}

static void refusals(void **state)
{
    const struct nb_device_options none = {0};
    struct nb_device *d;
    struct nb_error error = {""};
    assert_int_equal(nb_device_create("vulkan9999", &none, &d, &error), -ENODEV);
    assert_non_null(strstr(error.text, "there is no device vulkan9999"));
    struct nb_device_options how = {.tier = "wings"};
    assert_int_equal(nb_device_create(device, &how, &d, &error), -EINVAL);
    assert_non_null(strstr(error.text, "there is no shader tier \"wings\""));
    how.tier = "matrices"; // which newer drivers have
    int rc = nb_device_create(device, &how, &d, &error);
    if (rc == 0)
        d->ops->destroy(d);
    else
        assert_true(rc == -ENOTSUP &&
                    strstr(error.text, "needs cooperative matrices of signed bytes"));
    struct run r = {.model = {1, 256, 256, 4, 2, 512, 13, NB_TYPE_F32}, .prompt = 1};
    refuse(device, &r, (struct nb_device_options){.window_bytes = 4 << 10}, -E2BIG,
           "16 rows of a matrix");
    static const char *const names[] = {"",         "gpu",       "vulkan",    "vulkan-1",
                                        "vulkan0x", "cpu0",      "cpu+",      "+cpu",
                                        "cpu+cpu",  "cpu:0+cpu", "cpu:x+cpu", "cpu:1+gpu"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        assert_int_equal(nb_device_create(names[i], &none, &d, &error), -EINVAL);
}

// Rows with adapters: close to the CPU's and apart from those without; as invariant as others,
// which do not feel them; and wherever the model is cut.
static void adapters(void **state)
{
    static struct logits plain, adapted;
    struct run r = {.model = {4, 128, 192, 4, 2, 512, 11, NB_TYPE_Q4_1},
                    .precision = NB_PRECISION_EXACT,
                    .prompt = 40,
                    .generate = 4};
    char name[160];
    compute(device, &r, &plain);
    r.others = 5;
    r.adapted = ADAPTED_OTHERS;
    same_bits(device, &r, &plain);
    r.others = 0;
    r.adapted = ADAPTED_ALL;
    check_close(&r, "adapted");
    compute(device, &r, &adapted);
    assert_true(difference(&plain, &adapted) > 0.1);
    r.chunk = 7;
    r.others = 8;
    same_bits(device, &r, &adapted);
    r.chunk = r.others = 0;
    snprintf(name, sizeof(name), "%s:1+%s", device, device);
    same_bits(name, &r, &adapted);
    snprintf(name, sizeof(name), "cpu:1+%s:2+cpu", device);
    compute(name, &r, &plain);
    assert_true(difference(&plain, &adapted) <= 5e-4);
    r.chunk = 20;
    r.others = 3;
    same_bits(name, &r, &plain);
}

// Factors take memory as long as the adapter is open, and one that does not fit is refused.
static void memory_of_adapters(void **state)
{
    const struct run r = {.model = {2, 256, 512, 4, 2, 512, 19, NB_TYPE_Q8_0}};
    const struct nb_model_options o = {.max_context = MOST_ROWS, .max_rows = 64};
    struct nb_device_options how = {.tier = usual.tier, .memory_bytes = 6000000};
    struct nb_device_info before, open, after;
    struct nb_adapter *adapters[3] = {NULL};
    struct test_model t;
    struct nb_error error = {""};
    const int fd = random_model_create(&r.model);
    test_device(device);
    test_device_options(&how);
    assert_int_equal(test_model_open_fd(fd, 1, &o, &t, &error), 0);
    test_device_options(&usual);
    close(fd);
    t.device->ops->info(t.device, &before);
    for (uint32_t i = 0; i < 3; i++) {
        const uint32_t rank = i < 2 ? 16 : 128;
        const int file = random_adapter_create(&r.model, rank, NB_TYPE_F32, i);
        struct nb_image *image;
        assert_int_equal(test_image_map(file, &image, &error), 0);
        const int rc = nb_adapter_create(t.model, image, "style", 1, &adapters[i], &error);
        assert_int_equal(rc, i < 2 ? 0 : -ENOMEM);
        if (rc < 0)
            nb_image_unmap(image);
        close(file);
    }
    print_message("%s\n", error.text);
    assert_non_null(strstr(error.text, "the adapter style: it needs "));
    assert_non_null(strstr(error.text, " MB left"));
    t.device->ops->info(t.device, &open);
    // Of each layer 4096 inputs and outputs, of the head 556, with rank 16 in floats.
    const uint64_t factors = (2 * 4096 + 556) * 16 * 4;
    assert_true(open.memory_used >= before.memory_used + 2 * factors);
    nb_adapter_destroy(adapters[0]);
    t.device->ops->info(t.device, &after);
    assert_true(after.memory_used <= open.memory_used - factors);
    nb_adapter_destroy(adapters[1]);
    t.device->ops->info(t.device, &after);
    assert_int_equal(after.memory_used, before.memory_used);
    test_model_close(&t);
}

static int find_device(void **state)
{
    device = test_cpu_driver();
    test_device_options(&usual);
    return device ? 0 : -1;
}

int main(int argc, char **argv)
{
    usual.tier = argc > 1 ? argv[1] : NULL;
    // A CPU's driver compiles a large shader at its first use, for as long as its cores are busy.
    usual.timeout_ms = 600000;
    only_types = argc > 2 ? argv + 2 : NULL;
    const struct CMUnitTest tier_tests[] = {cmocka_unit_test(types_of_a_tier),
                                            cmocka_unit_test(odd_shapes),
                                            cmocka_unit_test(rows_alone_and_together),
                                            cmocka_unit_test(codes),
                                            cmocka_unit_test(adapters),
                                            cmocka_unit_test(dispatches_of_a_layer)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refusals),
        cmocka_unit_test(every_type),
        cmocka_unit_test(mixed_types),
        cmocka_unit_test(odd_shapes),
        cmocka_unit_test(rows_alone_and_together),
        cmocka_unit_test(codes),
        cmocka_unit_test(dispatches_of_a_layer),
        cmocka_unit_test(weights_in_pieces),
        cmocka_unit_test(split_over_devices),
        cmocka_unit_test(memory_is_counted),
        cmocka_unit_test(adapters),
        cmocka_unit_test(memory_of_adapters),
    };
    if (usual.tier)
        return cmocka_run_group_tests(tier_tests, find_device, NULL);
    return cmocka_run_group_tests(tests, find_device, NULL);
}
