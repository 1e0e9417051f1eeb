// A row is a workgroup's.
#include "finish_team.glsl"

vec4 row_values(uint at)
{
    return read_floats(inputs, at);
}

void main()
{
    uint row = gl_WorkGroupID.y;
    if (row >= step_words[pc.count])
        return;
    uint from4 = (pc.gather1 == NONE ? row : step_words[pc.gather1 + row]) * pc.in4;
    finish_row(row, from4, pc.cols, pc.eps,
               Next(pc.act4, (MODE & MODE_FLOAT) != 0 ? pc.out4 : 0,
                    (MODE & MODE_QUANTIZED) != 0 ? TERMS : 0,
                    (MODE & MODE_NORM) != 0 ? pc.norm : NONE));
}
