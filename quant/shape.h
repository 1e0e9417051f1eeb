// What an encoder must know of a quantized type: which integers its codes, sub-scales and
// sub-minima may be. Derived from nb_layout, so that no encoder names a type. Private to quant/.
//
// A weight is ws * v + wm, docs/numerics.md, where v is what its code stands for. A group of a
// simple type has ws = scale and wm = min; one of a super-block ws = scale * sub-scale and wm =
// -(min * sub-minimum).
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "tensor/block.h"

struct nb_shape {
    const struct nb_layout *layout;
    const struct nb_codec *codec;
    uint32_t block, group, groups; // weights of a block and of a group; groups of a block
    uint32_t bytes;                // of a block
    bool table;                    // codes stand for the values of a table
    bool super;                    // has sub-scales
    bool has_min;
    // The least and the greatest v. Q8_0 leaves out -128, as every other encoder does: kernels that
    // move a code's sign to the other factor overflow there.
    float low, high;
    int sub_low, sub_high, min_high; // 1, 1, 1 without sub-scales
    float value[16], edge[15];       // of a table: ascending, and where the next one is nearer
};

// -ENOTSUP for float types, INT8 (one scale for a row) and for what Nibble does not load. NF4's
// scale, which is fp32, is found in fp16: a folder stores eight bits of it.
int nb_shape_init(struct nb_shape *ret, uint32_t type);
// Between the values of neighbouring codes, on the average.
static inline float nb_shape_gap(const struct nb_shape *s)
{
    return s->table ? (s->high - s->low) / 15 : 1;
}
// What counts as one in a scale's search: between integers, or a sixteenth of a table's gap.
static inline float nb_shape_unit(const struct nb_shape *s)
{
    return s->table ? nb_shape_gap(s) / 16 : 1;
}
// What a code stands for, and the code that stands for v.
float nb_shape_value(const struct nb_shape *s, uint8_t code);
uint8_t nb_shape_code(const struct nb_shape *s, float v);
