// ops-check [--device NAME] [--tier TIER] [--types A,B] [--ops A,B] [--brief] [--tiles]
// [--every] [--repeat=N] [--bench[=FILTER]]: every op of a device against the scalar reference, for
// every weight type (or those named), on odd shapes, extreme codes and inputs of every mood (brief:
// without the limits and the long contexts; every: each type in each way, of which there are some);
// or products with each tile of the tier; or the same steps N times, for equal bits; or their
// speed. Without a name: Mesa's CPU driver, and without a tier the CPU device before it.
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/device.h"
#include "engine/cpu/isa.h"
#include "engine/vulkan/device.h"
#include "tensor/fail.h"
#include "tests/kernels/check.h"
#include "tests/kernels/report.h"
#include "tests/support/cpu_driver.h"
#include "tests/vulkan/ops.h"

#define TIMEOUT_MS 600000 // a driver may compile for long at a shader's first use

extern const struct nb_kernels nb_kernels_unfused;

// Every tile of tokens, whole and broken.
static const struct op_script products = {10, {{1}, {2}, {3}, {4}, {5}, {7}, {8}, {9}, {16}, {17}}};
// What a forced tile has room for, more, and less.
static const struct op_script wholes = {6, {{1}, {2}, {8}, {17}, {32}, {64}}};
static const struct op_script few = {3, {{1}, {3}, {17}}};
// Blocks that begin and end within steps, sequences beside each other, single rows after many.
static const struct op_script sequences = {
    8, {{40}, {5, 33}, {1, 1, 1}, {17, 0, 3}, {0, 1}, {33, 2, 29}, {1, 1, 1}, {3}}};
static const struct op_script long_context = {
    12, {{64}, {64}, {64}, {64}, {64}, {64}, {64}, {64}, {64}, {64}, {1, 1}, {2, 0, 1}}};

// --- Comparing

// Whether every sum has the reference's order and every rounding its place, so that bits must
// agree.
static bool exact, exact_inputs; // inputs: their quantization alone

// What may differ, as a share of the row's largest logit (docs/numerics.md): an input that lies
// between two codes may fall to the other side where a product's result is quantized again, and a
// key or a value between two halves. Two orders of one long sum differ by about the square root of
// its length.
static double tolerance(const struct op_case *c)
{
    // The CPU's routing is in double.
    if (c->experts)
        return exact ? 1e-5 : 5e-3;
    if (exact)
        return 0;
    if (c->middle == MIDDLE_NONE && !c->norm && exact_inputs)
        return 1e-5 * fmax(1.0, sqrt(c->embedding / 4096.0));
    const bool attends = c->middle == MIDDLE_ATTENTION || c->middle == MIDDLE_BOTH;
    return c->terms == 1 ? 5e-2 : attends ? 1e-2 : 5e-4;
}

void op_compare(const struct op_case *c, const struct nb_rows *rows, const float *want,
                const float *got, uint32_t vocab)
{
    const double share = tolerance(c);
    for (uint32_t i = 0; i < rows->n; i++, want += vocab, got += vocab) {
        float *close = buffer(vocab * sizeof(*close)), most = 0;
        for (uint32_t j = 0; j < vocab; j++)
            most = fmaxf(most, fabsf(want[j]));
        for (uint32_t j = 0; j < vocab; j++)
            close[j] = fabs((double)got[j] - (double)want[j]) <= share * most ? want[j] : got[j];
        check_floats(want, share > 0 ? close : got, vocab,
                     "%s %s terms %u, %u wide: row %u of %u (%s), position %u", c->what,
                     nb_type_name(c->type), c->terms, c->embedding, i, rows->n,
                     c->sane ? "sane" : op_token_mood((uint32_t)rows->token[i]), rows->position[i]);
        free(close);
    }
}

void op_check_steps(const struct op_machine *want, const struct op_machine *got,
                    const struct op_case *c, const struct op_script *script, struct op_batch *b)
{
    uint32_t at[OP_SEQUENCES] = {0};
    for (uint32_t i = 0; i < script->n; i++) {
        if (c->middle != MIDDLE_ATTENTION)
            memset(at, 0, sizeof(at));
        op_batch_fill(b, script->rows[i], at);
        uint32_t width;
        const size_t bytes = OP_ROWS * sizeof(float);
        float *first = buffer(bytes * (c->vocab + c->embedding));
        const float *result = op_result(want, c, &b->rows, &width);
        memcpy(first, result, b->rows.n * (size_t)width * sizeof(*first));
        op_compare(c, &b->rows, first, op_result(got, c, &b->rows, &width), width);
        free(first);
    }
}

void op_check_case(struct nb_device *reference, struct nb_device *device, const struct op_case *c,
                   const struct op_script *script)
{
    struct op_plan p;
    struct op_machine want, got;
    struct op_batch b;
    // Its numbers do not follow from what was checked before.
    random_begin((uint64_t)c->type << 40 ^ (uint64_t)c->type2 << 32 ^ c->terms << 28 ^
                 c->embedding << 16 ^ c->k_dim << 8 ^ c->heads);
    op_plan_init(&p, c);
    op_open(&want, reference, &p);
    op_open(&got, device, &p);
    op_batch_init(&b);
    op_check_steps(&want, &got, c, script, &b);
    reference->ops->model_close(want.model);
    device->ops->model_close(got.model);
    op_plan_finish(&p);
}

// --- The table

static const char *only_types, *only_ops; // with commas between, or NULL
static bool brief, every;

// Whether a list leaves the name in.
static bool has_name(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *at = list; at; at = strchr(at, ','), at += at != NULL)
        if (!strncmp(at, name, n) && (at[n] == ',' || !at[n]))
            return true;
    return !list;
}

bool op_is_wanted(uint32_t type)
{
    return has_name(only_types, nb_type_name(type));
}

static uint32_t width_of(uint32_t type, uint32_t i)
{
    static const uint32_t small[] = {160, 96, 576, 32};
    uint32_t block = nb_type_info(type)->block;
    if (block == 1)
        return small[i % 4] + i % 3 * 7; // of floats any number
    return block == 256 ? 256 * (1 + i % 2) : (small[i % 4] + block - 1) / block * block;
}

static void check_embed(struct nb_device *r, struct nb_device *d)
{
    for (uint32_t i = 0; i < check_n_types; i++)
        if (op_is_wanted(check_types[i]))
            op_check_case(r, d,
                          &(struct op_case){.what = "embedding",
                                            .type = check_types[i],
                                            .terms = 1,
                                            .embeds = true,
                                            .embedding = width_of(check_types[i], i)},
                          &few);
}

// GEMV and GEMM that store, of every type. A driver on a CPU takes most of its time to compile
// them: each type has one term or two, and with `every` both.
static void check_product(struct nb_device *r, struct nb_device *d)
{
    for (uint32_t i = 0; i < 2 * check_n_types; i++) {
        uint32_t type = check_types[i / 2];
        if (!op_is_wanted(type) || (!every && i % 2 != i / 2 % 2))
            continue;
        op_check_case(r, d,
                      &(struct op_case){.what = "product",
                                        .type = type,
                                        .terms = 1 + i % 2,
                                        .norm = i % 3 == 0,
                                        .bias = i % 5 == 0,
                                        .embedding = width_of(type, i + i / 2),
                                        .vocab = 16 * 6 + 5},
                      &products);
    }
}

static void check_ffn(struct nb_device *r, struct nb_device *d)
{
    for (uint32_t i = 0; i < check_n_types; i++) {
        uint32_t type = check_types[i], block = nb_type_info(type)->block;
        if (only_types ? !op_is_wanted(type) : !every && i % 4 != 1)
            continue;
        op_check_case(
            r, d,
            &(struct op_case){.what = "gate, up and down",
                              .middle = MIDDLE_FFN,
                              .type = type,
                              .type2 = i % 4 || block > 32 ? type : (uint32_t)NB_TYPE_Q5_1,
                              .terms = 1 + i % 2,
                              .norm = true,
                              .bias = i % 3 == 0,
                              .sane = true,
                              .embedding = width_of(type, i),
                              .ffn = width_of(type, i + 1)},
            &few);
    }
}

static void check_attend(struct nb_device *r, struct nb_device *d)
{
    static const struct {
        uint32_t heads, kv_heads, k_dim, v_dim, rope_dims, window;
        float softcap;
        bool neox, far;
        enum nb_kv_type kv_type;
    } shapes[] = {
        {3, 1, 64, 64, 64, 0, 0, false, false, NB_KV_F16},
        {4, 4, 32, 32, 32, 0, 0, true, true, NB_KV_F16},
        {6, 2, 80, 96, 40, 0, 0, true, false, NB_KV_F16},
        {2, 1, 128, 128, 128, 33, 0, false, true, NB_KV_F16},
        {4, 2, 48, 32, 24, 1, 20, false, false, NB_KV_F16},
        {8, 1, 24, 64, 2, 100, 5, true, true, NB_KV_F16},
        {3, 1, 64, 64, 64, 0, 0, false, true, NB_KV_Q8_0},
        {4, 2, 96, 32, 80, 33, 5, true, false, NB_KV_Q8_0},
        {2, 2, 32, 128, 22, 0, 0, false, false, NB_KV_Q8_0},
        {4, 2, 18, 18, 18, 0, 0, false, false, NB_KV_F16},
        {6, 2, 26, 2, 6, 33, 5, true, false, NB_KV_F16},
        {3, 3, 48, 68, 24, 0, 0, true, true, NB_KV_F16},
    };
    for (uint32_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i += brief ? 6 : 1)
        op_check_case(
            r, d,
            &(struct op_case){.what = "attention",
                              .middle = MIDDLE_ATTENTION,
                              // Values of no whole blocks of 32 are read by floats alone.
                              .type = i % 3 && shapes[i].v_dim % 32 == 0 ? (uint32_t)NB_TYPE_Q8_0
                                                                         : (uint32_t)NB_TYPE_F16,
                              .type2 = i % 2 ? (uint32_t)NB_TYPE_Q4_1 : (uint32_t)NB_TYPE_F16,
                              .terms = 1 + i % 2,
                              .norm = true,
                              .bias = i == 2,
                              .sane = true,
                              .embedding = 64,
                              .heads = shapes[i].heads,
                              .kv_heads = shapes[i].kv_heads,
                              .k_dim = shapes[i].k_dim,
                              .v_dim = shapes[i].v_dim,
                              .rope_dims = shapes[i].rope_dims,
                              .neox = shapes[i].neox,
                              .window = shapes[i].window,
                              .softcap = shapes[i].softcap,
                              .kv_type = shapes[i].kv_type,
                              .context = 1024},
            shapes[i].far && !brief ? &long_context : &sequences);
}

static void check_dispatches(struct nb_device *reference, struct nb_device *d)
{
    if (d->ops == &nb_vulkan_ops && ((struct nb_vulkan_device *)d)->tier->rotates)
        op_check_dispatches(d);
}

static const struct {
    const char *name;
    void (*run)(struct nb_device *reference, struct nb_device *device);
} groups[] = {
    {"embedding", check_embed},
    {"gemm", check_product},
    {"ffn", check_ffn},
    {"attention", check_attend},
    {"norms", op_check_norms},
    {"activations", op_check_activations},
    {"heads", op_check_heads},
    {"texts", op_check_texts},
    {"layers", op_check_layers},
    {"experts", op_check_experts},
    {"inputs", op_check_inputs},
    {"adapters", op_check_adapters},
    {"dispatches", check_dispatches},
    {"limits", op_check_limits},
};

// GEMMs of each type with one tile for all counts of rows, which few of them would take.
static void check_tile(struct nb_device *r, struct nb_device *d)
{
    for (uint32_t i = 0; i < check_n_types; i++)
        if (op_is_wanted(check_types[i]))
            op_check_case(r, d,
                          &(struct op_case){.what = "tile",
                                            .type = check_types[i],
                                            .terms = 1 + i % 2,
                                            .norm = i % 3 == 0,
                                            .embedding = width_of(check_types[i], 2 * i),
                                            .vocab = 16 * 6 + 5},
                          &wholes);
    for (uint32_t i = 0; i < check_n_types; i += 4)
        if (op_is_wanted(check_types[i]))
            op_check_case(r, d,
                          &(struct op_case){.what = "tile of experts",
                                            .middle = MIDDLE_EXPERTS,
                                            .type = check_types[i],
                                            .type2 = check_types[i],
                                            .terms = 2,
                                            .norm = true,
                                            .sane = true,
                                            .embedding = width_of(check_types[i], 2 * i),
                                            .ffn = width_of(check_types[i], i + 1),
                                            .experts = 5,
                                            .chosen = 2},
                          &wholes);
}

static void check_op(struct nb_device *reference, struct nb_device *d, const char *name,
                     void (*run)(struct nb_device *reference, struct nb_device *device))
{
    static struct nb_device_info info;
    d->ops->info(d, &info);
    size_t failed = check_report.failed;
    check_report.level = info.name;
    check_report.op = name;
    check_report.compared = 0;
    // A driver may crash in it, or never end.
    printf("%-8s %-10s %-10s", info.name, info.isa, name);
    fflush(stdout);
    run(reference, d);
    printf(" %10zu values  %s\n", check_report.compared,
           check_report.failed == failed ? "ok" : "FAILED");
    fflush(stdout);
}

static void check_device(struct nb_device *reference, struct nb_device *d)
{
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++)
        if (has_name(only_ops, groups[i].name) && (!brief || groups[i].run != op_check_limits))
            check_op(reference, d, groups[i].name, groups[i].run);
}

// --- Devices

// The CPU device on one thread with these kernels.
static struct nb_device *cpu_with(const struct nb_kernels *k)
{
    struct nb_device *d;
    if (nb_cpu_device_create(1, NULL, &d) < 0)
        abort();
    ((struct nb_cpu_device *)d)->kernels = k;
    return d;
}

static struct nb_device *create_as(const char *name, struct nb_device_options how)
{
    how.timeout_ms = TIMEOUT_MS;
    struct nb_device *d;
    struct nb_error error = {""};
    int rc = nb_device_create(name, &how, &d, &error);
    if (rc < 0) {
        printf("%s\n", error.text);
        exit(1);
    }
    return d;
}

static struct nb_device *create(const char *name, const char *tier, uint32_t tile)
{
    return create_as(name, (struct nb_device_options){.tier = tier, .tile = tile});
}

// What the driver's arithmetic is decides which reference it is held to, and how closely.
static const struct nb_kernels *reference_of(struct nb_device *d)
{
    struct driver_facts f = {0};
    exact = exact_inputs = true;
    if (d->ops != &nb_vulkan_ops)
        return &nb_kernels_scalar;
    if (driver_probe((struct nb_vulkan_device *)d, &f) < 0)
        exit(1);
    printf(
        "the driver's fma rounds %s, its division and denormals %s; a loop of %d ends after %u%s\n",
        f.fused     ? "once"
        : f.unfused ? "twice"
                    : "now once, now twice",
        f.ieee ? "are exact" : "are not", DRIVER_LOOP, f.loop,
        f.loop < DRIVER_LOOP ? ": this driver cuts loops" : "");
    // The other tiers add a row's sum in chunks.
    exact_inputs = f.ieee && (f.fused || f.unfused);
    exact = exact_inputs && !strcmp(((struct nb_vulkan_device *)d)->tier->name, "registers");
    return f.fused ? &nb_kernels_scalar : &nb_kernels_unfused;
}

static void check_layers_and_experts(struct nb_device *reference, struct nb_device *d)
{
    op_check_layers(reference, d);
    op_check_experts(reference, d);
}

// Weights in small buffers, and seen through windows that hold a part of an expert's matrix.
static void check_windows(struct nb_device *reference, const char *name, const char *tier)
{
    struct nb_device *d =
        create_as(name, (struct nb_device_options){
                            .tier = tier, .buffer_bytes = 40 << 10, .window_bytes = 14 << 10});
    check_op(reference, d, "windows", check_layers_and_experts);
    d->ops->destroy(d);
}

static void check_name(const char *name, const char *tier)
{
    struct nb_device *d = create(name, tier, 0);
    struct nb_device *reference = cpu_with(reference_of(d));
    check_device(reference, d);
    if (d->ops == &nb_vulkan_ops && has_name(only_ops, "windows"))
        check_windows(reference, name, tier);
    reference->ops->destroy(reference);
    d->ops->destroy(d);
}

static void check_tiles(const char *name, const char *tier)
{
    for (uint32_t tile = 1; tile <= NB_TIER_TILES; tile++) {
        struct nb_device *d = create(name, tier, tile);
        struct nb_device *reference = cpu_with(reference_of(d));
        char what[16];
        snprintf(what, sizeof(what), "tile %u", tile);
        check_op(reference, d, what, check_tile);
        reference->ops->destroy(reference);
        d->ops->destroy(d);
    }
}

static const char *cpu_driver(void)
{
    const char *name = test_cpu_driver();
    if (!name)
        exit(1);
    return name;
}

struct arguments {
    const char *name, *tier, *filter;
    uint32_t repeat;
    bool tiles;
};

static bool read_arguments(int argc, char **argv, struct arguments *ret)
{
    static const struct option longs[] = {
        {"device", required_argument, NULL, 'd'}, {"tier", required_argument, NULL, 't'},
        {"types", required_argument, NULL, 'y'},  {"ops", required_argument, NULL, 'o'},
        {"brief", no_argument, NULL, 'q'},        {"every", no_argument, NULL, 'e'},
        {"tiles", no_argument, NULL, 'l'},        {"repeat", required_argument, NULL, 'r'},
        {"bench", optional_argument, NULL, 'b'},  {0}};
    *ret = (struct arguments){0};
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) >= 0;) {
        if (c == '?')
            return false;
        const char *ignored, *text = optarg ? optarg : "";
        brief = brief || c == 'q';
        every = every || c == 'e';
        ret->tiles = ret->tiles || c == 'l';
        ret->repeat = c == 'r' ? (uint32_t)strtoul(text, NULL, 10) : ret->repeat;
        *(c == 'd'   ? &ret->name
          : c == 't' ? &ret->tier
          : c == 'y' ? &only_types
          : c == 'o' ? &only_ops
          : c == 'b' ? &ret->filter
                     : &ignored) = text;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct arguments a;
    if (!read_arguments(argc, argv, &a))
        return 2;
    if (!a.name && !a.tier && !a.filter && !a.tiles && !a.repeat) {
        check_name("cpu", NULL);
        check_name(cpu_driver(), NULL);
        return check_report.failed > 0;
    }
    const char *name = a.name ? a.name : cpu_driver();
    if (a.filter || a.repeat) {
        struct nb_device *d = create(name, a.tier, 0);
        if (a.repeat)
            op_repeat(d, a.repeat);
        else
            op_bench(d, a.filter);
        d->ops->destroy(d);
    } else if (a.tiles) {
        check_tiles(name, a.tier);
    } else {
        check_name(name, a.tier);
    }
    return check_report.failed > 0;
}
