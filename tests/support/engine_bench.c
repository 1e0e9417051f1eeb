// engine-bench [--device cpu|vulkanN] [MODEL.gguf]: the engine's speed without service or channel,
// to see where the time goes: prefill, decode of several sequences together, and the share of each
// kind of op. A Vulkan device is tuned first, as it is in the service.
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/op.h"
#include "tensor/fail.h"
#include "tests/support/model_file.h"
#include "tests/support/sequences.h"

#define MAX_RUNS 99

struct bench {
    struct nb_model *model;
    uint32_t prompt, gen, runs;
    struct test_sequences sequences;
    double processor; // seconds of the last measurement
};

static double processor_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, uint32_t n)
{
    qsort(v, n, sizeof(*v), by_value);
    return v[n / 2];
}

static void check(int rc, const char *what)
{
    if (rc >= 0)
        return;
    fprintf(stderr, "engine-bench: %s: %s\n", what, strerror(-rc));
    exit(1);
}

static void print_ops(const struct bench *b, const struct nb_op_time *before, double tokens)
{
    struct nb_op_time times[NB_SECTIONS];
    nb_model_times(b->model, times);
    printf("   us/token: processor %.1f of", b->processor * 1e6 / tokens);
    for (int i = 0; i < NB_SECTIONS; i++)
        printf(" %s %.1f", nb_section_names[i],
               (double)(times[i].ns - before[i].ns) / 1e3 / tokens);
    printf("\n");
}

// As test_sequences_run; counts the processor's time too.
static double run(struct bench *b, uint32_t n, uint32_t prompt, uint32_t gen)
{
    double spent = processor_seconds(), took = test_sequences_run(&b->sequences, n, prompt, gen);
    check((int)took, "run");
    b->processor += processor_seconds() - spent;
    return took;
}

static void bench_prefill(struct bench *b)
{
    double v[MAX_RUNS] = {0};
    struct nb_op_time before[NB_SECTIONS];
    run(b, 1, b->prompt, 1);
    nb_model_times(b->model, before);
    b->processor = 0;
    for (uint32_t i = 0; i < b->runs; i++)
        v[i] = b->prompt / run(b, 1, b->prompt, 1);
    printf("prefill %u: %.1f t/s\n", b->prompt, median(v, b->runs));
    print_ops(b, before, (double)b->prompt * b->runs);
}

static void bench_decode(struct bench *b, uint32_t n)
{
    double v[MAX_RUNS] = {0};
    struct nb_op_time before[NB_SECTIONS];
    run(b, n, 16, 1);
    nb_model_times(b->model, before);
    b->processor = 0;
    for (uint32_t i = 0; i < b->runs; i++)
        v[i] = n * b->gen / run(b, n, 0, b->gen);
    printf("decode of %u: %.1f t/s in all\n", n, median(v, b->runs));
    print_ops(b, before, (double)n * b->gen * b->runs);
}

int main(int argc, char **argv)
{
    static const struct option longs[] = {
        {"device", required_argument, NULL, 'd'},  {"precision", required_argument, NULL, 'e'},
        {"threads", required_argument, NULL, 't'}, {"prompt", required_argument, NULL, 'p'},
        {"gen", required_argument, NULL, 'n'},     {"runs", required_argument, NULL, 'r'},
        {"clients", required_argument, NULL, 'c'}, {NULL, 0, NULL, 0}};
    struct bench b = {.prompt = 512, .gen = 64, .runs = 5};
    struct nb_model_options options = {.precision = NB_PRECISION_FAST};
    uint32_t threads = 0, clients = 16;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) >= 0;) {
        uint32_t value = optarg ? (uint32_t)strtoul(optarg, NULL, 10) : 0;
        if (c == 'e')
            check(test_precision(optarg, &options.precision), optarg);
        else if (c == 'd')
            test_device(optarg);
        else if (c == '?')
            return 2;
        *(c == 't'   ? &threads
          : c == 'p' ? &b.prompt
          : c == 'n' ? &b.gen
          : c == 'r' ? &b.runs
          : c == 'c' ? &clients
                     : &value) = value;
    }
    b.runs = b.runs < 1 ? 1 : b.runs < MAX_RUNS ? b.runs : MAX_RUNS;
    clients = clients < TEST_SEQUENCES ? clients : TEST_SEQUENCES;
    struct nb_error error;
    struct test_model t;
    test_device_options(&(struct nb_device_options){.warm = true});
    if (test_model_open(optind < argc ? argv[optind] : NULL, threads, &options, &t, &error) < 0) {
        fprintf(stderr, "engine-bench: %s\n", error.text);
        return 1;
    }
    int left;
    while ((left = nb_model_prepare(t.model)) > 0)
        ; // until the device is as a service's is, once it has been idle for a while
    check(left, "prepare");
    struct nb_device_info device;
    t.device->ops->info(t.device, &device);
    printf("%s, %s\n", device.description, device.isa);
    b.model = t.model;
    check(test_sequences_create(&b.sequences, b.model, clients), "sequences");
    if (b.prompt)
        bench_prefill(&b);
    for (uint32_t n = 1; n <= clients && b.gen; n *= 2)
        bench_decode(&b, n);
    test_sequences_destroy(&b.sequences);
    test_model_close(&t);
    return 0;
}
