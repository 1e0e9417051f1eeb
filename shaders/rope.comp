// Turns q and k by their position and writes k and v into their KV block: an invocation takes a pair
// of a head's elements.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

// The rows of q, k and v come as texels (`inputs`) and go back as words, each to the invocation that
// read it; the step's words come as texels as well (`cache`).
layout(std430, binding = 5) writeonly buffer Qkv { float qkv[]; };
layout(std430, binding = 6) buffer Kv { uint kv[]; };

layout(push_constant) uniform Push {
    uint lanes; // invocations of a row: pairs of q, k and v
    uint qkv1, k1, v1; // floats of a row; where k and v begin in it
    uint heads, kv_heads, k_dim, v_dim, rope_dims, neox;
    uint position1, sequence1, rope1, table1, table_stride; // in the step's words
    uint block1, v_offset1;                                 // words of a KV block, where V begins
} pc;

uint pick(uvec4 v, uint i)
{
    uvec2 pair = i % 4 >= 2 ? v.zw : v.xy;
    return i % 2 != 0 ? pair.y : pair.x;
}

uint step_word(uint i)
{
    return pick(texelFetch(cache, int(i / 4)), i);
}

// Two elements share a word of K, and may be written by two invocations.
void put_k(uint block, uint element, uint slot, float x)
{
    uint at = block + element / 2 * 32 + slot, shift = element % 2 * 16;
    atomicAnd(kv[at], ~(0xffffu << shift));
    atomicOr(kv[at], cached_half(x) << shift);
}

void main()
{
    uint row = gl_GlobalInvocationID.x / pc.lanes, pair = gl_GlobalInvocationID.x % pc.lanes;
    if (row >= step_word(STEP_ROWS))
        return;
    uint position = step_word(pc.position1 + row), slot = position % 32;
    uint table = pc.table1 + step_word(pc.sequence1 + row) * pc.table_stride;
    uint block = step_word(table + position / 32) * pc.block1;
    uint q_pairs = (pc.heads + pc.kv_heads) * pc.k_dim / 2;
    if (pair >= q_pairs) {
        uint e = (pair - q_pairs) * 2, head = e / pc.v_dim, d = e % pc.v_dim;
        uint at = row * pc.qkv1 + pc.v1 + e;
        vec4 v = read_floats(inputs, at / 4);
        vec2 xy = at % 4 != 0 ? v.zw : v.xy;
        kv[block + pc.v_offset1 + ((head * 32 + slot) * pc.v_dim + d) / 2] =
            cached_half(xy.x) | cached_half(xy.y) << 16;
        return;
    }
    uint head = pair / (pc.k_dim / 2), i = pair % (pc.k_dim / 2), n = pc.rope_dims / 2;
    bool turned = i < n;
    uint a = turned && pc.neox != 0 ? i : 2 * i, b = turned && pc.neox != 0 ? i + n : 2 * i + 1;
    bool is_k = head >= pc.heads;
    uint in_k = (head - pc.heads) * pc.k_dim;
    uint base = row * pc.qkv1 + (is_k ? pc.k1 + in_k : head * pc.k_dim);
    uvec4 first = texelFetch(inputs, int((base + a) / 4));
    uvec4 second = pc.neox != 0 ? texelFetch(inputs, int((base + b) / 4)) : first;
    precise float x = uintBitsToFloat(pick(first, base + a));
    precise float y = uintBitsToFloat(pick(second, base + b));
    if (turned) {
        float c = uintBitsToFloat(step_word(pc.rope1 + row * pc.rope_dims + i));
        float s = uintBitsToFloat(step_word(pc.rope1 + row * pc.rope_dims + n + i));
        precise float ys = y * s, xs = x * s;
        precise float tx = fma(x, c, -ys), ty = fma(y, c, xs);
        x = tx;
        y = ty;
    }
    if (is_k) {
        put_k(block, in_k + a, slot, x);
        put_k(block, in_k + b, slot, y);
    } else {
        qkv[base + a] = x;
        qkv[base + b] = y;
    }
}
