// The peak of vdpbf16ps.
#include <immintrin.h>

#define PEAK                peak_bf16
#define VECTOR              __m512
#define MULTIPLY(x, y, sum) _mm512_dpbf16_ps(sum, (__m512bh)(x), (__m512bh)(y))
#define OPS                 64
#include "tests/kernels/peak_fma_tmpl.h"
