// Sixteen lanes on AVX-512 (F, BW, VL, DQ, VNNI): the words of simd_avx2.h, a register each.
#pragma once

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define FORCED static inline __attribute__((always_inline))
#if defined(UNROLL) // the harness compiles for size
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

typedef __m512 vf;  // 16 floats
typedef __m512i vi; // 16 int32, or 64 bytes
typedef __mmask16 vmask;

#define NEAREST (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

FORCED vf f_set1(float x)
{
    return _mm512_set1_ps(x);
}

FORCED vf f_zero(void)
{
    return _mm512_setzero_ps();
}

FORCED vf f_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

FORCED void f_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}

FORCED vf f_add(vf x, vf y)
{
    return _mm512_add_ps(x, y);
}

FORCED vf f_sub(vf x, vf y)
{
    return _mm512_sub_ps(x, y);
}

FORCED vf f_mul(vf x, vf y)
{
    return _mm512_mul_ps(x, y);
}

FORCED vf f_div(vf x, vf y)
{
    return _mm512_div_ps(x, y);
}

FORCED vf f_sqrt(vf x)
{
    return _mm512_sqrt_ps(x);
}

// x * y + z
FORCED vf f_fma(vf x, vf y, vf z)
{
    return _mm512_fmadd_ps(x, y, z);
}

// z - x * y
FORCED vf f_fnma(vf x, vf y, vf z)
{
    return _mm512_fnmadd_ps(x, y, z);
}

// The second operand when either is NaN.
FORCED vf f_max(vf x, vf y)
{
    return _mm512_max_ps(x, y);
}

FORCED vf f_min(vf x, vf y)
{
    return _mm512_min_ps(x, y);
}

FORCED vf f_rint(vf x)
{
    return _mm512_roundscale_ps(x, NEAREST);
}

FORCED __m256 f_upper(vf x)
{
    return _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(x), 1));
}

FORCED vf f_join(__m256 low, __m256 high)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

FORCED vf f_of_half(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

FORCED void f_to_half(uint16_t *p, vf x)
{
    __m256 high = f_upper(x);
    _mm_storeu_si128((__m128i *)p,
                     _mm256_cvtps_ph(_mm512_castps512_ps256(x), _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)p + 1, _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT));
}

FORCED vf f_of_int(vi x)
{
    return _mm512_cvtepi32_ps(x);
}

// Rounds to nearest even.
FORCED vi f_to_int(vf x)
{
    return _mm512_cvtps_epi32(x);
}

FORCED vf f_of_bits(vi x)
{
    return _mm512_castsi512_ps(x);
}

FORCED vi f_bits(vf x)
{
    return _mm512_castps_si512(x);
}

FORCED vi i_set1(int x)
{
    return _mm512_set1_epi32(x);
}

// A 32-bit word of memory in every lane.
FORCED vi i_broadcast(const void *p)
{
    int x;
    __builtin_memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}

FORCED vi i_load(const void *p)
{
    return _mm512_loadu_si512(p);
}

FORCED void i_store(void *p, vi x)
{
    _mm512_storeu_si512(p, x);
}

FORCED vi i_add(vi x, vi y)
{
    return _mm512_add_epi32(x, y);
}

FORCED vi i_sub(vi x, vi y)
{
    return _mm512_sub_epi32(x, y);
}

FORCED vi i_mul(vi x, vi y)
{
    return _mm512_mullo_epi32(x, y);
}

FORCED vi i_and(vi x, vi y)
{
    return _mm512_and_si512(x, y);
}

FORCED vi i_or(vi x, vi y)
{
    return _mm512_or_si512(x, y);
}

FORCED vi i_max_u32(vi x, vi y)
{
    return _mm512_max_epu32(x, y);
}

FORCED vi i_sra1(vi x)
{
    return _mm512_srai_epi32(x, 1);
}

FORCED vi i_sll32(vi x, int n)
{
    return _mm512_slli_epi32(x, (unsigned)n);
}

FORCED vi i_srl32(vi x, int n)
{
    return _mm512_srli_epi32(x, (unsigned)n);
}

// The entry of the table that the low 4 bits of each word name.
FORCED vf f_lookup(const float table[16], vi x)
{
    return _mm512_permutexvar_ps(x, _mm512_loadu_ps(table));
}

// Shifts of 16-bit lanes: enough for codes in bytes once masked.
FORCED vi i_srl16(vi x, int n)
{
    return _mm512_srli_epi16(x, (unsigned)n);
}

FORCED vi i_sll16(vi x, int n)
{
    return _mm512_slli_epi16(x, (unsigned)n);
}

// Each byte 0..15 of x becomes that entry of the table.
FORCED vi i_lookup(const uint8_t table[16], vi x)
{
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), x);
}

FORCED vi i_of_u8(const uint8_t *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}

FORCED vi i_of_s8(const uint8_t *p)
{
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
}

FORCED vi i_of_s16(const int16_t *p)
{
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)p));
}

FORCED vi i_of_u16(const uint16_t *p)
{
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
}

// Lanes in -128..127.
FORCED void i_to_s8(int8_t *p, vi x)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(x));
}

// Folds 16 -> 8 -> 4 -> 2 -> 1, partial i + half to partial i.
FORCED float f_fold(vf x)
{
    __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), f_upper(x));
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}

FORCED float f_fold_max(vf x)
{
    __m256 y = _mm256_max_ps(_mm512_castps512_ps256(x), f_upper(x));
    __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_max_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}

FORCED int i_fold(vi x)
{
    __m256i y = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    __m128i z = _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    z = _mm_add_epi32(z, _mm_shuffle_epi32(z, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(z, _mm_shuffle_epi32(z, 0xb1)));
}

FORCED uint32_t i_fold_max_u32(vi x)
{
    __m256i y = _mm256_max_epu32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    __m128i z = _mm_max_epu32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    z = _mm_max_epu32(z, _mm_shuffle_epi32(z, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(z, _mm_shuffle_epi32(z, 0xb1)));
}

// Lanes lo <= i < hi.
FORCED vmask m_range(int lo, int hi)
{
    uint32_t below_hi = hi <= 0 ? 0 : hi >= 16 ? 0xffff : (1u << hi) - 1;
    uint32_t below_lo = lo <= 0 ? 0 : lo >= 16 ? 0xffff : (1u << lo) - 1;
    return (vmask)(below_hi & ~below_lo);
}

// Lanes whose sign bit is set.
FORCED vmask m_sign(vf x)
{
    return _mm512_movepi32_mask(f_bits(x));
}

FORCED vf f_select(vmask m, vf yes, vf no)
{
    return _mm512_mask_blend_ps(m, no, yes);
}

// Thirty-two consecutive floats to those at even and at odd places, and back.
FORCED void f_unzip(vf x, vf y, vf *even, vf *odd)
{
    vi e = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    vi o = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    *even = _mm512_permutex2var_ps(x, e, y);
    *odd = _mm512_permutex2var_ps(x, o, y);
}

FORCED void f_zip(vf even, vf odd, vf *x, vf *y)
{
    vi l = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    vi h = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    *x = _mm512_permutex2var_ps(even, l, odd);
    *y = _mm512_permutex2var_ps(even, h, odd);
}

// The integer product of the matrix kernels. A lane holds 4 unsigned codes of one row; `q` 4 signed
// activations. vpdpbusd sums the four products in the lane's int32 without overflow: nothing to
// widen, no byte to split.
#define DOT_SPLITS_BYTES false
#define DOT_COLUMNS      8 // of one tile
#define ATTEND_ROWS      8 // of one pack

// The tile of float weights: tokens, and steps of k.
#define FLOAT_TOKENS 24
#define FLOAT_STEPS  4

FORCED int dot_steps(int max)
{
    return 8;
}

FORCED vi dot_next(vi sum, vi code, vi q)
{
    return _mm512_dpbusd_epi32(sum, code, q);
}

FORCED vi dot_first(vi code, vi q)
{
    return dot_next(_mm512_setzero_si512(), code, q);
}

// The int32 sums as they are; `times` is 1 where no byte is split.
FORCED vi dot_widen(vi sum, int times)
{
    return sum;
}

// int16 pairs to int32 sums.
FORCED vi i_add_pairs(vi x)
{
    return i_add(_mm512_srai_epi32(i_sll32(x, 16), 16), _mm512_srai_epi32(x, 16));
}
