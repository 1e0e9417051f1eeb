// Gradients that are sums over rows: of biases, and of norms' weights. A workgroup has TRAIN_COLUMNS
// columns; of each, TRAIN_COLUMNS invocations sum every so many-th row, in order, then their sums are
// folded in order.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "train.glsl"

layout(push_constant) uniform Push { push_train_sums pc; };

const uint SHARE = TRAIN_TEAM / TRAIN_COLUMNS; // invocations of a column

shared float partial[TRAIN_TEAM];

float term(uint row, uint head, uint k)
{
    float d = gradients[pc.y + row * pc.y1 + head * pc.dim + k];
    if (MODE == TRAIN_SUM_BIAS)
        return d;
    float mean = values[pc.stat + row * pc.stat1 + 2 * head];
    float r = values[pc.stat + row * pc.stat1 + 2 * head + 1];
    return d * ((values[pc.x + row * pc.x1 + head * pc.dim + k] - mean) * r);
}

void main()
{
    const uint me = gl_LocalInvocationIndex, part = me / TRAIN_COLUMNS;
    const uint column = gl_WorkGroupID.x * TRAIN_COLUMNS + me % TRAIN_COLUMNS;
    const uint columns = pc.each != 0 ? pc.heads * pc.dim : pc.dim;
    const uint heads = pc.each != 0 ? 1 : pc.heads, terms = pc.rows * heads;
    float sum = 0.0;
    for (uint i = part; i < terms && column < columns; i += SHARE)
        sum += term(i / heads, pc.each != 0 ? column / pc.dim : i % heads, column % pc.dim);
    partial[me] = sum;
    barrier();
    if (part != 0 || column >= columns)
        return;
    sum = 0.0;
    for (uint i = 0; i < SHARE; i++)
        sum += partial[i * TRAIN_COLUMNS + me];
    weight_gradients[pc.to + column] += sum;
}
