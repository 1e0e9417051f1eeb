// Norms of the float engine, a head of a row (or the whole row) a workgroup: the result with its mean
// and factor, or the gradient of what was normalized.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "train.glsl"

layout(push_constant) uniform Push { push_train_norm pc; };

shared vec2 partial[TRAIN_LANES];

// The sums over the workgroup, folded in halves.
vec2 fold(vec2 mine)
{
    const uint me = gl_LocalInvocationIndex;
    barrier(); // the sums before have been read
    partial[me] = mine;
    for (uint n = TRAIN_LANES / 2; n > 0; n /= 2) {
        barrier();
        if (me < n)
            partial[me] += partial[me + n];
    }
    barrier();
    return partial[0];
}

float weight_at(uint head, uint i)
{
    return pc.weight == NONE ? 1.0 : weights[pc.weight + head * pc.weights1 + i];
}

void normalize(uint row, uint head)
{
    const uint x = pc.x + row * pc.x1 + head * pc.dim, y = pc.y + row * pc.y1 + head * pc.dim;
    float mean = 0.0, squares = 0.0;
    if (pc.layer != 0) {
        for (uint i = gl_LocalInvocationIndex; i < pc.dim; i += TRAIN_LANES)
            mean += values[x + i];
        mean = fold(vec2(mean, 0.0)).x / float(pc.dim);
    }
    for (uint i = gl_LocalInvocationIndex; i < pc.dim; i += TRAIN_LANES)
        squares += (values[x + i] - mean) * (values[x + i] - mean);
    squares = fold(vec2(squares, 0.0)).x / float(pc.dim);
    const float r = 1.0 / sqrt(squares + pc.eps);
    for (uint i = gl_LocalInvocationIndex; i < pc.dim; i += TRAIN_LANES) {
        float z = (values[x + i] - mean) * r * weight_at(head, i);
        values[y + i] = pc.bias == NONE ? z : z + weights[pc.bias + i];
    }
    if (gl_LocalInvocationIndex == 0) {
        values[pc.stat + row * pc.stat1 + 2 * head] = mean;
        values[pc.stat + row * pc.stat1 + 2 * head + 1] = r;
    }
}

// With z = (x - mean) * r and dz = dy * weight: dx = r * (dz - mean of dz - z * mean of (dz * z)),
// without the mean of dz where none was taken off.
void back(uint row, uint head)
{
    const uint x = pc.x + row * pc.x1 + head * pc.dim, y = pc.y + row * pc.y1 + head * pc.dim;
    const float mean = values[pc.stat + row * pc.stat1 + 2 * head];
    const float r = values[pc.stat + row * pc.stat1 + 2 * head + 1];
    vec2 sums = vec2(0.0); // of dz, of dz * z
    for (uint i = gl_LocalInvocationIndex; i < pc.dim; i += TRAIN_LANES) {
        float dz = gradients[y + i] * weight_at(head, i);
        sums += vec2(dz, dz * ((values[x + i] - mean) * r));
    }
    sums = fold(sums) / float(pc.dim);
    const float level = pc.layer != 0 ? sums.x : 0.0;
    for (uint i = gl_LocalInvocationIndex; i < pc.dim; i += TRAIN_LANES) {
        float dz = gradients[y + i] * weight_at(head, i), z = (values[x + i] - mean) * r;
        gradients[x + i] += r * (dz - level - z * sums.y);
    }
}

void main()
{
    const uint row = group() / pc.heads, head = group() % pc.heads;
    if (row >= pc.rows) // of the whole workgroup
        return;
    if (MODE == TRAIN_NORM)
        normalize(row, head);
    else
        back(row, head);
}
