// A row is a workgroup's.
#include "finish_team.glsl"

vec4 row_values(uint at)
{
    return read_floats(inputs, at);
}

// The sum over a row of its numbers, or of the squares of how far they are from the mean.
float row_sum(uint row4, bool squares, float mean)
{
    precise vec4 p = vec4(0.0);
    for (uint k = lane(); k * 4 < pc.cols; k += LANES) {
        vec4 x = row_values(row4 + k); // zeros past the last column
        if (squares)
            x = centred(x, k * 4, mean);
        p = squares ? fma(x, x, p) : p + x;
    }
    return fold_team(p);
}

// A row by LayerNorm.
void centre_row(uint row, uint row4, Next next)
{
    precise float mean = row_sum(row4, false, 0.0) / float(pc.cols);
    precise float spread = row_sum(row4, true, mean) / float(pc.cols);
    float scale = factor_of(spread, pc.eps);
    for (uint b = lane() / 8; b * 32 < pc.cols; b += LANES / 8) {
        uint k4 = b * 8 + lane() % 8;
        precise vec4 v = centred(row_values(row4 + k4), k4 * 4, mean) * scale;
        v = v * read_floats(vectors, pc.norm1 / 4 + k4);
        if (pc.bias1 != NONE)
            v = v + read_floats(vectors, pc.bias1 / 4 + k4);
        finish_block(row, b, 1.0, v, next);
    }
}

void main()
{
    uint row = gl_WorkGroupID.y;
    if (row / pc.each >= step_words[pc.count])
        return;
    uint from4 = (pc.gather1 == NONE ? row : step_words[pc.gather1 + row]) * pc.in4;
    Next next = Next(pc.act4, (MODE & MODE_FLOAT) != 0 ? pc.out4 : 0,
                     (MODE & MODE_QUANTIZED) != 0 ? TERMS : 0,
                     (MODE & MODE_NORM) != 0 && !MEAN ? pc.norm1 : NONE);
    if (MEAN)
        centre_row(row, from4, next);
    else
        finish_row(row, from4, pc.cols, pc.eps, next);
}
