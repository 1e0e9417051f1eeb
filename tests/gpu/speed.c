// A model's speed on the device, with the tiles that were chosen and with each tile for all
// products: decode of 1, 8 and 32 sequences as a share of the memory's speed, prefill as a share of
// the int8 peak, both measured beside it; decode at depth; and the time of each of its parts, with
// what it reads a second, cold: a step reads every layer's weights once. It asserts nothing, and
// ends with its seconds, but not before a first row of each kind.
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arch.h"
#include "engine/vulkan/tier.h"
#include "tensor/fail.h"
#include "tensor/image.h"
#include "tests/gpu/gpu.h"
#include "tests/gpu/model.h"
#include "tests/support/sequences.h"

#define RUNS      3
#define SEQUENCES 32
#define SHORT     16 // tokens of the context of a plain decode

struct sizes {
    uint32_t gen, depth[2], prompt[3], prompt_each; // 0: none
};
static const struct sizes usual = {32, {512, 4096}, {64, 512, 2048}, 128},
                          quick = {4, {64, 0}, {16, 0, 0}, 4};

struct speed {
    const char *device, *name; // of the model
    const struct sizes *sizes;
    double until;
    struct gpu_limit limit;
    uint64_t bytes[NB_SECTIONS]; // of a section's weights, all layers
    double layer_weights;        // numbers of all layers' matrices
    uint64_t kv_position;        // bytes of a position's keys and values
    char tile[16];
    uint32_t decoded, prefilled; // rows told
    struct test_model t;
    struct test_sequences s;
};

// --- What a model reads

// Which section a tensor's matrix belongs to, as GGUF names them.
static int section_of(const struct nb_str *name)
{
    static const struct {
        const char *name;
        enum nb_section section;
    } names[] = {
        {"attn_q", NB_SECTION_QKV},       {"attn_k", NB_SECTION_QKV},
        {"attn_v", NB_SECTION_QKV},       {"attn_output", NB_SECTION_OUT},
        {"ffn_gate", NB_SECTION_GATE_UP}, {"ffn_up", NB_SECTION_GATE_UP},
        {"ffn_down", NB_SECTION_DOWN},    {"output.", NB_SECTION_HEAD},
        {"token_embd", NB_SECTION_EMBED},
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (memmem(name->data, name->len, names[i].name, strlen(names[i].name)))
            return names[i].section;
    return -1;
}

static void read_sizes(struct speed *s, int image)
{
    struct nb_image *map;
    struct nb_error error = {""};
    if (nb_image_map(image, 0, &map, &error) < 0)
        gpu_fail("%s", error.text);
    for (uint32_t i = 0; i < nb_image_n_tensors(map); i++) {
        const struct nb_image_tensor *t = nb_image_tensor(map, i);
        int section = t->n_dims == 2 ? section_of(&t->name) : -1;
        if (section < 0)
            continue;
        s->bytes[section] += nb_packed_bytes(&t->packed);
        if (section != NB_SECTION_EMBED && section != NB_SECTION_HEAD)
            s->layer_weights += (double)t->packed.rows * t->packed.cols;
    }
    if (s->bytes[NB_SECTION_HEAD] == 0) // the embedding serves
        s->bytes[NB_SECTION_HEAD] = s->bytes[NB_SECTION_EMBED];
    s->bytes[NB_SECTION_EMBED] = 0; // a row of it
    nb_image_unmap(map);
}

static uint64_t step_bytes(const struct speed *s)
{
    uint64_t sum = 0;
    for (int i = 0; i < NB_SECTIONS; i++)
        sum += s->bytes[i];
    return sum;
}

// --- Measuring

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bool in_time(const struct speed *s)
{
    return gpu_now() < s->until;
}

// Median seconds; a failed step ends the program with the device's own sentence.
static double run(struct speed *s, uint32_t n, uint32_t prompt, uint32_t gen)
{
    double took = test_sequences_run(&s->s, n, prompt, gen);
    const char *fault =
        took < 0 && s->t.device->ops->fault ? s->t.device->ops->fault(s->t.device) : NULL;
    if (took < 0)
        gpu_fail("a step failed: %s", fault ? fault : strerror((int)-took));
    return took;
}

static double median(struct speed *s, uint32_t n, uint32_t prompt, uint32_t gen)
{
    double t[RUNS];
    int runs = 0;
    do
        t[runs++] = run(s, n, prompt, gen);
    while (runs < RUNS && in_time(s));
    qsort(t, (size_t)runs, sizeof(*t), by_value);
    return t[runs / 2];
}

static json_t *parts(const struct speed *s, const struct nb_op_time *from,
                     const struct nb_op_time *to, double steps)
{
    json_t *list = json_array();
    for (int i = 0; i < NB_SECTIONS && steps > 0; i++) {
        double us = (double)(to[i].ns - from[i].ns) * 1e-3 / steps;
        json_array_append_new(
            list, json_pack("{s:s, s:f, s:f, s:f}", "op", nb_section_names[i], "us", us,
                            "dispatches", (double)(to[i].dispatches - from[i].dispatches) / steps,
                            "gb_s", us > 0 ? (double)s->bytes[i] * 1e-3 / us : 0));
    }
    return list;
}

static double share(double of, double limit)
{
    return limit > 0 ? of / limit : 0;
}

static void decode(struct speed *s, uint32_t n, uint32_t depth)
{
    const uint32_t gen = s->sizes->gen;
    struct nb_op_time from[NB_SECTIONS], to[NB_SECTIONS];
    if (s->decoded && !in_time(s)) // one there always is
        return;
    s->decoded++;
    run(s, n, depth, 2); // the first makes what is recorded
    uint64_t before = nb_model_steps(s->t.model);
    nb_model_times(s->t.model, from);
    double t = median(s, n, 0, gen);
    nb_model_times(s->t.model, to);
    double steps = (double)(nb_model_steps(s->t.model) - before);
    double read = ((double)step_bytes(s) + (double)s->kv_position * n * (depth + gen)) * gen / t;
    gpu_row(json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:f, s:f, s:o}", "row", "decode",
                      "model", s->name, "tile", s->tile, "sequences", (int)n, "depth", (int)depth,
                      "tokens_s", (double)n * gen / t, "step_us", t / gen * 1e6, "gb_s",
                      read * 1e-9, "bandwidth_share", share(read, gpu_limit_bandwidth(&s->limit)),
                      "ops", parts(s, from, to, steps)));
}

static void prefill(struct speed *s, uint32_t n, uint32_t prompt)
{
    struct nb_op_time from[NB_SECTIONS], to[NB_SECTIONS];
    if ((s->prefilled && !in_time(s)) || prompt == 0)
        return;
    s->prefilled++;
    run(s, n, prompt, 1);
    uint64_t before = nb_model_steps(s->t.model);
    nb_model_times(s->t.model, from);
    double t = median(s, n, prompt, 1), ops = 2 * s->layer_weights * n * prompt / t;
    nb_model_times(s->t.model, to);
    double steps = (double)(nb_model_steps(s->t.model) - before);
    gpu_row(json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:f, s:f, s:o}", "row", "prefill",
                      "model", s->name, "tile", s->tile, "sequences", (int)n, "prompt", (int)prompt,
                      "tokens_s", (double)n * prompt / t, "tops", ops * 1e-12, "dot_share",
                      share(ops, s->limit.dot), "matrix_share", share(ops, s->limit.matrix), "ops",
                      parts(s, from, to, steps)));
}

static void measure(struct speed *s, bool deep)
{
    static const uint32_t several[] = {1, 8, SEQUENCES};
    for (size_t i = 0; i < 3; i++)
        decode(s, several[i], SHORT);
    for (size_t i = 0; i < 3; i++)
        prefill(s, 1, i == 0 || deep ? s->sizes->prompt[i] : 0);
    for (size_t i = 1; i < 3; i++)
        prefill(s, several[i], s->sizes->prompt_each);
    for (size_t i = 0; i < 2 && deep; i++)
        if (s->sizes->depth[i])
            decode(s, 1, s->sizes->depth[i]);
}

// `tile`: the n-th for all products, from 1 on; 0: as a service's are, once it has been idle.
static void measure_tile(struct speed *s, int image, uint32_t tile)
{
    const struct nb_device_options how = {.tile = tile, .warm = tile == 0, .timeout_ms = 600000};
    const struct nb_model_options options = {.precision = NB_PRECISION_FAST};
    struct nb_model_info info;
    int left = 1;
    snprintf(s->tile, sizeof(s->tile), tile ? "%u" : "chosen", tile);
    double began = gpu_now();
    gpu_model_open(image, s->device, &how, &options, &s->t);
    double opened = gpu_now();
    while (tile == 0 && left > 0 && in_time(s))
        gpu_check(left = nb_model_prepare(s->t.model), "preparing");
    nb_model_info(s->t.model, &info);
    s->kv_position = info.kv_block_bytes / 32;
    gpu_row(json_pack("{s:s, s:s, s:s, s:f, s:f, s:I}", "row", "opened", "model", s->name, "tile",
                      s->tile, "open_s", opened - began, "prepare_s", gpu_now() - opened,
                      "weight_mb", (json_int_t)(step_bytes(s) / 1000000)));
    gpu_check(test_sequences_create(&s->s, s->t.model, SEQUENCES), "sequences");
    measure(s, tile == 0);
    test_sequences_destroy(&s->s);
    test_model_close(&s->t);
}

int gpu_speed(int argc, char **argv)
{
    static const struct option longs[] = {{"device", required_argument, NULL, 'd'},
                                          {"seconds", required_argument, NULL, 's'},
                                          {"quick", no_argument, NULL, 'q'},
                                          {"model", required_argument, NULL, 'm'},
                                          {0}};
    struct speed s = {.device = "vulkan0", .sizes = &usual};
    const char *model = NULL;
    double seconds = 60, began = gpu_now();
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) >= 0;)
        if (c == 'd')
            s.device = optarg;
        else if (c == 's')
            seconds = strtod(optarg, NULL);
        else if (c == 'q')
            s.sizes = &quick;
        else if (c == 'm')
            model = optarg;
    if (optind + 1 != argc)
        gpu_fail("speed: name an image");
    const char *slash = strrchr(argv[optind], '/');
    s.name = slash ? slash + 1 : argv[optind];
    if (model)
        gpu_model_make(model, argv[optind]);
    gpu_row(
        json_pack("{s:s, s:s, s:f}", "row", "made", "model", s.name, "seconds", gpu_now() - began));
    // What a model takes to make is not the device's time, but it is the part's.
    s.until = began + seconds;
    int image = gpu_image(argv[optind]);
    gpu_limit_measure(gpu_index(s.device), false, &s.limit);
    gpu_row(json_pack("{s:s, s:s, s:f, s:f, s:f}", "row", "beside", "model", s.name,
                      "bandwidth_gb_s", gpu_limit_bandwidth(&s.limit) * 1e-9, "dot_tops",
                      s.limit.dot * 1e-12, "matrix_tops", s.limit.matrix * 1e-12));
    read_sizes(&s, image);
    for (uint32_t tile = 0; tile <= NB_TIER_TILES && (tile == 0 || in_time(&s)); tile++)
        measure_tile(&s, image, tile);
    if (!in_time(&s))
        gpu_row(json_pack("{s:s, s:s, s:s}", "row", "left out", "model", s.name, "why",
                          "no time was left for the rest"));
    return 0;
}
