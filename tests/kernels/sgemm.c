// Checks the products of float matrices (grad/gemm.h): each level against plain loops in the order
// that the header promises, and those against fp64.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grad/gemm.h"
#include "grad/gemm_kernels.h"
#include "tests/kernels/check.h"
#include "tests/kernels/report.h"
#include "tensor/layout.h"

#define MOST_THREADS 3
#define PAD_MARK     12345.0f

static struct nb_team *team[MOST_THREADS + 1];

// A product's operands: widened floats for the reference, and as the kernels take them.
struct operands {
    struct nb_gemm_product p;
    float *a, *b;
    uint16_t *a_halves, *b_halves; // NULL of floats
    float *c, *want;
    size_t c_floats;
};

// rows x ld elements with NaN behind each row's columns, where nobody may look.
static float *random_operand(uint32_t rows, uint32_t columns, size_t ld, enum mood mood)
{
    float *x = buffer(rows * ld * sizeof(float));
    fill_floats(x, rows * ld, mood);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = columns; j < ld; j++)
            x[i * ld + j] = NAN;
    return x;
}

// `flush`: denormal ones stay for the kernels and are zeros in x.
static uint16_t *to_bf16(float *x, size_t n, bool flush)
{
    uint16_t *h = buffer(n * sizeof(uint16_t));
    for (size_t i = 0; i < n; i++) {
        h[i] = nb_f32_to_bf16(x[i]);
        x[i] = nb_bf16_to_f32(h[i]);
        if (flush && fpclassify(x[i]) == FP_SUBNORMAL)
            x[i] = copysignf(0.0f, x[i]);
    }
    return h;
}

static float at(const float *x, size_t ld, bool turned, size_t i, size_t j)
{
    return turned ? x[j * ld + i] : x[i * ld + j];
}

// The promised order; `ret_exact` and `ret_size` are the sum in fp64 and that of the absolute
// values.
static float reference(const struct operands *o, size_t i, size_t j, double *ret_exact,
                       double *ret_size)
{
    const struct nb_gemm_product *p = &o->p;
    float c = o->c[i * p->ldc + j];
    double exact = p->beta == 0.0f ? 0.0 : (double)p->beta * c, size = fabs(exact);
    for (uint32_t k = 0; k == 0 || k < p->k; k += NB_GEMM_BLOCK) {
        float sum = 0.0f, beta = k ? 1.0f : p->beta;
        for (uint32_t l = k; l < p->k && l < k + NB_GEMM_BLOCK; l++) {
            float x = at(o->a, p->lda, p->ta, i, l), y = at(o->b, p->ldb, p->tb, l, j);
            sum = fmaf(x, y, sum);
            exact += (double)x * y;
            size += fabs((double)x * y);
        }
        c = beta == 0.0f ? sum : beta * c + sum;
    }
    *ret_exact = exact;
    *ret_size = size;
    return c;
}

static void compute_reference(struct operands *o, enum mood mood)
{
    const struct nb_gemm_product *p = &o->p;
    memcpy(o->want, o->c, o->c_floats * sizeof(float));
    for (size_t i = 0; i < p->m; i++)
        for (size_t j = 0; j < p->n; j++) {
            double exact, size;
            float *want = &o->want[i * p->ldc + j];
            *want = reference(o, i, j, &exact, &size);
            float nearest = within(size * (p->k + 2) * 0x1p-24 + 1e-30, exact, *want);
            if (mood == SANE || mood == EXTREME)
                check_floats(want, &nearest, 1, "plain loops beside fp64");
        }
}

static struct operands random_operands(const struct nb_gemm_kernels *kernels,
                                       const uint32_t dims[3], enum mood mood)
{
    static const float betas[] = {0.0f, 1.0f, -0.75f};
    struct operands o = {.p = {.kernels = kernels,
                               .ta = random_below(2),
                               .tb = random_below(2),
                               .m = dims[0],
                               .n = dims[1],
                               .k = dims[2],
                               .beta = betas[random_below(3)]}};
    struct nb_gemm_product *p = &o.p;
    uint32_t a_rows = p->ta ? p->k : p->m, a_columns = p->ta ? p->m : p->k;
    uint32_t b_rows = p->tb ? p->n : p->k, b_columns = p->tb ? p->k : p->n;
    p->lda = a_columns + random_below(4);
    p->ldb = b_columns + random_below(4);
    p->ldc = p->n + random_below(4);
    p->a = o.a = random_operand(a_rows, a_columns, p->lda, mood);
    p->b = o.b = random_operand(b_rows, b_columns, p->ldb, mood);
    if (kernels->element == sizeof(uint16_t)) {
        p->a = o.a_halves = to_bf16(o.a, a_rows * p->lda, kernels->step == 2);
        p->b = o.b_halves = to_bf16(o.b, b_rows * p->ldb, kernels->step == 2);
    }
    o.c_floats = p->m * p->ldc;
    o.c = random_operand(p->m, p->n, p->ldc, SANE);
    o.want = buffer(o.c_floats * sizeof(float));
    for (size_t i = 0; i < o.c_floats; i++)
        o.c[i] = i % p->ldc >= p->n ? PAD_MARK : p->beta == 0.0f ? NAN : o.c[i];
    return o;
}

static void free_operands(struct operands *o)
{
    free(o->a_halves);
    free(o->b_halves);
    free(o->a);
    free(o->b);
    free(o->c);
    free(o->want);
}

static void check_product(const struct nb_gemm_kernels *kernels, const uint32_t dims[3],
                          enum mood mood)
{
    struct operands o = random_operands(kernels, dims, mood);
    struct nb_gemm_product *p = &o.p;
    compute_reference(&o, mood);
    for (uint32_t threads = 1; threads <= MOST_THREADS; threads++) {
        struct nb_gemm_product q = *p;
        q.c = buffer(o.c_floats * sizeof(float));
        memcpy(q.c, o.c, o.c_floats * sizeof(float));
        nb_gemm_run(team[threads], &q);
        check_floats(o.want, q.c, o.c_floats, "%s %ux%ux%u%s%s lda %zu ldb %zu beta %g threads %u",
                     mood_name(mood), p->m, p->n, p->k, p->ta ? " A^T" : "", p->tb ? " B^T" : "",
                     p->lda, p->ldb, (double)p->beta, threads);
        free(q.c);
    }
    free_operands(&o);
}

// Denormal sums are zeros for vdpbf16ps.
static bool knows(const struct nb_gemm_kernels *k, enum mood mood)
{
    return k->step == 1 || mood != DENORMAL;
}

// Small shapes of all kinds; then those that cross the blocks of k, the tiles and the panels.
static void check_kernels(const struct nb_gemm_kernels *k, const char *op)
{
    static const uint32_t large[][3] = {{1, 130, 800}, {130, 1, 769}, {70, 210, 384}, {33, 50, 385},
                                        {200, 49, 17}, {3, 3200, 2},  {4200, 2, 3},   {5, 7, 0}};
    size_t failed = check_report.failed;
    if (!k)
        return;
    check_report.level = k->name;
    check_report.op = op;
    check_report.compared = 0;
    for (uint32_t i = 0; i < 150; i++) {
        uint32_t dims[3] = {1 + random_below(67), 1 + random_below(67), 1 + random_below(67)};
        enum mood mood = i % 3 ? SANE : (enum mood)random_below(MOODS);
        if (knows(k, mood))
            check_product(k, dims, mood);
    }
    for (size_t i = 0; i < 4 * sizeof(large) / sizeof(*large); i++)
        check_product(k, large[i / 4], i % 4 ? SANE : EXTREME);
    printf("%-14s %-10s %10zu values  %s\n", k->name, op, check_report.compared,
           check_report.failed == failed ? "ok" : "FAILED");
}

void check_sgemm(void)
{
    for (uint32_t i = 1; i <= MOST_THREADS; i++)
        if (nb_team_create(i, &team[i]) < 0)
            abort();
    for (int isa = NB_ISA_SCALAR; isa < NB_ISA_COUNT; isa++) {
        check_kernels(nb_sgemm_of((enum nb_isa)isa), "sgemm");
        check_kernels(nb_bgemm_of((enum nb_isa)isa, false), "bgemm");
        check_kernels(nb_bgemm_of((enum nb_isa)isa, true), "bgemm");
    }
    check_kernels(emulated_sgemm(), "sgemm");
    check_kernels(emulated_bgemm(), "bgemm");
    for (uint32_t i = 1; i <= MOST_THREADS; i++)
        nb_team_destroy(team[i]);
}
