// Rows as the next op's input, by a workgroup: a lane has four neighbouring columns.
#include "team.glsl"

layout(std430, binding = BIND_FLOATS) writeonly buffer Floats { float floats[]; };

vec4 row_values(uint at); // four values of the rows: whoever includes this knows where they lie

#include "fold_team.glsl"

// Of the norm of the row that begins at `row4`.
float norm_scale(uint row4, uint cols, float eps)
{
    uint me = lane();
    precise vec4 p = vec4(0.0);
    for (uint k = me; k * 4 < cols; k += LANES) {
        vec4 x = row_values(row4 + k); // zeros past the last column
        p = fma(x, x, p);
    }
    precise float mean = fold_team(p) / float(cols);
    return factor_of(mean, eps);
}

// The lane's four of a block's values. scale: of the row's norm.
void finish_block(uint row, uint block, float scale, precise vec4 v, Next next)
{
    uint k4 = block * 8 + lane() % 8;
    if (next.norm1 != NONE) {
        v = v * scale;
        v = v * read_floats(vectors, next.norm1 / 4 + k4);
    }
    if (next.floats4 != 0)
        [[unroll]] for (uint i = 0; i < 4; i++)
            floats[(row * next.floats4 + k4) * 4 + i] = v[i];
    if (next.terms != 0)
        quantize_team(v, next.terms, (row * next.act4 + block * (1 + 2 * next.terms)) * 4);
}

// All of a row, which begins at `row4`.
void finish_row(uint row, uint row4, uint cols, float eps, Next next)
{
    float scale = next.norm1 != NONE ? norm_scale(row4, cols, eps) : 1.0;
    for (uint b = lane() / 8; b * 32 < cols; b += LANES / 8)
        finish_block(row, b, scale, row_values(row4 + b * 8 + lane() % 8), next);
}
