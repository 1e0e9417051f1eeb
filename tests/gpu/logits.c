// A model's logits on the device beside the CPU's, within what docs/numerics.md allows; and the
// device's own promise: a row alone has the bits that it has among others. Of a small random model
// of every weight type, or of an image.
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/gpu/gpu.h"
#include "tests/gpu/model.h"
#include "tests/kernels/check.h"

#define PROMPT     35     // a tile of 32, and some
#define ALONE      3      // of these rows
#define TIMEOUT_MS 600000 // a driver may compile for long at a shader's first use

struct logits {
    float *row; // [PROMPT][vocab]
    uint32_t vocab, n;
};

struct how {
    const char *device, *tier;
    enum nb_precision precision;
    uint32_t chunk, prompt;
};

static void on_logits(void *user, uint32_t position, const float *logits, uint32_t vocab)
{
    struct logits *l = user;
    if (position >= PROMPT)
        gpu_fail("logits of a position that was not asked for");
    memcpy(l->row + (size_t)position * vocab, logits, vocab * sizeof(*logits));
    l->n++;
}

static void compute(int image, const struct how *how, struct logits *ret)
{
    const struct nb_request r = {.sampling = NB_SAMPLING_GREEDY, .ignore_eos = true, .score = true};
    const struct nb_device_options device = {.tier = how->tier, .timeout_ms = TIMEOUT_MS};
    const struct nb_model_options options = {
        .precision = how->precision, .max_rows = how->chunk, .max_context = 64};
    struct nb_model_info info;
    struct nb_sequence *s;
    struct test_model t;
    int32_t tokens[PROMPT];
    gpu_model_open(image, how->device, &device, &options, &t);
    nb_model_info(t.model, &info);
    nb_model_set_events(t.model, &(struct nb_model_events){.on_logits = on_logits});
    *ret = (struct logits){calloc((size_t)PROMPT * info.vocab, sizeof(float)), info.vocab, 0};
    gpu_check(ret->row ? 0 : -12, "memory");
    for (uint32_t i = 0; i < how->prompt; i++)
        tokens[i] = (int32_t)(nb_random(1, i) % info.vocab);
    gpu_check(nb_sequence_create(t.model, ret, &s), "a sequence");
    gpu_check(nb_sequence_set(s, 0, tokens, how->prompt), "its tokens");
    gpu_check(nb_sequence_start(s, &r), "its start");
    while (nb_model_has_work(t.model)) {
        int rc = nb_model_step(t.model, NULL);
        if (rc < 0)
            gpu_fail("a step on %s failed: %s", how->device,
                     t.device->ops->fault && t.device->ops->fault(t.device)
                         ? t.device->ops->fault(t.device)
                         : strerror(-rc));
    }
    if (ret->n != how->prompt)
        gpu_fail("logits of %u positions, not of %u", ret->n, how->prompt);
    nb_sequence_destroy(s);
    test_model_close(&t);
}

static uint32_t best_of(const float *row, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        best = row[i] > row[best] ? i : best;
    return best;
}

// The largest difference as a share of the largest logit; NaN where anything is. Rows with the same
// best token are counted.
static double difference(const struct logits *a, const struct logits *b, uint32_t *ret_same)
{
    double most = 0, size = 0;
    *ret_same = 0;
    for (uint32_t i = 0; i < a->n; i++) {
        const float *x = a->row + (size_t)i * a->vocab, *y = b->row + (size_t)i * a->vocab;
        *ret_same += best_of(x, a->vocab) == best_of(y, a->vocab);
        for (uint32_t j = 0; j < a->vocab; j++) {
            double d = fabs((double)x[j] - (double)y[j]);
            most = d > most || isnan(d) ? d : most;
            size = fmax(size, fabs((double)x[j]));
        }
    }
    return most / size;
}

static bool compare(int image, struct how how, const char *name, double bound)
{
    static const char *const precisions[] = {"fast", "balanced", "exact"};
    struct logits cpu, gpu, alone;
    uint32_t same;
    struct how cpus = how;
    cpus.device = "cpu";
    cpus.tier = NULL;
    compute(image, &cpus, &cpu);
    compute(image, &how, &gpu);
    struct how single = how;
    single.chunk = 1;
    single.prompt = ALONE;
    compute(image, &single, &alone);
    const bool invariant =
        memcmp(gpu.row, alone.row, (size_t)ALONE * gpu.vocab * sizeof(float)) == 0;
    const double d = difference(&cpu, &gpu, &same);
    gpu_row(json_pack("{s:s, s:s, s:s, s:s, s:f, s:f, s:i, s:i, s:b}", "row", "logits", "tier",
                      how.tier ? how.tier : "the device's", "model", name, "precision",
                      precisions[how.precision], "difference", isfinite(d) ? d : 1e30, "bound",
                      bound, "rows", PROMPT, "same_best", (int)same, "same_alone", (int)invariant));
    free(cpu.row);
    free(gpu.row);
    free(alone.row);
    if (!(d <= bound))
        fprintf(stderr, "FAIL logits: %s, %s: %g of the largest, more than %g\n", name,
                precisions[how.precision], d, bound);
    if (!invariant)
        fprintf(stderr, "FAIL invariance: %s, %s: a row alone has other bits than among others\n",
                name, precisions[how.precision]);
    return d <= bound && invariant;
}

static bool is_wanted(const char *name, const char *only)
{
    const size_t n = strlen(name);
    for (const char *at = only; at; at = strchr(at, ','), at += at != NULL)
        if (!strncmp(at, name, n) && (at[n] == ',' || !at[n]))
            return true;
    return !only;
}

// The bound is the one of tests/vulkan/test_vulkan.c, whose models these are.
static bool compare_types(struct how how, const char *only)
{
    bool fine = true;
    how.precision = NB_PRECISION_EXACT;
    for (uint32_t i = 0; i < check_n_types; i++) {
        const char *name = nb_type_name(check_types[i]);
        if (!is_wanted(name, only))
            continue;
        int image = gpu_image_random((int)check_types[i]);
        fine = compare(image, how, name, 5e-4) && fine;
        close(image);
    }
    return fine;
}

// Many layers of random weights carry a difference on: what is wrong is far above these bounds.
static bool compare_image(struct how how, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    int image = gpu_image(path);
    how.precision = NB_PRECISION_EXACT;
    bool fine = compare(image, how, name, 5e-3);
    how.precision = NB_PRECISION_FAST;
    return compare(image, how, name, 5e-2) && fine;
}

int gpu_logits(int argc, char **argv)
{
    static const struct option longs[] = {{"device", required_argument, NULL, 'd'},
                                          {"tier", required_argument, NULL, 't'},
                                          {"types", required_argument, NULL, 'y'},
                                          {0}};
    struct how how = {.device = "vulkan0", .prompt = PROMPT};
    const char *types = NULL, *ignored;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) >= 0;)
        *(c == 't' ? &how.tier : c == 'd' ? &how.device : c == 'y' ? &types : &ignored) = optarg;
    (void)gpu_index(how.device);
    bool fine = optind < argc ? compare_image(how, argv[optind]) : compare_types(how, types);
    return fine ? 0 : 1;
}
