// Rounding to nearest: rows of floats to a type's blocks. The one place that knows which encoder a
// type has.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define NB_ROUNDING_LIST 256 // bytes of the list

bool nb_rounding_has(uint32_t type);
// "F32, F16, ...": the types that can be written. Returns `ret`.
const char *nb_rounding_list(char ret[NB_ROUNDING_LIST]);
// n rows of `cols` floats, whole blocks. Each row by itself, so that the split of the work never
// shows in a result. -ERANGE: a weight is too large for the type.
int nb_rounding_rows(uint32_t type, const float *src, uint64_t n, uint64_t cols, void *dst);
// Whether some of n finite numbers are so large that the type may not hold them.
bool nb_rounding_is_risky(uint32_t type, const float *src, uint64_t n);
