// The peak of AVX-512's fma.
#include <immintrin.h>

#define PEAK     peak_fma_avx512
#define VECTOR   __m512
#define MULTIPLY _mm512_fmadd_ps
#define OPS      32
#include "tests/kernels/peak_fma_tmpl.h"
