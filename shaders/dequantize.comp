// Rows of a matrix as numbers, for clients: an invocation decodes 32 columns of one row, to fp32,
// fp16, or int8 by the row's largest magnitude, which another pass finds: there an invocation takes a
// whole row.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"

layout(std430, binding = BIND_OUT) writeonly buffer Output { uint result[]; };
layout(std430, binding = BIND_OUT2) buffer Most { float most[]; }; // of each row

layout(push_constant) uniform Push { push_dequantize pc; };

// Columns [32 b, 32 b + 32) of a row; zeros past the last.
void decode(uint row, uint b, out precise vec4 w[8])
{
    uint group1 = pc.weight1 + row / GROUP_ROWS * pc.planes.stride1;
    uint quad = row % GROUP_ROWS / 4, r = row % 4;
    uvec4 c[8];
    if (!FLOAT_WEIGHTS)
        load_codes(group1 / 4 + quad, pc.planes.high4, b, c);
    [[unroll]] for (uint q = 0; q < 8; q++) {
        uint k = b * 32 + q * 4;
        if (FLOAT_WEIGHTS) {
            [[unroll]] for (uint i = 0; i < 4; i++)
                w[q][i] = load_floats(group1, pc.planes, quad, min(k + i, pc.cols - 1))[r];
        } else {
            vec4 ws, wm;
            load_scales(group1, pc.planes, quad, k, ws, wm);
            w[q] = ws[r] * vec4(ivec4(bytes_of(c[q][r])) - int(ZERO));
            if (HAS_MIN != 0)
                w[q] += vec4(wm[r]);
        }
        w[q] = mix(vec4(0.0), w[q], lessThan(uvec4(k, k + 1, k + 2, k + 3), uvec4(pc.cols)));
    }
}

// To nearest even, to infinity beyond the largest half (packHalf2x16 may round as it likes).
uint half_bits(float x)
{
    uint bits = floatBitsToUint(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000u)
        return sign | 0x7e00;
    if (size >= 0x477ff000u)
        return sign | 0x7c00;
    if (size < 0x38800000u)
        return sign | uint(roundEven(uintBitsToFloat(size) * 16777216.0));
    return sign | (size - 0x38000000u + 0xfff + (size >> 13 & 1)) >> 13;
}

// 0 for a row that holds what is not finite.
float find_most(uint row)
{
    vec4 largest = vec4(0.0);
    bool finite = true;
    for (uint b = 0; b * 32 < pc.cols; b++) {
        precise vec4 w[8];
        decode(row, b, w);
        [[unroll]] for (uint q = 0; q < 8; q++) {
            largest = max(largest, abs(w[q]));
            finite = finite && all(lessThan(floatBitsToUint(w[q]) & 0x7f800000u, uvec4(0x7f800000u)));
        }
    }
    float all = max(max(largest.x, largest.y), max(largest.z, largest.w));
    return finite && all >= 1e-30 ? all : 0.0;
}

void main()
{
    uint i = invocation() / pc.lanes, b = invocation() % pc.lanes;
    if (i >= pc.rows)
        return;
    if (MODE == MODE_TO_MOST) {
        most[i] = find_most(pc.row0 + i);
        return;
    }
    precise vec4 w[8];
    decode(pc.row0 + i, b, w);
    uint at = i * pc.out1;
    precise float inv = MODE == MODE_TO_INT8 && most[i] > 0.0 ? 127.0 / most[i] : 0.0;
    [[unroll]] for (uint q = 0; q < 8; q++) {
        if (MODE == MODE_TO_F32) {
            [[unroll]] for (uint j = 0; j < 4; j++)
                result[at + b * 32 + q * 4 + j] = floatBitsToUint(w[q][j]);
        } else if (MODE == MODE_TO_F16) {
            [[unroll]] for (uint j = 0; j < 2; j++)
                result[at + b * 16 + q * 2 + j] =
                    half_bits(w[q][2 * j]) | half_bits(w[q][2 * j + 1]) << 16;
        } else {
            precise vec4 scaled = w[q] * inv;
            uvec4 code = inv > 0.0 ? uvec4(ivec4(roundEven(scaled))) & 255 : uvec4(0);
            result[at + b * 8 + q] = code.x | code.y << 8 | code.z << 16 | code.w << 24;
        }
    }
}
