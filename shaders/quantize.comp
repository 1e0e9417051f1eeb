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

// Block `b` of a row, normalized where that is asked for.
void block_values(uint from4, uint b, float mean, float scale, out vec4 v[8])
{
    [[unroll]] for (uint i = 0; i < 8; i++) {
        precise vec4 y = read_floats(inputs, from4 + b * 8 + i);
        if (MEAN)
            y = centred(y, b * 32 + i * 4, mean);
        if ((MODE & MODE_NORM) != 0) {
            y = y * scale;
            y = y * read_floats(vectors, pc.norm1 / 4 + b * 8 + i);
        }
        if (MEAN && pc.bias1 != NONE)
            y = y + read_floats(vectors, pc.bias1 / 4 + b * 8 + i);
        v[i] = y;
    }
}

// As most_of, over a row.
uint row_most(uint from4, float mean, float scale)
{
    uint most = 0;
    for (uint b = 0; b * 32 < pc.cols; b++) {
        vec4 v[8];
        block_values(from4, b, mean, scale, v);
        most = max(most, most_of(v)); // a NaN's bits are above every number's
    }
    return most;
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
    uint most = (MODE & MODE_ROW_SCALE) != 0 ? row_most(from4, mean, scale) : floatBitsToUint(pc.range);
    for (uint b = first; b * 32 < pc.cols; b += pc.lanes) {
        vec4 v[8];
        block_values(from4, b, mean, scale, v);
        if ((MODE & MODE_FLOAT) != 0)
            [[unroll]] for (uint i = 0; i < 8; i++)
                floats[row * pc.out4 + b * 8 + i] = v[i];
        if ((MODE & MODE_QUANTIZED) != 0) {
            uvec4 record[5];
            uint mine = (MODE & MODE_ROW_SCALE) != 0 ? most : most_of(v);
            if ((MODE & MODE_RANGE) != 0 && mine != NAN_BITS)
                mine = most;
            quantize_under(mine, v, TERMS, record);
            [[unroll]] for (uint i = 0; i < RECORD; i++)
                act[row * pc.act4 + b * RECORD + i] = record[i];
        }
    }
}

#endif
