// What calibration leaves of a matrix's inputs: the sums that error feedback works on. Sums of 1536
// rows in fp32, then in fp64; the same bits whatever the number of threads. Both return 0 or
// -ENOMEM, with the sums as they were.
#pragma once

#include <stdint.h>

#include "engine/cpu/threads.h"

// h[i][j] += sum over rows of x[row][i] * x[row][j]. h: [cols][cols], zeroed by the caller before
// the first rows; x: [rows][cols].
int nb_hessian_add(struct nb_team *team, double *h, const float *x, uint64_t rows, uint32_t cols);

// c[i][j] += sum over rows of a[row][i] * b[row][j], a: [rows][n], b: [rows][cols], c: [n][cols].
// With the float model's inputs as a and the quantized one's as b it is the cross matrix of
// nb_gptq; with the residual stream's difference as a it is its residual.
int nb_cross_add(struct nb_team *team, double *c, const float *a, uint32_t n, const float *b,
                 uint64_t rows, uint32_t cols);
