// The peak of AVX2's fma.
#include <immintrin.h>

#define PEAK     peak_fma_avx2
#define VECTOR   __m256
#define MULTIPLY _mm256_fmadd_ps
#define OPS      16
#include "tests/kernels/peak_fma_tmpl.h"
