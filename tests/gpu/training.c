// The float engine on the device (grad/vulkan/): the gradients in every tensor of small random
// models beside the CPU's, equal bits when it is done again; and how fast a layer of full width
// goes forward and back, with all that crosses to the host.
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/plan.h"
#include "grad/grad.h"
#include "tensor/image.h"
#include "tests/gpu/gpu.h"
#include "tests/gpu/model.h"
#include "tests/support/apart.h"
#include "tests/support/random_model.h"

#define ROWS       105 // of two sequences
#define LONGER     70
#define BOUND      1e-4 // of a tensor's largest, or of SMALL times the model's
#define SMALL      0.03
#define TIMEOUT_MS 600000 // a driver may compile for long at a shader's first use
#define RUNS       3

struct subject {
    struct nb_image *image;
    struct nb_plan *plan;
    struct nb_team *team;
};

// All tensors' gradients behind x_L, which is [ROWS][embedding].
struct found {
    float *numbers;
    size_t n;
};

static void open_subject(int fd, struct subject *s)
{
    const struct nb_plan_options options = {.precision = NB_PRECISION_EXACT};
    struct nb_error error = {""};
    if (nb_image_map(fd, 0, &s->image, &error) < 0 ||
        nb_plan_create(s->image, &options, &s->plan, &error) < 0)
        gpu_fail("%s", error.text);
    close(fd);
}

static struct nb_grad *open_engine(const struct subject *s, struct nb_device *device, uint32_t rows,
                                   uint32_t longest)
{
    struct nb_error error = {""};
    struct nb_grad *g;
    int32_t *token = calloc(rows, sizeof(*token));
    struct nb_grad_sequence *sequence = calloc(rows, sizeof(*sequence));
    uint32_t n = 0;
    gpu_check(token && sequence ? 0 : -12, "memory");
    for (uint32_t i = 0; i < rows; i++)
        token[i] = (int32_t)(i * 7 % s->plan->hp.vocab);
    for (uint32_t at = 0; at < rows; at += longest)
        sequence[n++] =
            (struct nb_grad_sequence){token + at, rows - at < longest ? rows - at : longest, 0};
    if (nb_grad_open_on(s->plan, s->team, device, &g, &error) < 0 ||
        nb_grad_batch(g, sequence, n, &error) < 0)
        gpu_fail("%s", error.text);
    free(token);
    free(sequence);
    return g;
}

static size_t size_of(const struct nb_grad_tensor *t)
{
    return (size_t)t->experts * t->rows * t->cols;
}

static void fill(float *d, size_t n)
{
    for (size_t i = 0; i < n; i++)
        d[i] = sinf((float)i);
}

// --- Beside the CPU

static struct found compute(const struct subject *s, struct nb_device *device)
{
    const uint32_t layers = s->plan->n_layers;
    const size_t x_n = (size_t)ROWS * s->plan->hp.embedding;
    struct nb_grad *g = open_engine(s, device, ROWS, LONGER);
    uint32_t n;
    struct nb_grad_tensor *t = nb_grad_tensors(g, &n);
    struct found f = {.n = x_n};
    for (uint32_t i = 0; i < n; i++)
        f.n += size_of(&t[i]);
    float *x = calloc((layers + 2) * x_n, sizeof(*x));
    f.numbers = calloc(f.n, sizeof(*f.numbers));
    gpu_check(x && f.numbers ? 0 : -12, "memory");
    float *d = x + (layers + 1) * x_n;
    for (uint32_t i = 0, at = 0; i < n; at += (uint32_t)size_of(&t[i++]))
        t[i].gradient = f.numbers + x_n + at;
    gpu_check(nb_grad_begin(g, x), "the begin");
    for (uint32_t i = 0; i < layers; i++)
        gpu_check(nb_grad_layer(g, i, x + i * x_n, NULL, x + (i + 1) * x_n), "a layer");
    float *vectors = calloc(x_n, sizeof(*vectors));
    gpu_check(vectors ? 0 : -12, "memory");
    gpu_check(nb_grad_head(g, ROWS, x + layers * x_n, vectors, NULL), "the head");
    memcpy(f.numbers, vectors, x_n * sizeof(*vectors));
    fill(vectors, x_n);
    gpu_check(nb_grad_head_back(g, ROWS, x + layers * x_n, vectors, NULL, d), "the head, back");
    for (uint32_t i = layers; i > 0; i--)
        gpu_check(nb_grad_layer_back(g, i - 1, x + (i - 1) * x_n, NULL, d, true), "a layer, back");
    gpu_check(nb_grad_begin_back(g, d), "the begin, back");
    free(vectors);
    free(x);
    nb_grad_close(g);
    return f;
}

static bool compare(const struct subject *s, struct nb_device *device, const char *name)
{
    const struct found cpu = compute(s, NULL), own = compute(s, device), again = compute(s, device);
    const size_t x_n = (size_t)ROWS * s->plan->hp.embedding;
    const double all = largest_of(cpu.numbers + x_n, cpu.n - x_n);
    const double results = apart_of(own.numbers, cpu.numbers, x_n, 0);
    const bool same = !memcmp(own.numbers, again.numbers, own.n * sizeof(*own.numbers));
    struct nb_grad *g = open_engine(s, NULL, ROWS, LONGER);
    uint32_t n, worst = 0;
    const struct nb_grad_tensor *t = nb_grad_tensors(g, &n);
    double most = 0;
    size_t at = x_n;
    for (uint32_t i = 0; i < n; at += size_of(&t[i++])) {
        const double one =
            apart_of(own.numbers + at, cpu.numbers + at, size_of(&t[i]), SMALL * all);
        worst = one > most ? i : worst;
        most = fmax(most, one);
    }
    const bool near = results <= BOUND && most <= BOUND;
    gpu_row(json_pack("{s:s, s:s, s:f, s:f, s:f, s:b}", "row", "training", "model", name, "results",
                      results, "gradients", most, "bound", BOUND, "same_again", (int)same));
    if (!near)
        fprintf(stderr, "FAIL training: %s: results %g of the largest off, gradients %g (%.*s)\n",
                name, results, most, (int)t[worst].name.len, t[worst].name.data);
    if (!same)
        fprintf(stderr, "FAIL training again: %s: other bits the second time\n", name);
    nb_grad_close(g);
    free(cpu.numbers);
    free(own.numbers);
    free(again.numbers);
    return near && same;
}

// --- Speed

static double least_of(double a, double b)
{
    return a > 0 && a < b ? a : b;
}

// Products of the layer's matrices: one forward, and of the way back one again and two gradients.
static void measure(const struct subject *s, struct nb_device *device, const char *name,
                    uint32_t rows, uint32_t length)
{
    struct nb_grad *g = open_engine(s, device, rows, length);
    const size_t x_n = (size_t)rows * s->plan->hp.embedding;
    float *x = calloc(3 * x_n, sizeof(*x));
    double forward = 0, back = 0, weights = 0;
    uint32_t n;
    struct nb_grad_tensor *t = nb_grad_tensors(g, &n);
    gpu_check(x ? 0 : -12, "memory");
    float *y = x + x_n, *d = y + x_n;
    for (uint32_t i = 0; i < n; i++) {
        const bool first = t[i].name.len > 6 && !memcmp(t[i].name.data, "blk.0.", 6);
        t[i].gradient = first ? calloc(size_of(&t[i]), sizeof(float)) : NULL;
        weights += first && t[i].matrix ? (double)size_of(&t[i]) : 0;
    }
    gpu_check(nb_grad_begin(g, x), "the begin");
    for (int run = 0; run <= RUNS; run++) { // the first compiles, and sends the weights
        const double start = gpu_now();
        gpu_check(nb_grad_layer(g, 0, x, NULL, y), "a layer");
        const double half = gpu_now();
        fill(d, x_n);
        const double begun = gpu_now();
        gpu_check(nb_grad_layer_back(g, 0, x, NULL, d, true), "a layer, back");
        forward = run ? least_of(forward, half - start) : 0;
        back = run ? least_of(back, gpu_now() - begun) : 0;
    }
    const double operations = 2 * weights * rows;
    gpu_row(json_pack("{s:s, s:s, s:i, s:f, s:f, s:f, s:f}", "row", "training speed", "model", name,
                      "rows", (int)rows, "forward_ms", 1e3 * forward, "back_ms", 1e3 * back,
                      "forward_tflops", 1e-12 * operations / forward, "back_tflops",
                      1e-12 * 3 * operations / back));
    for (uint32_t i = 0; i < n; i++)
        free(t[i].gradient);
    free(x);
    nb_grad_close(g);
}

// --- The part

static const struct {
    const char *name;
    struct random_model model;
    uint32_t rows, length; // of its speed; 0: it is compared
} models[] = {
    {"random F32", {1, 128, 160, 4, 2, 512, 3, NB_TYPE_F32}, 0, 0},
    {"random Q4_K", {3, 256, 256, 4, 4, 512, 5, NB_TYPE_Q4_K}, 0, 0},
    {"a layer of 768", {1, 768, 2048, 12, 12, 2048, 1, NB_TYPE_Q8_0}, 2048, 256},
    {"a layer of 2048", {1, 2048, 8192, 32, 8, 2048, 1, NB_TYPE_Q8_0}, 2048, 512},
    {"a layer of 4096", {1, 4096, 14336, 32, 8, 2048, 1, NB_TYPE_Q8_0}, 2048, 2048},
};

int gpu_training(int argc, char **argv)
{
    static const struct option options[] = {
        {"device", required_argument, NULL, 'd'}, {"brief", no_argument, NULL, 'b'}, {0}};
    const char *name = NULL;
    bool brief = false, fine = true;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == '?')
            return 2;
        brief |= c == 'b';
        name = c == 'd' ? optarg : name;
    }
    struct nb_error error = {""};
    struct nb_device *device;
    struct subject s;
    const struct nb_device_options how = {.timeout_ms = TIMEOUT_MS};
    if (!name || nb_device_create(name, &how, &device, &error) < 0)
        gpu_fail("%s", name ? error.text : "--device says which");
    gpu_check(nb_team_create(2, &s.team), "threads");
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
        if (brief && i)
            break;
        open_subject(gpu_image_of(&models[i].model), &s);
        if (models[i].rows)
            measure(&s, device, models[i].name, models[i].rows, models[i].length);
        else
            fine &= compare(&s, device, models[i].name);
        nb_plan_destroy(s.plan);
        nb_image_unmap(s.image);
    }
    nb_team_destroy(s.team);
    device->ops->destroy(device);
    return fine ? EXIT_SUCCESS : EXIT_FAILURE;
}
