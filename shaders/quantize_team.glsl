// A row is a workgroup's: four neighbouring columns a lane. A row's squares make 4 * LANES partial
// sums, folded in halves.
#include "team.glsl"

shared vec4 partial[LANES];

float row_scale(uint row4)
{
    uint me = lane();
    precise vec4 p = vec4(0.0);
    for (uint k = me; k * 4 < pc.cols; k += LANES) {
        vec4 x = read_floats(inputs, row4 + k); // zeros past the last column
        p = fma(x, x, p);
    }
    partial[me] = p;
    for (uint half_lanes = LANES / 2; half_lanes > 0; half_lanes /= 2) {
        barrier();
        if (me < half_lanes) {
            p += partial[me + half_lanes];
            partial[me] = p;
        }
    }
    barrier();
    p = partial[0];
    p.xy += p.zw;
    precise float mean = (p.x + p.y) / float(pc.cols);
    precise float scale = 1.0 / sqrt(mean + pc.eps);
    return scale;
}

void main()
{
    uint row = gl_WorkGroupID.y;
    if (row >= step_words[pc.count])
        return;
    uint from4 = (pc.gather1 == NONE ? row : step_words[pc.gather1 + row]) * pc.in4;
    float scale = (MODE & MODE_NORM) != 0 ? row_scale(from4) : 1.0;
    uint blocks = (pc.cols + 31) / 32;
    for (uint b = lane() / 8; b < blocks; b += LANES / 8) {
        uint k4 = b * 8 + lane() % 8;
        precise vec4 v = read_floats(inputs, from4 + k4);
        if ((MODE & MODE_NORM) != 0) {
            v = v * scale;
            v = v * read_floats(vectors, pc.norm / 4 + k4);
        }
        if ((MODE & MODE_FLOAT) != 0)
            [[unroll]] for (uint i = 0; i < 4; i++)
                result[(row * pc.out4 + k4) * 4 + i] = v[i];
        if ((MODE & MODE_QUANTIZED) != 0)
            quantize_team(v, (row * pc.act4 + b * RECORD) * 4);
    }
}
