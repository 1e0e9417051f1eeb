// Sums of products of calibration rows: GEMMs of bands of the result, which join the fp64 sums.
#include "quant/hessian.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "grad/gemm.h"

#define BAND  256  // rows of the result
#define CHUNK 1536 // rows summed in fp32 before they join the fp64 sums

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
                     const float *a, uint32_t n, const float *b, uint64_t rows, uint32_t cols,
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
        nb_sgemm(team, true, false, some, band.width, k, a + row * n + first, n, b + row * cols,
                 cols, 0, sums, band.width);
        atomic_store(&band.next, 0);
        nb_team_run(team, join_rows, &band);
    }
}

static int add(struct nb_team *team, double *c, const float *a, uint32_t n, const float *b,
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

int nb_cross_add(struct nb_team *team, double *c, const float *a, uint32_t n, const float *b,
                 uint64_t rows, uint32_t cols)
{
    return add(team, c, a, n, b, rows, cols, false);
}

int nb_hessian_add(struct nb_team *team, double *h, const float *x, uint64_t rows, uint32_t cols)
{
    int rc = add(team, h, x, cols, x, rows, cols, true);
    for (uint32_t i = 0; i < cols && rc == 0; i++)
        for (uint32_t j = 0; j < i; j++)
            h[(size_t)j * cols + i] = h[(size_t)i * cols + j];
    return rc;
}
