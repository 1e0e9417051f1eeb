// What the GEMMs of workgroups share: codes and inputs as signed bytes, four of each to a dot
// product; K in CHUNKS, whose sums are added in order (docs/numerics.md); what becomes of a sum.
#ifdef DOT
#extension GL_EXT_spirv_intrinsics : require
#endif

// Coherent for those that finish, whose last workgroup reads what others have made.
layout(std430, binding = BIND_OUT) coherent buffer Output { float result[]; };

#include "chunks.glsl"
#ifdef FINISH
#include "finish_team.glsl"
#endif

#ifdef DOT
// OpSDot of SPV_KHR_integer_dot_product; `format` 0: four bytes a word.
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019],
                  id = 4450)
int packed_dot(uint a, uint b, spirv_literal int format);

int dot4(uint a, uint b)
{
    return packed_dot(a, b, 0);
}
#else
int dot4(uint a, uint b)
{
    ivec4 x = ivec4(a << 24, a << 16, a << 8, a) >> 24;
    ivec4 y = ivec4(b << 24, b << 16, b << 8, b) >> 24;
    return x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
}
#endif

// code - ZERO, byte by byte.
uvec4 signed_codes(uvec4 c)
{
    // Codes of 8 bits are offset by 128; narrower ones leave room to borrow from.
    return (ZERO == 128 ? c : (c | 0x80808080u) - ZERO * 0x01010101u) ^ 0x80808080u;
}

ivec2 sums_of(uint word)
{
    return ivec2(int(word << 16) >> 16, int(word) >> 16);
}

int whole_sum(int first, int second) // of the terms
{
    return TERMS == 2 ? 254 * first + second : first;
}

// acc += what a group of 16 or 32 contributes to four rows. `sum`: of the inputs, scaled.
void add_group(ivec4 a, float scale, float sum, vec4 ws, vec4 wm, inout precise vec4 acc)
{
    precise vec4 scaled = vec4(a) * scale;
    acc = fma(scaled, ws, acc);
    if (HAS_MIN != 0)
        acc = fma(vec4(sum), wm, acc);
}

uint part_of(uint group)
{
    return group < pc.first[1] ? 0 : group < pc.first[2] ? 1 : 2;
}

// Of row `row` of the part's groups; 0 where there is none.
float bias_of(uint part, uint row)
{
    uint bias1 = first_bias(part);
    if (bias1 == NONE || row >= pc.rows[part])
        return 0.0;
    return read_floats(vectors, (bias1 + row) / 4)[row % 4];
}

float gated(float gate, float up)
{
    precise float y = activate(ACTIVATION, gate) * up;
    return y;
}

// `y`: for row `row` of the part; with GATED what both matrices make.
void finish(uint part, uint row, uint token, float y)
{
    uint at = (token * pc.out4 + pc.column4[part]) * 4 + row;
    if (WHAT == MODE_ADD)
        result[at] += y;
    else if (WHAT == MODE_ACTIVATED)
        result[at] = activate(ACTIVATION, y);
    else
        result[at] = WHAT == MODE_GATED_UP ? gated(result[at], y) : y;
}
