// The input of matrices: a norm where the stage has one, then quantization by blocks of 32. A
// few invocations share a row's blocks; each sums the row's squares for itself.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(push_constant) uniform Push { push_quantize pc; };

const bool MEAN = (MODE & MODE_MEAN) != 0;

// Four numbers from column k on less the mean; zeros past the last column.
vec4 centred(vec4 x, uint k, float mean)
{
    precise vec4 y = x - vec4(mean);
    return mix(vec4(0.0), y, lessThan(uvec4(k, k + 1, k + 2, k + 3), uvec4(pc.cols)));
}

#ifdef TEAM
#include "quantize_team.glsl"
#else

layout(std430, binding = BIND_OUT2) writeonly buffer Act { uvec4 act[]; };
layout(std430, binding = BIND_FLOATS) writeonly buffer Floats { vec4 floats[]; };

// The sum over a row of its numbers, or of the squares of how far they are from the mean.
float row_sum(uint row4, bool squares, float mean)
{
    precise vec4 p[4];
    [[unroll]] for (int i = 0; i < 4; i++)
        p[i] = vec4(0.0);
    for (uint k = 0; k < pc.cols; k += 16) {
        [[unroll]] for (uint i = 0; i < 4; i++) {
            vec4 x = read_floats(inputs, row4 + k / 4 + i); // zeros past the last column
            if (MEAN && squares)
                x = centred(x, k + 4 * i, mean);
            p[i] = squares ? fma(x, x, p[i]) : p[i] + x;
        }
    }
    p[0] += p[2];
    p[1] += p[3];
    p[0] += p[1];
    p[0].xy += p[0].zw;
    precise float sum = p[0].x + p[0].y;
    return sum;
}

void main()
{
    uint row = invocation() / pc.lanes, first = invocation() % pc.lanes;
    if (row / pc.each >= step_words[pc.count])
        return;
    uint from4 = (pc.gather1 == NONE ? row : step_words[pc.gather1 + row]) * pc.in4;
    precise float mean = MEAN ? row_sum(from4, false, 0.0) / float(pc.cols) : 0.0;
    float scale = 1.0;
    if ((MODE & MODE_NORM) != 0) {
        precise float spread = row_sum(from4, true, mean) / float(pc.cols);
        scale = factor_of(spread, pc.eps);
    }
    for (uint b = first; b * 32 < pc.cols; b += pc.lanes) {
        precise vec4 v[8];
        [[unroll]] for (uint i = 0; i < 8; i++) {
            v[i] = read_floats(inputs, from4 + b * 8 + i);
            if (MEAN)
                v[i] = centred(v[i], b * 32 + i * 4, mean);
            if ((MODE & MODE_NORM) != 0) {
                v[i] = v[i] * scale;
                v[i] = v[i] * read_floats(vectors, pc.norm1 / 4 + b * 8 + i);
            }
            if (MEAN && pc.bias1 != NONE)
                v[i] = v[i] + read_floats(vectors, pc.bias1 / 4 + b * 8 + i);
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
