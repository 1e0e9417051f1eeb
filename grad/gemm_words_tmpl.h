// Panels of floats in the words of engine/cpu/simd_*.h: operands in fp32, and bf16 that is widened.
#pragma once

#include "grad/gemm_words.h"

FORCED vf multiply(vf a, vf b, vf sum)
{
    return f_fma(a, b, sum);
}

// Sixteen steps of a lane, where k runs along a row in memory.
FORCED vf along_k(const struct nb_gemm_panel *p, enum operand o, uint32_t lane, uint32_t step)
{
    const void *at = element_at(p, o, lane, step);
    return o == OPERAND_F32 ? f_load(at) : f_of_bits(i_sll32(i_of_u16(at), 16));
}

// Sixteen lanes of a step, where lanes run along a row in memory.
FORCED vf along_lanes(const struct nb_gemm_panel *p, enum operand o, uint32_t lane, uint32_t step)
{
    return along_k(p, o, lane, step);
}
