// Sums of products of calibration rows: GEMMs of bands of the result, which join the fp64 sums.
#include "quant/hessian.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "grad/gemm.h"
#include "grad/loops.h"

#define BAND  256  // rows of the result
#define SOME  256  // columns that are subtracted at once
#define CHUNK 1536 // rows summed in fp32 before they join the fp64 sums

struct narrowing {
    const struct nb_loops *loops;
    const struct nb_grad_rows *x, *minus;
    uint32_t cols;
    uint16_t *to;
    atomic_uint next;
};

static void narrow_row(const struct narrowing *n, uint32_t row)
{
    const float *x = n->x->x + row * n->x->stride;
    uint16_t *to = n->to + (size_t)row * n->cols;
    if (!n->minus) {
        n->loops->narrow(x, to, n->cols);
        return;
    }
    const float *minus = n->minus->x + row * n->minus->stride;
    float more[SOME];
    for (uint32_t j = 0; j < n->cols; j += SOME) {
        const uint32_t some = n->cols - j < SOME ? n->cols - j : SOME;
        for (uint32_t i = 0; i < some; i++)
            more[i] = x[j + i] - minus[j + i];
        n->loops->narrow(more, to + j, some);
    }
}

static void narrow_rows(void *arg, uint32_t thread)
{
    struct narrowing *n = arg;
    uint32_t row;
    while ((row = atomic_fetch_add(&n->next, 1)) < n->x->n)
        narrow_row(n, row);
}

void nb_hessian_narrow(struct nb_team *team, const struct nb_grad_rows *x,
                       const struct nb_grad_rows *minus, uint32_t cols,
                       uint16_t *ret) // NOLINT(*non-const-parameter)
{
    struct narrowing n = {
        .loops = nb_loops_best(), .x = x, .minus = minus, .cols = cols, .to = ret};
    nb_team_run(team, narrow_rows, &n);
}

struct band {
    double *to;
    const float *sums;
    uint32_t n, width, cols;
    atomic_uint next;
};

static void join_rows(void *arg, uint32_t thread)
{
    struct band *b = arg;
    uint32_t row;
    while ((row = atomic_fetch_add(&b->next, 1)) < b->n)
        for (uint32_t j = 0; j < b->width; j++)
            b->to[(size_t)row * b->cols + j] += (double)b->sums[(size_t)row * b->width + j];
}

// Rows [first, first + BAND) of the result; of a triangle only what is left of their last column.
static void add_band(struct nb_team *team, double *c, // NOLINT(*non-const-parameter)
                     const uint16_t *a, uint32_t n, const uint16_t *b, uint64_t rows, uint32_t cols,
                     uint32_t first, bool triangle, float *sums)
{
    const uint32_t some = n - first < BAND ? n - first : BAND;
    struct band band = {.to = c + (size_t)first * cols,
                        .sums = sums,
                        .n = some,
                        .width = triangle ? first + some : cols,
                        .cols = cols};
    for (uint64_t row = 0; row < rows; row += CHUNK) {
        const uint32_t k = rows - row < CHUNK ? (uint32_t)(rows - row) : CHUNK;
        nb_bgemm(team, true, false, some, band.width, k, a + row * n + first, n, b + row * cols,
                 cols, 0, sums, band.width);
        atomic_store(&band.next, 0);
        nb_team_run(team, join_rows, &band);
    }
}

static int add(struct nb_team *team, double *c, const uint16_t *a, uint32_t n, const uint16_t *b,
               uint64_t rows, uint32_t cols, bool triangle)
{
    float *sums = malloc((size_t)BAND * cols * sizeof(*sums));
    if (!sums)
        return -ENOMEM;
    for (uint32_t first = 0; first < n; first += BAND)
        add_band(team, c, a, n, b, rows, cols, first, triangle, sums);
    free(sums);
    return 0;
}

int nb_cross_add(struct nb_team *team, double *c, const uint16_t *a, uint32_t n, const uint16_t *x,
                 uint64_t rows, uint32_t cols)
{
    return add(team, c, a, n, x, rows, cols, false);
}

int nb_hessian_add(struct nb_team *team, double *h, const uint16_t *x, uint64_t rows, uint32_t cols)
{
    return add(team, h, x, cols, x, rows, cols, true);
}
