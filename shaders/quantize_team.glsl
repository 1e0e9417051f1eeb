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

// Four values of a row from column 4 * k4 on, by LayerNorm.
vec4 centred_values(uint row4, uint k4, float mean, float scale)
{
    precise vec4 v = centred(row_values(row4 + k4), k4 * 4, mean) * scale;
    v = v * read_floats(vectors, pc.norm1 / 4 + k4);
    if (pc.bias1 != NONE)
        v = v + read_floats(vectors, pc.bias1 / 4 + k4);
    return v;
}

// The same by the row's norm, where it has one.
vec4 scaled_values(uint row4, uint k4, float scale)
{
    precise vec4 v = row_values(row4 + k4);
    if ((MODE & MODE_NORM) != 0) {
        v = v * scale;
        v = v * read_floats(vectors, pc.norm1 / 4 + k4);
    }
    return v;
}

shared uint tops[LANES];

// The largest magnitude of a row's values, NaN's bits where one is not finite: they are above all.
uint row_most(uint row4, float mean, float scale)
{
    uint most = 0, me = lane();
    for (uint k4 = me; k4 * 4 < pc.cols; k4 += LANES) {
        vec4 v = MEAN ? centred_values(row4, k4, mean, scale) : scaled_values(row4, k4, scale);
        vec4 size = abs(v);
        float top = max(max(size.x, size.y), max(size.z, size.w));
        most = max(most, all(are_finite(v)) ? floatBitsToUint(top) : NAN_BITS);
    }
    tops[me] = most;
    for (uint half_lanes = LANES / 2; half_lanes > 0; half_lanes /= 2) {
        barrier();
        if (me < half_lanes) {
            most = max(most, tops[me + half_lanes]);
            tops[me] = most;
        }
    }
    barrier();
    return tops[0];
}

// A row by LayerNorm.
void centre_row(uint row, uint row4, Next next)
{
    precise float mean = row_sum(row4, false, 0.0) / float(pc.cols);
    precise float spread = row_sum(row4, true, mean) / float(pc.cols);
    float scale = factor_of(spread, pc.eps);
    if ((MODE & MODE_ROW_SCALE) != 0)
        shared_most = row_most(row4, mean, scale);
    for (uint b = lane() / 8; b * 32 < pc.cols; b += LANES / 8) {
        vec4 v = centred_values(row4, b * 8 + lane() % 8, mean, scale);
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
    if ((MODE & MODE_RANGE) != 0)
        shared_most = floatBitsToUint(pc.range);
    if (MEAN) {
        centre_row(row, from4, next);
        return;
    }
    if ((MODE & MODE_ROW_SCALE) != 0) {
        float scale = (MODE & MODE_NORM) != 0 ? norm_scale(from4, pc.cols, pc.eps) : 1.0;
        shared_most = row_most(from4, 0.0, scale);
    }
    finish_row(row, from4, pc.cols, pc.eps, next);
}
