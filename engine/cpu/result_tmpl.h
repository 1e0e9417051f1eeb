// Where the sums of a tile of a matrix product go.
#pragma once

#include "engine/cpu/kernels.h"

// Adds bias and, with `accumulate`, what y holds; rows past the matrix's last are dropped.
static void store_rows(const struct nb_packed *w, uint32_t row, const float *bias, bool accumulate,
                       const float *sum, float *y)
{
    uint32_t n = w->rows - row < 16 ? w->rows - row : 16;
    if (n == 16) {
        vf v = f_load(sum);
        v = bias ? f_add(v, f_load(bias + row)) : v;
        f_store(y + row, accumulate ? f_add(f_load(y + row), v) : v);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        float v = bias ? sum[i] + bias[row + i] : sum[i];
        y[row + i] = accumulate ? y[row + i] + v : v;
    }
}
