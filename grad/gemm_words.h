// One word of a panel, read from an operand: what packing by registers does not reach.
#pragma once

#include <string.h>

#include "grad/gemm_kernels.h"

// What an operand's elements become: floats as they are, bf16 as floats, bf16 of two k in a word.
enum operand { OPERAND_F32, OPERAND_WIDENED, OPERAND_PAIRS };

static inline uint32_t step_of(enum operand o)
{
    return o == OPERAND_PAIRS ? 2 : 1;
}

static inline const void *element_at(const struct nb_gemm_panel *p, enum operand o, uint32_t lane,
                                     uint32_t k)
{
    size_t at = p->by_k ? lane * p->ld + k : k * p->ld + lane;
    return (const char *)p->from + at * (o == OPERAND_F32 ? sizeof(float) : sizeof(uint16_t));
}

static inline uint32_t half_at(const struct nb_gemm_panel *p, uint32_t lane, uint32_t k)
{
    uint16_t x = 0;
    if (lane < p->lanes && k < p->k)
        memcpy(&x, element_at(p, OPERAND_PAIRS, lane, k), sizeof(x));
    return x;
}

// Zero outside the operand.
static inline uint32_t word_at(const struct nb_gemm_panel *p, enum operand o, uint32_t lane,
                               uint32_t step)
{
    uint32_t x = 0;
    if (o == OPERAND_PAIRS)
        return half_at(p, lane, 2 * step) << 16 | half_at(p, lane, 2 * step + 1);
    if (o == OPERAND_WIDENED)
        return half_at(p, lane, step) << 16;
    if (lane < p->lanes)
        memcpy(&x, element_at(p, o, lane, step), sizeof(x));
    return x;
}

static inline void pack_words(const struct nb_gemm_panel *p, enum operand o, uint32_t first,
                              uint32_t end)
{
    for (uint32_t step = first; step < end; step++)
        for (uint32_t lane = 0; lane < p->width; lane++)
            p->to[(size_t)step * p->width + lane] = word_at(p, o, lane, step);
}
