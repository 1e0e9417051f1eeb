// The float engine's ops that make each number by itself: an invocation has one, or of RoPE a pair.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "train.glsl"
#include "activate.glsl"

layout(push_constant) uniform Push { push_train_rows pc; };

const bool BACK = MODE % 2 == 1;

float x_at(uint at)
{
    return BACK ? gradients[at] : values[at];
}

float old_at(uint row, uint k)
{
    return pc.old == NONE ? 0.0 : x_at(pc.old + row * pc.old1 + k);
}

void put(uint at, float y)
{
    if (BACK)
        gradients[at] = y;
    else
        values[at] = y;
}

// --- Activations and their slopes: silu's and gelu's are x s(x), with s' = s (1 - s) times the
// slope of what s is taken of.

float slope_of(float x)
{
    if (pc.function == ACT_RELU)
        return x > 0.0 ? 1.0 : 0.0;
    if (pc.function == ACT_RELU2)
        return x > 0.0 ? 2.0 * x : 0.0;
    if (pc.function == ACT_GELU_ERF) // the density at x: 1 / sqrt(2 pi)
        return normal_cdf(x) + x * (uintBitsToFloat(0x3ecc422au) * exp_f32(-0.5 * x * x));
    float inner = x, rise = 1.0;
    if (pc.function == ACT_GELU) {
        float square = x * x, c = uintBitsToFloat(0x3fcc422au), c3 = uintBitsToFloat(0x3d922279u);
        inner = x * fma(square, c3, c);
        rise = fma(3.0 * c3, square, c);
    }
    float s = 1.0 / (1.0 + exp_f32(-inner));
    return s * (1.0 + x * (1.0 - s) * rise);
}

void activate_back(uint row, uint k)
{
    float x = values[pc.p + row * pc.p1 + k], d = gradients[pc.x + row * pc.x1 + k];
    float up = pc.q == NONE ? 1.0 : values[pc.q + row * pc.q1 + k];
    gradients[pc.y + row * pc.y1 + k] += d * slope_of(x) * up;
    if (pc.z != NONE)
        gradients[pc.z + row * pc.z1 + k] += d * activate(pc.function, x);
}

// --- RoPE: a pair of a head, or two numbers behind those that are turned.

void turn(uint row, uint k)
{
    uint pairs = (pc.dim + 1) / 2, head = k / pairs, pair = k % pairs, turned = pc.rope_dims / 2;
    bool turns = pair < turned;
    uint first = pc.neox != 0 && turns ? pair : 2 * pair;
    uint second = pc.neox != 0 && turns ? pair + turned : first + 1;
    uint x = pc.x + row * pc.x1 + head * pc.dim, y = pc.y + row * pc.y1 + head * pc.dim;
    bool two = second < pc.dim;
    float a = x_at(x + first), b = two ? x_at(x + second) : 0.0;
    if (turns) {
        uint at = pc.table + row * pc.table1 + pair;
        float c = uintBitsToFloat(tables[at]), s = uintBitsToFloat(tables[at + turned]);
        s = BACK ? -s : s;
        float was = a;
        a = a * c - b * s;
        b = b * c + was * s;
    }
    put(y + first, a + old_at(row, head * pc.dim + first));
    if (two)
        put(y + second, b + old_at(row, head * pc.dim + second));
}

// --- Looked up rows, which lie one behind the other. The gradient of one: the sum over those that
// looked it up, in their order.

void embed_back(uint row, uint k)
{
    uint begin = tables[pc.table + row], end = tables[pc.table + row + 1];
    float sum = 0.0;
    for (uint i = begin; i < end; i++)
        sum += pc.scale * gradients[pc.x + tables[pc.table1 + i] * pc.x1 + k];
    gradients[pc.y + row * pc.y1 + k] = sum;
}

float capped(float x)
{
    x *= pc.scale;
    return pc.cap > 0.0 ? pc.cap * tanh_f32(x / pc.cap) : x;
}

float cap_slope(uint row, uint k)
{
    float t = pc.cap > 0.0 ? values[pc.p + row * pc.p1 + k] / pc.cap : 0.0;
    return pc.scale * (1.0 - t * t);
}

float compute(uint row, uint k)
{
    if (MODE == TRAIN_EMBED)
        return pc.scale * values[pc.x + tables[pc.table + row] * pc.x1 + k];
    float x = x_at(pc.x + row * pc.x1 + k);
    if (MODE == TRAIN_CAP)
        return capped(x);
    if (MODE == TRAIN_CAP_BACK)
        return x * cap_slope(row, k);
    if (MODE == TRAIN_ACTIVATE)
        return activate(pc.function, x) * (pc.z == NONE ? 1.0 : values[pc.z + row * pc.z1 + k]);
    return pc.scale * x;
}

void main()
{
    const uint at = group() * gl_WorkGroupSize.x + gl_LocalInvocationIndex;
    const uint row = at / pc.width, k = at % pc.width;
    if (row >= pc.rows)
        return;
    if (MODE == TRAIN_ROPE || MODE == TRAIN_ROPE_BACK)
        turn(row, k);
    else if (MODE == TRAIN_EMBED_BACK)
        embed_back(row, k);
    else if (MODE == TRAIN_ACTIVATE_BACK)
        activate_back(row, k);
    else
        put(pc.y + row * pc.y1 + k, old_at(row, k) + compute(row, k));
}
