// Products of bf16 matrices by vdpbf16ps (AVX512-BF16), which takes the upper halves of its words
// first: so the earlier k lies there.
#include "engine/cpu/simd_avx512.h"
#include "grad/gemm_isa.h"
#include "grad/gemm_words.h"

#define ROWS    8
#define VECTORS 3

FORCED vf multiply(vf a, vf b, vf sum)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

FORCED vf along_k(const struct nb_gemm_panel *p, enum operand o, uint32_t lane, uint32_t step)
{
    return f_of_bits(_mm512_rol_epi32(i_load(element_at(p, o, lane, 2 * step)), 16));
}

FORCED vf along_lanes(const struct nb_gemm_panel *p, enum operand o, uint32_t lane, uint32_t step)
{
    vi early = i_of_u16(element_at(p, o, lane, 2 * step));
    return f_of_bits(i_or(i_sll32(early, 16), i_of_u16(element_at(p, o, lane, 2 * step + 1))));
}

#include "grad/gemm_tmpl.h"

static void pack_pairs(const struct nb_gemm_panel *p)
{
    pack(p, OPERAND_PAIRS);
}

const struct nb_gemm_kernels nb_bgemm_pairs = {
    "avx512-bf16", ROWS, COLUMNS, .step = 2, .element = sizeof(uint16_t), pack_pairs, tile};
