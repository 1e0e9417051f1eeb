// Times the products of float matrices beside the processor's peak of the same instruction.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "grad/gemm.h"
#include "grad/gemm_kernels.h"
#include "tests/kernels/check.h"
#include "tests/kernels/peak.h"

#define RUNS 5

// Seconds of all threads together.
static double process_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

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

// The peak is taken before each run: the machine's speed drifts.
static void time_product(struct nb_team *team, const struct nb_gemm_product *p,
                         double (*peak)(void), const char *name)
{
    double flops = 2.0 * p->m * p->n * p->k, rate[RUNS], share[RUNS];
    uint32_t repeats = 1 + (uint32_t)(1e9 / flops);
    nb_gemm_run(team, p);
    for (int i = 0; i < RUNS; i++) {
        double most = peak(), start = process_seconds();
        for (uint32_t j = 0; j < repeats; j++)
            nb_gemm_run(team, p);
        rate[i] = flops * repeats / (process_seconds() - start);
        share[i] = rate[i] / most;
    }
    printf("%-44s %u threads %7.1f Gflop/s of processor time %5.1f%%\n", name, nb_team_size(team),
           1e-9 * median(rate, RUNS), 100 * median(share, RUNS));
}

static void bench_kernels(struct nb_team *team, const struct nb_gemm_kernels *k,
                          double (*peak)(void), const char *op, const char *filter)
{
    static const uint32_t shapes[][3] = {{512, 576, 1536}, {4096, 576, 576}, {2048, 49152, 576},
                                         {576, 576, 4096}, {64, 576, 576},   {8, 1536, 576}};
    if (!k || !peak)
        return;
    for (uint32_t i = 0; i < 4 * sizeof(shapes) / sizeof(*shapes); i++) {
        const uint32_t *dim = shapes[i / 4];
        struct nb_gemm_product p = {.kernels = k, .ta = i % 4 / 2, .tb = i % 2};
        char name[80];
        p.m = dim[0];
        p.n = dim[1];
        p.k = dim[2];
        snprintf(name, sizeof(name), "%s %s %ux%ux%u %s %s", op, k->name, p.m, p.n, p.k,
                 p.ta ? "A^T" : "A", p.tb ? "B^T" : "B");
        if (!strstr(name, filter))
            continue;
        size_t a = (size_t)p.m * p.k, b = (size_t)p.k * p.n;
        void *x = buffer(a * k->element), *y = buffer(b * k->element);
        memset(x, 0, a * k->element);
        memset(y, 0, b * k->element);
        p.a = x;
        p.b = y;
        p.lda = p.ta ? p.m : p.k;
        p.ldb = p.tb ? p.k : p.n;
        p.ldc = p.n;
        p.c = buffer((size_t)p.m * p.n * sizeof(float));
        time_product(team, &p, peak, name);
        free(x);
        free(y);
        free(p.c);
    }
}

static void bench_level(enum nb_isa isa, double (*floats)(void), double (*pairs)(void),
                        const char *filter)
{
    for (uint32_t threads = 1; threads <= 2; threads++) {
        struct nb_team *team = NULL;
        if (nb_team_create(threads, &team) < 0)
            abort();
        bench_kernels(team, nb_sgemm_of(isa), floats, "sgemm", filter);
        bench_kernels(team, nb_bgemm_of(isa, false), floats, "bgemm", filter);
        bench_kernels(team, nb_bgemm_of(isa, true), pairs, "bgemm", filter);
        nb_team_destroy(team);
    }
}

void bench_sgemm(const char *filter)
{
    if (nb_sgemm_of(NB_ISA_AVX2))
        printf("one thread's peak: %.1f Gflop/s of AVX2 fma\n", 1e-9 * peak_fma_avx2());
    if (nb_sgemm_of(NB_ISA_AVX512))
        printf("one thread's peak: %.1f Gflop/s of AVX-512 fma\n", 1e-9 * peak_fma_avx512());
    if (nb_bgemm_of(NB_ISA_AVX512, true))
        printf("one thread's peak: %.1f Gflop/s of vdpbf16ps\n", 1e-9 * peak_bf16());
    bench_level(NB_ISA_AVX2, peak_fma_avx2, NULL, filter);
    bench_level(NB_ISA_AVX512, peak_fma_avx512, peak_bf16, filter);
}
