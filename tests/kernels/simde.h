// AVX-512 by SIMDe on AVX2, for the harness alone: included before engine/cpu/simd_avx512.h, it
// gives AVX-512's names to SIMDe's functions, and what Debian's SIMDe 0.7.4 lacks (or takes with a
// constant count alone) as two halves.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#define UNROLL
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

static inline __m512i simde_join(__m256i low, __m256i high)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

static inline __m256i simde_low(__m512i x)
{
    return _mm512_castsi512_si256(x);
}

static inline __m256i simde_high(__m512i x)
{
    return _mm512_extracti64x4_epi64(x, 1);
}

static inline __m512 simde_cvtepi32_ps(__m512i x)
{
    return _mm512_castsi512_ps(simde_join(_mm256_castps_si256(_mm256_cvtepi32_ps(simde_low(x))),
                                          _mm256_castps_si256(_mm256_cvtepi32_ps(simde_high(x)))));
}

static inline __m512i simde_cvtps_epi32(__m512 x)
{
    __m512i i = _mm512_castps_si512(x);
    return simde_join(_mm256_cvtps_epi32(_mm256_castsi256_ps(simde_low(i))),
                      _mm256_cvtps_epi32(_mm256_castsi256_ps(simde_high(i))));
}

static inline __m512i simde_cvtepu8_epi32(__m128i x)
{
    return simde_join(_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)));
}

static inline __m512i simde_cvtepi8_epi32(__m128i x)
{
    return simde_join(_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
}

static inline __m512i simde_cvtepu16_epi32(__m256i x)
{
    return simde_join(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)),
                      _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)));
}

static inline __m512i simde_cvtepi16_epi32(__m256i x)
{
    return simde_join(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(x)),
                      _mm256_cvtepi16_epi32(_mm256_extracti128_si256(x, 1)));
}

static inline __m128i simde_cvtepi32_epi8(__m512i x)
{
    int32_t in[16];
    int8_t out[16];
    _mm512_storeu_si512(in, x);
    for (int i = 0; i < 16; i++)
        out[i] = (int8_t)in[i];
    return _mm_loadu_si128((const __m128i *)out);
}

static inline __m512i simde_srai_epi32(__m512i x, int n)
{
    return simde_join(_mm256_srai_epi32(simde_low(x), n), _mm256_srai_epi32(simde_high(x), n));
}

static inline __m512i simde_srli_epi16(__m512i x, unsigned n)
{
    return simde_join(_mm256_srli_epi16(simde_low(x), (int)n),
                      _mm256_srli_epi16(simde_high(x), (int)n));
}

static inline __m512 simde_cvtph_ps(__m256i x)
{
    __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(x));
    __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1));
    return _mm512_castsi512_ps(simde_join(_mm256_castps_si256(low), _mm256_castps_si256(high)));
}

#define _mm512_cvtph_ps       simde_cvtph_ps
#define _mm512_cvtepi32_ps    simde_cvtepi32_ps
#define _mm512_cvtps_epi32    simde_cvtps_epi32
#define _mm512_cvtepu8_epi32  simde_cvtepu8_epi32
#define _mm512_cvtepi8_epi32  simde_cvtepi8_epi32
#define _mm512_cvtepu16_epi32 simde_cvtepu16_epi32
#define _mm512_cvtepi16_epi32 simde_cvtepi16_epi32
#define _mm512_cvtepi32_epi8  simde_cvtepi32_epi8
#define _mm512_srai_epi32     simde_srai_epi32
#undef _mm512_srli_epi16
#define _mm512_srli_epi16 simde_srli_epi16
