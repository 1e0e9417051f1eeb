// Rows of the embedding to floats: an invocation decodes 32 columns of one row.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"

layout(std430, binding = BIND_OUT) buffer Output { float result[]; };

layout(push_constant) uniform Push { push_embed pc; };

void put(uint at, float w)
{
    precise float scaled = pc.scale != 1.0 ? w * pc.scale : w;
    precise float y = pc.adds != 0 ? fma(w, pc.scale, result[at]) : scaled;
    result[at] = y;
}

void main()
{
    uint token = invocation() / pc.lanes, b = invocation() % pc.lanes;
    if (token >= step_words[STEP_ROWS])
        return;
    uint row = (pc.table1 == NONE ? 0 : step_words[pc.table1 + token]) - pc.first_row;
    if (row >= pc.rows)
        return;
    uint group1 = pc.weight1 + row / GROUP_ROWS * pc.planes.stride1;
    uint quad = row % GROUP_ROWS / 4, r = row % 4;
    uint at = token * pc.out1 + b * 32;
    if (FLOAT_WEIGHTS) {
        for (uint k = 0; k < 32 && b * 32 + k < pc.cols; k++)
            put(at + k, load_floats(group1, pc.planes, quad, b * 32 + k)[r]);
        return;
    }
    uvec4 c[8];
    load_codes(group1 / 4 + quad, pc.planes.high4, b, c);
    [[unroll]] for (uint q = 0; q < 8; q++) {
        vec4 ws, wm;
        load_scales(group1, pc.planes, quad, b * 32 + q * 4, ws, wm);
        uvec4 code = bytes_of(c[q][r]);
        [[unroll]] for (uint i = 0; i < 4; i++) {
            precise float w = ws[r] * float(int(code[i]) - int(ZERO));
            if (HAS_MIN != 0)
                w += wm[r];
            put(at + q * 4 + i, w);
        }
    }
}
