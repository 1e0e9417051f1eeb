// Turns q and k by their position and writes k and v into their KV block: an invocation takes a pair
// of a head's elements, or 32 of a key or a value that have one scale.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

// The rows of q, k and v come as texels (`inputs`) and go back as words, each to the invocation that
// read it; the step's words come as texels as well (`cache`).
layout(std430, binding = 5) writeonly buffer Qkv { float qkv[]; };
layout(std430, binding = 6) buffer Kv { uint kv[]; };

#include "cache.glsl"

layout(push_constant) uniform Push {
    uint lanes; // invocations of a row: pairs of q, k and v; of codes pairs of q, then blocks of k and v
    uint qkv1, k1, v1; // floats of a row; where k and v begin in it
    uint heads, kv_heads, k_dim, v_dim, rope_dims, neox;
    uint position1, sequence1, rope1, table1, table_stride; // in the step's words
    uint block1, v_offset1;                                 // words of a KV block, where V begins
} pc;

uint step_word(uint i)
{
    return word_at(cache, i);
}

// Half a word: another invocation may write the other half.
void put_half(uint at, bool second, float x)
{
    uint shift = second ? 16 : 0;
    atomicAnd(kv[at], ~(0xffffu << shift));
    atomicOr(kv[at], cached_half(x) << shift);
}

void put_k(uint block, uint element, uint slot, float x)
{
    put_half(block + element / 2 * 32 + slot, element % 2 != 0, x);
}

// Element e of the key that begins at float `base`, turned.
float turned(uint row, uint base, uint e)
{
    uint n = pc.rope_dims / 2, i = pc.neox != 0 ? e % n : e / 2;
    bool second = pc.neox != 0 ? e >= n : e % 2 != 0;
    uint other = pc.neox == 0 ? e ^ 1 : second ? e - n : e + n;
    precise float x = uintBitsToFloat(word_at(inputs, base + e));
    if (e >= pc.rope_dims)
        return x;
    float y = uintBitsToFloat(word_at(inputs, base + other));
    float c = uintBitsToFloat(step_word(pc.rope1 + row * pc.rope_dims + i));
    float s = uintBitsToFloat(step_word(pc.rope1 + row * pc.rope_dims + n + i));
    precise float ys = y * s;
    precise float t = fma(x, c, second ? ys : -ys);
    return t;
}

// Elements d to d + 31 of a head of `dim`, whose keys or values begin at word `head1`, as codes.
void put_codes(vec4 v[8], uint head1, uint dim, uint d, uint slot, bool is_k)
{
    vec4 most = vec4(0.0);
    bool finite = true;
    [[unroll]] for (uint i = 0; i < 8; i++) {
        most = max(most, abs(v[i]));
        finite = finite && all(lessThanEqual(abs(v[i]), vec4(3.402823466e38)));
    }
    precise float s = max(max(most.x, most.y), max(most.z, most.w)) / 127.0;
    s = unpackHalf2x16(cached_half(finite ? s : 0.0)).x;
    precise float inv = s > 0.0 ? 1.0 / s : 0.0;
    put_half(head1 + dim * 8 + d / 32 * 16 + slot / 2, slot % 2 != 0, s);
    uint at = is_k ? d * 8 + slot : (slot * dim + d) / 4, apart = is_k ? 32 : 1;
    [[dont_unroll]] for (uint i = 0; i < 8; i++) { // the values go round
        precise vec4 x = s > 0.0 ? v[0] : vec4(0.0);
        precise vec4 q = clamp(roundEven(x * inv), vec4(-127.0), vec4(127.0));
        uvec4 code = uvec4(ivec4(q)) & 255;
        kv[head1 + at + i * apart] = code.x | code.y << 8 | code.z << 16 | code.w << 24;
        [[unroll]] for (uint j = 0; j < 7; j++)
            v[j] = v[j + 1];
    }
}

// The n-th block of 32 of a row's keys, and then of its values.
void put_block(uint row, uint n, uint block, uint slot)
{
    uint of_keys = pc.kv_heads * pc.k_dim / 32;
    bool is_k = n < of_keys;
    uint dim = is_k ? pc.k_dim : pc.v_dim, e = (is_k ? n : n - of_keys) * 32;
    uint base = row * pc.qkv1 + (is_k ? pc.k1 : pc.v1) + e / dim * dim, d = e % dim;
    vec4 v[8];
    [[dont_unroll]] for (uint i = 0; i < 8; i++) { // the values go round
        vec4 next = read_floats(inputs, (base + d) / 4 + i);
        for (uint j = 0; j < (is_k ? 4 : 0); j++) {
            float x = turned(row, base, d + 4 * i + j);
            next = vec4(next.yzw, x);
        }
        [[unroll]] for (uint j = 0; j < 7; j++)
            v[j] = v[j + 1];
        v[7] = next;
    }
    put_codes(v, block + (is_k ? 0 : pc.v_offset1) + e / dim * head4(dim) * 4, dim, d, slot, is_k);
}

void main()
{
    uint row = gl_GlobalInvocationID.x / pc.lanes, pair = gl_GlobalInvocationID.x % pc.lanes;
    if (row >= step_word(STEP_ROWS))
        return;
    uint position = step_word(pc.position1 + row), slot = position % 32;
    uint table = pc.table1 + step_word(pc.sequence1 + row) * pc.table_stride;
    uint block = step_word(table + position / 32) * pc.block1;
    uint q_pairs = (pc.heads + (CODES ? 0 : pc.kv_heads)) * pc.k_dim / 2;
    if (CODES && pair >= q_pairs) {
        put_block(row, pair - q_pairs, block, slot);
        return;
    }
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
