// Times the kernels, one thread, medians, beside the machine's measured peak. It asserts nothing.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/check.h"
#include "tests/kernels/clock.h"
#include "tests/kernels/peak.h"

#define RUNS     9
#define MEMORY   ((size_t)192 << 20) // beyond any cache
#define SHORTEST 0.004               // seconds of a run

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, size_t n)
{
    qsort(x, n, sizeof(*x), ascending);
    return x[n / 2];
}

static double time_calls(void (*call)(void *), void *data, uint32_t n)
{
    double start = now();
    for (uint32_t i = 0; i < n; i++)
        call(data);
    return (now() - start) / n;
}

double seconds(void (*call)(void *), void *data)
{
    double times[RUNS], once = time_calls(call, data, 2);
    uint32_t repeats = once < SHORTEST ? (uint32_t)(SHORTEST / (once + 1e-9)) + 1 : 1;
    for (int i = 0; i < RUNS; i++)
        times[i] = time_calls(call, data, repeats);
    return median(times, RUNS);
}

// Copies of one matrix, walked through so that no call finds its weights in cache where `cold`.
struct gemm_case {
    const struct nb_kernels *k;
    struct matrix m;
    struct nb_packed *copies;
    uint32_t n_copies, next;
    struct act a;
    float *y;
    void *scratch;
};

static void call_gemm(void *data)
{
    struct gemm_case *c = data;
    const struct nb_packed *w = &c->copies[c->next++ % c->n_copies];
    c->k->gemm(w, &c->a.a, 0, (w->rows + 15) / 16, NULL, false, c->y, w->rows, c->scratch);
}

struct peaks {
    double ops, bytes;
};

// Measured anew beside each figure, because the machine's speed drifts.
static struct peaks measure_peaks(const uint8_t *memory)
{
    double ops[RUNS], bytes[RUNS];
    for (size_t i = 0; i < RUNS; i++) {
        ops[i] = peak_avx2();
        bytes[i] = peak_read(memory + i * (MEMORY / RUNS / 64 * 64), MEMORY / RUNS);
    }
    return (struct peaks){median(ops, RUNS), median(bytes, RUNS)};
}

static double gemm_seconds(const struct nb_kernels *k, uint32_t type, uint32_t rows, uint32_t cols,
                           uint32_t n, uint32_t terms, uint8_t *memory, size_t *ret_bytes)
{
    struct gemm_case c = {.k = k,
                          .m = random_matrix(type, rows, cols, -1, false),
                          .a = random_act(n, cols, terms, SANE)};
    size_t bytes = nb_packed_bytes(&c.m.w);
    c.n_copies = n <= 16 ? (uint32_t)(MEMORY / bytes) : 1;
    c.copies = buffer(c.n_copies * sizeof(*c.copies));
    for (uint32_t i = 0; i < c.n_copies; i++) {
        c.copies[i] = c.m.w;
        c.copies[i].data = memcpy(memory + i * bytes, c.m.data, bytes);
    }
    c.y = buffer((size_t)n * rows * sizeof(float));
    c.scratch = buffer(k->gemm_scratch(&c.m.w, n));
    double t = seconds(call_gemm, &c);
    *ret_bytes = bytes;
    free(c.m.data);
    free(c.a.mem);
    free(c.copies);
    free(c.y);
    free(c.scratch);
    return t;
}

static void bench_gemm(const struct nb_kernels *k, const char *filter, uint8_t *memory)
{
    static const uint32_t shapes[][2] = {{576, 576},  {192, 576},   {1536, 576},
                                         {576, 1536}, {2048, 2048}, {49152, 576}};
    static const uint32_t tokens[] = {1, 2, 4, 8, 16, 64, 512};
    for (uint32_t i = 0; i < check_n_types * 6 * 2; i++) {
        uint32_t type = check_types[i / 12], terms = 1 + i % 2;
        uint32_t rows = shapes[i / 2 % 6][0], cols = shapes[i / 2 % 6][1];
        char name[80];
        snprintf(name, sizeof(name), "gemm %s %s %ux%u terms %u.", k->name, nb_type_name(type),
                 rows, cols, terms);
        if (cols % nb_type_info(type)->block || !strstr(name, filter))
            continue;
        for (uint32_t j = 0; j < 7; j++) {
            uint32_t n = tokens[j];
            size_t bytes;
            if (rows > 10000 && n > 16)
                continue;
            double t = gemm_seconds(k, type, rows, cols, n, terms, memory, &bytes);
            struct peaks peak = measure_peaks(memory);
            double ops = 2.0 * rows * cols * n * terms / t, read = (double)bytes / t;
            printf("%-42s n %3u %9.1f us %7.1f Gop/s %5.1f%% %6.2f GB/s %5.1f%%\n", name, n,
                   t * 1e6, ops * 1e-9, 100 * ops / peak.ops, read * 1e-9, 100 * read / peak.bytes);
        }
    }
}

struct row_case {
    const struct nb_kernels *k;
    struct act a;
    enum nb_activation kind;
    float *out;
};

static void call_quantize(void *data)
{
    struct row_case *c = data;
    c->k->quantize(&c->a.a, 0, c->a.a.n);
}

static void call_rmsnorm(void *data)
{
    struct row_case *c = data;
    for (size_t t = 0; t < c->a.a.n; t++)
        c->k->rmsnorm(c->a.a.x + t * c->a.a.k, c->a.a.x, 1e-5f, c->a.a.k, c->out + t * c->a.a.k);
}

static void call_layernorm(void *data)
{
    struct row_case *c = data;
    for (size_t t = 0; t < c->a.a.n; t++)
        c->k->layernorm(c->a.a.x + t * c->a.a.k, c->a.a.x, c->a.a.x, 1e-5f, c->a.a.k,
                        c->out + t * c->a.a.k);
}

static void call_activate(void *data)
{
    struct row_case *c = data;
    c->k->activate(c->kind, c->a.a.x, c->a.a.x, c->a.a.n * c->a.a.k, c->out);
}

// The scale keeps what is added to, over and over, from growing.
static void call_add(void *data)
{
    struct row_case *c = data;
    c->k->add(c->out, c->a.a.x, 1e-9f, c->a.a.n * c->a.a.k);
}

static void call_cap(void *data)
{
    struct row_case *c = data;
    c->k->cap(c->out, 1.0f, 30.0f, c->a.a.n * c->a.a.k);
}

static void call_rope(void *data)
{
    struct row_case *c = data;
    c->k->rope(c->out, c->a.a.n * c->a.a.k / 64, 64, 64, c->a.a.x, false);
}

static void bench_rows(const struct nb_kernels *k, const char *filter)
{
    static const struct {
        const char *name;
        void (*call)(void *);
        uint32_t terms;
        enum nb_activation kind;
    } ops[] = {{"quantize terms 1", call_quantize, .terms = 1},
               {"quantize terms 2", call_quantize, .terms = 2},
               {"rmsnorm", call_rmsnorm, .terms = 1},
               {"layernorm", call_layernorm, .terms = 1},
               {"silu", call_activate, .terms = 1, .kind = NB_ACT_SILU},
               {"gelu", call_activate, .terms = 1, .kind = NB_ACT_GELU},
               {"gelu_erf", call_activate, .terms = 1, .kind = NB_ACT_GELU_ERF},
               {"relu2", call_activate, .terms = 1, .kind = NB_ACT_RELU2},
               {"relu", call_activate, .terms = 1, .kind = NB_ACT_RELU},
               {"add", call_add, .terms = 1},
               {"cap", call_cap, .terms = 1},
               {"rope", call_rope, .terms = 1}};
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        char name[80];
        snprintf(name, sizeof(name), "%s %s", ops[i].name, k->name);
        if (!strstr(name, filter))
            continue;
        struct row_case c = {k, random_act(16, 576, ops[i].terms, SANE), ops[i].kind,
                             buffer(16 * 576 * 4)};
        memcpy(c.out, c.a.a.x, 16 * 576 * 4);
        printf("%-42s 16 x 576 %6.2f ns a value\n", name,
               seconds(ops[i].call, &c) * 1e9 / (16 * 576));
        free(c.a.mem);
        free(c.out);
    }
}

int bench(const struct nb_kernels *const *levels, size_t n, const char *filter)
{
    uint8_t *memory = buffer(MEMORY);
    setvbuf(stdout, NULL, _IOLBF, 0);
    memset(memory, 1, MEMORY);
    for (size_t l = 1; l < n; l++) {
        struct peaks peak = measure_peaks(memory);
        printf("one thread's peak: %.1f Gop/s of int8 products, %.2f GB/s read\n", peak.ops * 1e-9,
               peak.bytes * 1e-9);
        bench_gemm(levels[l], filter, memory);
        bench_rows(levels[l], filter);
        bench_attention(levels[l], filter);
    }
    bench_sgemm(filter);
    free(memory);
    return 0;
}
