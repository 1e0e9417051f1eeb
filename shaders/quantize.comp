// The input of matrices: RMSNorm where the operator has one, then quantization by blocks of 32. A
// few invocations share a row's blocks; each sums the row's squares for itself.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

const uint MODE_NORM = 1, MODE_FLOAT = 2, MODE_QUANTIZED = 4; // bits

layout(push_constant) uniform Push {
    uint lanes; // invocations of a row
    uint count; // which of the step's counts limits the rows
    uint gather1; // a table of rows in the step's words, or NONE
    uint cols, in4, out4, act4, norm;
    float eps;
} pc;

#ifdef TEAM
#include "quantize_team.glsl"
#else

layout(std430, binding = 6) writeonly buffer Act { uvec4 act[]; };
layout(std430, binding = 8) writeonly buffer Floats { vec4 floats[]; };

float row_scale(uint row4)
{
    precise vec4 p[4];
    [[unroll]] for (int i = 0; i < 4; i++)
        p[i] = vec4(0.0);
    for (uint k = 0; k < pc.cols; k += 16) {
        [[unroll]] for (uint i = 0; i < 4; i++) {
            vec4 x = read_floats(inputs, row4 + k / 4 + i); // zeros past the last column
            p[i] = fma(x, x, p[i]);
        }
    }
    p[0] += p[2];
    p[1] += p[3];
    p[0] += p[1];
    p[0].xy += p[0].zw;
    precise float mean = (p[0].x + p[0].y) / float(pc.cols);
    precise float scale = 1.0 / sqrt(mean + pc.eps);
    return scale;
}

void main()
{
    uint row = gl_GlobalInvocationID.x / pc.lanes, first = gl_GlobalInvocationID.x % pc.lanes;
    if (row >= step_words[pc.count])
        return;
    uint from4 = (pc.gather1 == NONE ? row : step_words[pc.gather1 + row]) * pc.in4;
    float scale = (MODE & MODE_NORM) != 0 ? row_scale(from4) : 1.0;
    for (uint b = first; b * 32 < pc.cols; b += pc.lanes) {
        precise vec4 v[8];
        [[unroll]] for (uint i = 0; i < 8; i++) {
            v[i] = read_floats(inputs, from4 + b * 8 + i);
            if ((MODE & MODE_NORM) != 0) {
                v[i] = v[i] * scale;
                v[i] = v[i] * read_floats(vectors, pc.norm / 4 + b * 8 + i);
            }
            if ((MODE & MODE_FLOAT) != 0)
                floats[row * pc.out4 + b * 8 + i] = v[i];
        }
        if ((MODE & MODE_QUANTIZED) != 0) {
            uvec4 record[5];
            quantize_block(v, TERMS, record);
            [[unroll]] for (uint i = 0; i < RECORD; i++)
                act[row * pc.act4 + b * RECORD + i] = record[i];
        }
    }
}

#endif
