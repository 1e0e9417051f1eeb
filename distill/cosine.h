// How far two rows of hidden states point apart.
#pragma once

#include <stdint.h>

// 1 - cos(x, y), which is 1 where either is zero; and d += weight times its gradient in x (NULL: it
// is not wanted). x, y, d: [n]. A pure function.
double nb_away(const float *x, const float *y, uint32_t n, float weight, float *d);
