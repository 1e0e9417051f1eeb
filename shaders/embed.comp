// Rows of the embedding to floats: an invocation decodes 32 columns of one row.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"

layout(std430, binding = 5) writeonly buffer Output { float result[]; };

// A window of the matrix: rows [first_row, first_row + rows).
layout(push_constant) uniform Push {
    uint lanes; // invocations of a row
    uint token1; // the tokens' place in the step's words
    uint weight1, first_row, rows;
    uint cols, stride1, high4, scale2, min2, sub1;
    uint out1; // floats of a row of the result
} pc;

void main()
{
    uint token = gl_GlobalInvocationID.x / pc.lanes, b = gl_GlobalInvocationID.x % pc.lanes;
    if (token >= step_words[STEP_ROWS])
        return;
    uint row = step_words[pc.token1 + token] - pc.first_row;
    if (row >= pc.rows)
        return;
    uint group1 = pc.weight1 + row / 16 * pc.stride1, quad = row % 16 / 4, r = row % 4;
    uint at = token * pc.out1 + b * 32;
    if (PLANES <= PLANES_BF16) {
        for (uint k = 0; k < 32 && b * 32 + k < pc.cols; k++)
            result[at + k] = load_floats(group1, quad, b * 32 + k)[r];
        return;
    }
    uvec4 c[8];
    load_codes(group1 / 4 + quad, pc.high4, b, c);
    Planes planes = Planes(pc.high4, pc.scale2, pc.min2, pc.sub1);
    [[unroll]] for (uint q = 0; q < 8; q++) {
        vec4 ws, wm;
        load_scales(group1, planes, quad, b * 32 + q * 4, ws, wm);
        uvec4 code = bytes_of(c[q][r]);
        [[unroll]] for (uint i = 0; i < 4; i++) {
            precise float w = ws[r] * float(int(code[i]) - int(ZERO));
            if (HAS_MIN != 0)
                w += wm[r];
            result[at + q * 4 + i] = w;
        }
    }
}
