// What calibration leaves of a matrix's inputs: the sums that error feedback works on. Inputs are
// rounded to bf16, which processors multiply at up to twice fp32's speed: the sums are exactly
// those of inputs that differ by 2^-9 at most, so a Hessian stays positive, and what rounding adds
// to its diagonal is a 2^-18th, far below any damping. Sums of 1536 rows in fp32, then in fp64; the
// same bits whatever the number of threads. All run on the team.
#pragma once

#include <stdint.h>

#include "engine/cpu/threads.h"
#include "grad/grad.h"

// ret: [x->n][cols], x rounded to bf16; with `minus` what x has more than it, before rounding: a
// small difference of large inputs keeps its eight bits.
void nb_hessian_narrow(struct nb_team *team, const struct nb_grad_rows *x,
                       const struct nb_grad_rows *minus, uint32_t cols, uint16_t *ret);

// h[i][j] += sum over rows of x[row][i] * x[row][j] where j <= i; above the diagonal nothing is
// meant. h: [cols][cols], zeroed by the caller before the first rows; x: [rows][cols] of bf16. 0,
// or -ENOMEM with h as it was.
int nb_hessian_add(struct nb_team *team, double *h, const uint16_t *x, uint64_t rows,
                   uint32_t cols);

// c[i][j] += sum over rows of a[row][i] * x[row][j], a: [rows][n], x: [rows][cols], both of bf16,
// c: [n][cols]. With what the float model's inputs have more than the quantized one's as a it is
// nb_gptq's cross matrix; with what its residual stream has more, its residual. As above.
int nb_cross_add(struct nb_team *team, double *c, const uint16_t *a, uint32_t n, const uint16_t *x,
                 uint64_t rows, uint32_t cols);
