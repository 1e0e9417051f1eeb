// Sixteen lanes on AVX2, as pairs of 256-bit registers: the words that the templates (*_tmpl.h) are
// written in. simd_avx512.h offers the same words.
#pragma once

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define FORCED static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

typedef struct {
    __m256 a, b;
} vf; // 16 floats

typedef struct {
    __m256i a, b;
} vi; // 16 int32, or 64 bytes

typedef vi vmask; // all ones in a chosen lane

#define VF(x, y) ((vf){x, y})
#define VI(x, y) ((vi){x, y})

FORCED vf f_set1(float x)
{
    return VF(_mm256_set1_ps(x), _mm256_set1_ps(x));
}

FORCED vf f_zero(void)
{
    return f_set1(0.0f);
}

FORCED vf f_load(const float *p)
{
    return VF(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}

FORCED void f_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}

FORCED vf f_add(vf x, vf y)
{
    return VF(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b));
}

FORCED vf f_sub(vf x, vf y)
{
    return VF(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b));
}

FORCED vf f_mul(vf x, vf y)
{
    return VF(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b));
}

FORCED vf f_div(vf x, vf y)
{
    return VF(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b));
}

FORCED vf f_sqrt(vf x)
{
    return VF(_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b));
}

// x * y + z
FORCED vf f_fma(vf x, vf y, vf z)
{
    return VF(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}

// z - x * y
FORCED vf f_fnma(vf x, vf y, vf z)
{
    return VF(_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b));
}

// The second operand when either is NaN.
FORCED vf f_max(vf x, vf y)
{
    return VF(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b));
}

FORCED vf f_min(vf x, vf y)
{
    return VF(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b));
}

FORCED vf f_rint(vf x)
{
    return VF(_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
              _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

FORCED vf f_of_half(const uint16_t *p)
{
    return VF(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
              _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1)));
}

FORCED void f_to_half(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)p + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}

FORCED vf f_of_int(vi x)
{
    return VF(_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b));
}

// Rounds to nearest even.
FORCED vi f_to_int(vf x)
{
    return VI(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
}

FORCED vf f_of_bits(vi x)
{
    return VF(_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b));
}

FORCED vi f_bits(vf x)
{
    return VI(_mm256_castps_si256(x.a), _mm256_castps_si256(x.b));
}

FORCED vi i_set1(int x)
{
    return VI(_mm256_set1_epi32(x), _mm256_set1_epi32(x));
}

// A 32-bit word of memory in every lane.
FORCED vi i_broadcast(const void *p)
{
    __m256i x = _mm256_castps_si256(_mm256_broadcast_ss((const float *)p));
    return VI(x, x);
}

FORCED vi i_load(const void *p)
{
    return VI(_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1));
}

FORCED void i_store(void *p, vi x)
{
    _mm256_storeu_si256((__m256i *)p, x.a);
    _mm256_storeu_si256((__m256i *)p + 1, x.b);
}

FORCED vi i_add(vi x, vi y)
{
    return VI(_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b));
}

FORCED vi i_sub(vi x, vi y)
{
    return VI(_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b));
}

FORCED vi i_mul(vi x, vi y)
{
    return VI(_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b));
}

FORCED vi i_and(vi x, vi y)
{
    return VI(_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b));
}

FORCED vi i_or(vi x, vi y)
{
    return VI(_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b));
}

FORCED vi i_max_u32(vi x, vi y)
{
    return VI(_mm256_max_epu32(x.a, y.a), _mm256_max_epu32(x.b, y.b));
}

FORCED vi i_sra1(vi x)
{
    return VI(_mm256_srai_epi32(x.a, 1), _mm256_srai_epi32(x.b, 1));
}

FORCED vi i_sll32(vi x, int n)
{
    return VI(_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n));
}

FORCED vi i_srl32(vi x, int n)
{
    return VI(_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n));
}

// The entry of the table that the low 4 bits of each word name. A permutation looks at 3 of them.
FORCED vf f_lookup(const float table[16], vi x)
{
    __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
    __m256 a = _mm256_castsi256_ps(_mm256_slli_epi32(x.a, 28));
    __m256 b = _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 28));
    return VF(_mm256_blendv_ps(_mm256_permutevar8x32_ps(low, x.a),
                               _mm256_permutevar8x32_ps(high, x.a), a),
              _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, x.b),
                               _mm256_permutevar8x32_ps(high, x.b), b));
}

// Shifts of 16-bit lanes: enough for codes in bytes once masked.
FORCED vi i_srl16(vi x, int n)
{
    return VI(_mm256_srli_epi16(x.a, n), _mm256_srli_epi16(x.b, n));
}

FORCED vi i_sll16(vi x, int n)
{
    return VI(_mm256_slli_epi16(x.a, n), _mm256_slli_epi16(x.b, n));
}

// Each byte 0..15 of x becomes that entry of the table.
FORCED vi i_lookup(const uint8_t table[16], vi x)
{
    __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    return VI(_mm256_shuffle_epi8(t, x.a), _mm256_shuffle_epi8(t, x.b));
}

FORCED vi i_of_u8(const uint8_t *p)
{
    return VI(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)),
              _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))));
}

FORCED vi i_of_s8(const uint8_t *p)
{
    return VI(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)),
              _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))));
}

FORCED vi i_of_s16(const int16_t *p)
{
    return VI(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)p)),
              _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)p + 1)));
}

FORCED vi i_of_u16(const uint16_t *p)
{
    return VI(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)),
              _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p + 1)));
}

// Lanes in -128..127.
FORCED void i_to_s8(int8_t *p, vi x)
{
    __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    __m128i b = _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storeu_si128((__m128i *)p, b);
}

// Folds 16 -> 8 -> 4 -> 2 -> 1, partial i + half to partial i.
FORCED float f_fold(vf x)
{
    __m256 y = _mm256_add_ps(x.a, x.b);
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}

FORCED float f_fold_max(vf x)
{
    __m256 y = _mm256_max_ps(x.a, x.b);
    __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_max_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}

FORCED int i_fold(vi x)
{
    __m256i y = _mm256_add_epi32(x.a, x.b);
    __m128i z = _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    z = _mm_add_epi32(z, _mm_shuffle_epi32(z, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(z, _mm_shuffle_epi32(z, 0xb1)));
}

FORCED uint32_t i_fold_max_u32(vi x)
{
    __m256i y = _mm256_max_epu32(x.a, x.b);
    __m128i z = _mm_max_epu32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    z = _mm_max_epu32(z, _mm_shuffle_epi32(z, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(z, _mm_shuffle_epi32(z, 0xb1)));
}

// Lanes lo <= i < hi.
FORCED vmask m_range(int lo, int hi)
{
    __m256i i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
            j = _mm256_add_epi32(i, _mm256_set1_epi32(8));
    __m256i l = _mm256_set1_epi32(lo - 1), h = _mm256_set1_epi32(hi);
    return VI(_mm256_and_si256(_mm256_cmpgt_epi32(i, l), _mm256_cmpgt_epi32(h, i)),
              _mm256_and_si256(_mm256_cmpgt_epi32(j, l), _mm256_cmpgt_epi32(h, j)));
}

// Lanes whose sign bit is set.
FORCED vmask m_sign(vf x)
{
    vi bits = f_bits(x);
    return VI(_mm256_srai_epi32(bits.a, 31), _mm256_srai_epi32(bits.b, 31));
}

FORCED vf f_select(vmask m, vf yes, vf no)
{
    return VF(_mm256_blendv_ps(no.a, yes.a, _mm256_castsi256_ps(m.a)),
              _mm256_blendv_ps(no.b, yes.b, _mm256_castsi256_ps(m.b)));
}

// Thirty-two consecutive floats to those at even and at odd places, and back.
FORCED void f_unzip(vf x, vf y, vf *even, vf *odd)
{
    __m256 e0 = _mm256_shuffle_ps(x.a, x.b, 0x88), e1 = _mm256_shuffle_ps(y.a, y.b, 0x88);
    __m256 o0 = _mm256_shuffle_ps(x.a, x.b, 0xdd), o1 = _mm256_shuffle_ps(y.a, y.b, 0xdd);
#define ORDER(v) _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8))
    *even = VF(ORDER(e0), ORDER(e1));
    *odd = VF(ORDER(o0), ORDER(o1));
#undef ORDER
}

FORCED void f_zip(vf even, vf odd, vf *x, vf *y)
{
#define ZIP(e, o, v)                                                                               \
    do {                                                                                           \
        __m256 l = _mm256_unpacklo_ps(e, o), h = _mm256_unpackhi_ps(e, o);                         \
        *(v) = VF(_mm256_permute2f128_ps(l, h, 0x20), _mm256_permute2f128_ps(l, h, 0x31));         \
    } while (0)
    ZIP(even.a, odd.a, x);
    ZIP(even.b, odd.b, y);
#undef ZIP
}

// The integer product of the matrix kernels. A lane holds 4 unsigned codes of one row; `q` 4 signed
// activations. vpmaddubsw adds two products in an int16, so sums stay there for a few steps before
// they are widened. With codes of at most `max` and |q| <= 127, `n` steps reach n * 2 * max * 127:
//   max 15, 8 steps: 30480      max 31, 4 steps: 31496      max 63, 2 steps: 32004       all below
//   32767.
// Codes of 8 bits would overflow in one step (2 * 255 * 127): they are split into two of 4 bits.
#define DOT_SPLITS_BYTES true
#define DOT_COLUMNS      4 // of one tile
#define ATTEND_ROWS      4 // of one pack

// The tile of float weights: tokens, and steps of k.
#define FLOAT_TOKENS 6
#define FLOAT_STEPS  1

FORCED int dot_steps(int max)
{
    return max <= 15 ? 8 : max <= 31 ? 4 : 2;
}

FORCED vi dot_first(vi code, vi q)
{
    return VI(_mm256_maddubs_epi16(code.a, q.a), _mm256_maddubs_epi16(code.b, q.b));
}

FORCED vi dot_next(vi sum, vi code, vi q)
{
    vi p = dot_first(code, q);
    p = VI(_mm256_add_epi16(sum.a, p.a), _mm256_add_epi16(sum.b, p.b));
    // Keeps the compiler from holding the products back to add them as a tree, which spills them.
    __asm__("" : "+x"(p.a), "+x"(p.b));
    return p;
}

// int16 pairs to int32, times a small factor.
FORCED vi dot_widen(vi sum, int times)
{
    __m256i t = _mm256_set1_epi16((int16_t)times);
    return VI(_mm256_madd_epi16(sum.a, t), _mm256_madd_epi16(sum.b, t));
}

// int16 pairs to int32 sums.
FORCED vi i_add_pairs(vi x)
{
    return dot_widen(x, 1);
}
