// The AVX2 kernels' instructions without their loads, and plain reading.
#include <immintrin.h>
#include <stdint.h>

#include "tests/kernels/clock.h"
#include "tests/kernels/peak.h"

#define CHAINS 10

double peak_avx2(void)
{
    enum { STEPS = 100000 };
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(1), sum[CHAINS];
    for (int i = 0; i < CHAINS; i++)
        sum[i] = _mm256_setzero_si256();
    double start = now();
    for (int step = 0; step < STEPS; step++)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) {
            __m256i x = a;
            __asm__("" : "+x"(x));
            sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(x, b));
            __asm__ volatile("" : "+x"(sum[i]));
        }
    return 64.0 * CHAINS * STEPS / (now() - start);
}

double peak_read(const void *memory, size_t n)
{
    const __m256i *p = memory;
    __m256i sum[4] = {_mm256_setzero_si256()};
    double start = now();
    for (size_t i = 0; i + 4 <= n / 32; i += 4) {
        _mm_prefetch((const char *)(p + i) + 4096, _MM_HINT_T0);
        _mm_prefetch((const char *)(p + i) + 4160, _MM_HINT_T0);
        for (int j = 0; j < 4; j++)
            sum[j] = _mm256_or_si256(sum[j], _mm256_load_si256(p + i + j));
    }
    __asm__ volatile("" : : "x"(sum[0]), "x"(sum[1]), "x"(sum[2]), "x"(sum[3]));
    return (double)n / (now() - start);
}
