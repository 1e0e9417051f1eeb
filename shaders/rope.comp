// Rotates q and k by their position and writes k and v into their KV block: an invocation takes a pair
// of a head's elements, or 32 of a key or a value that have one scale.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

// The rows of q, k and v come as texels (`inputs`) and go back as words, each to the invocation that
// read it; the step's words come as texels as well (`cache`).
layout(std430, binding = BIND_OUT) writeonly buffer Qkv { float qkv[]; };
layout(std430, binding = BIND_OUT2) buffer Kv { uint kv[]; };

#include "cache.glsl"

layout(push_constant) uniform Push { push_rope pc; };

uint step_word(uint i)
{
    return word_at(cache, i);
}

// Half a word: another invocation may write the other half.
void put_half(uint at, bool second, uint half_bits)
{
    uint shift = second ? 16 : 0;
    atomicAnd(kv[at], ~(0xffffu << shift));
    atomicOr(kv[at], half_bits << shift);
}

// Element `element` of a key that begins at word `head1`.
void put_k(uint head1, uint element, uint slot, float x)
{
    if (FLOATS) {
        kv[head1 + element * KV_POSITIONS + slot] = floatBitsToUint(x);
        return;
    }
    put_half(head1 + element / 2 * KV_POSITIONS + slot, element % 2 != 0, cached_half(x));
}

// Element e of the key that begins at float `base`, rotated.
float rotated(uint row, uint base, uint e)
{
    uint n = pc.rope_dims / 2, i = pc.neox != 0 ? e % n : e / 2;
    bool second = pc.neox != 0 ? e >= n : e % 2 != 0;
    uint other = pc.neox == 0 ? e ^ 1 : second ? e - n : e + n;
    precise float x = uintBitsToFloat(word_at(inputs, base + e));
    if (e >= pc.rope_dims)
        return x;
    float y = uintBitsToFloat(word_at(inputs, base + other));
    float c = uintBitsToFloat(step_word(pc.rope1 + row * pc.ropes1 + i));
    float s = uintBitsToFloat(step_word(pc.rope1 + row * pc.ropes1 + n + i));
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
        finite = finite && all(are_finite(v[i]));
    }
    precise float s = max(max(most.x, most.y), max(most.z, most.w)) / 127.0;
    uint half_bits = finite ? cached_half(s) : NAN_HALF;
    s = finite ? half_of(half_bits) : 0.0;
    precise float inv = s > 0.0 ? 1.0 / s : 0.0;
    put_half(head1 + dim * 8 + d / 32 * 16 + slot / 2, slot % 2 != 0, half_bits);
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
            float x = rotated(row, base, d + 4 * i + j);
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
    uint row = invocation() / pc.lanes, pair = invocation() % pc.lanes;
    if (row >= step_word(STEP_ROWS))
        return;
    uint position = step_word(pc.position1 + row), slot = position % KV_POSITIONS;
    uint table = pc.table1 + step_word(pc.sequence1 + row) * pc.table_stride;
    uint block = step_word(table + position / KV_POSITIONS) * pc.block1;
    uint of_head = even(pc.k_dim) / 2, q_pairs = (pc.heads + (CODES ? 0 : pc.kv_heads)) * of_head;
    if (CODES && pair >= q_pairs) {
        put_block(row, pair - q_pairs, block, slot);
        return;
    }
    if (pair >= q_pairs) {
        uint of_value = even(pc.v_dim) / 2, head = (pair - q_pairs) / of_value;
        uint d = (pair - q_pairs) % of_value * 2;
        vec2 xy = pair_at(row * pc.qkv1 + pc.v1 + head * pc.v_dim + d, d + 1 < pc.v_dim);
        uint to = (head * KV_POSITIONS + slot) * padded(pc.v_dim) + d, v1 = block + pc.v_offset1;
        if (FLOATS) {
            kv[v1 + to] = floatBitsToUint(xy.x);
            kv[v1 + to + 1] = floatBitsToUint(xy.y);
        } else {
            kv[v1 + to / 2] = cached_half(xy.x) | cached_half(xy.y) << 16;
        }
        return;
    }
    uint head = pair / of_head, i = pair % of_head, n = pc.rope_dims / 2;
    bool rotated = i < n;
    uint a = rotated && pc.neox != 0 ? i : 2 * i, b = rotated && pc.neox != 0 ? i + n : 2 * i + 1;
    bool is_k = head >= pc.heads, is_pair = b < pc.k_dim;
    uint kv_head = head - pc.heads;
    uint base = row * pc.qkv1 + (is_k ? pc.k1 + kv_head * pc.k_dim : pc.q1 + head * pc.k_dim);
    uvec4 first = texelFetch(inputs, int((base + a) / 4));
    uvec4 second = pc.neox != 0 || ODD ? texelFetch(inputs, int((base + b) / 4)) : first;
    precise float x = uintBitsToFloat(pick(first, base + a));
    precise float y = uintBitsToFloat(pick(second, base + b));
    if (rotated) {
        float c = uintBitsToFloat(step_word(pc.rope1 + row * pc.ropes1 + i));
        float s = uintBitsToFloat(step_word(pc.rope1 + row * pc.ropes1 + n + i));
        precise float ys = y * s, xs = x * s;
        precise float tx = fma(x, c, -ys), ty = fma(y, c, xs);
        x = tx;
        y = ty;
    }
    if (is_k) {
        uint head1 = block + kv_head * head4(even(pc.k_dim)) * 4;
        put_k(head1, a, slot, x);
        if (is_pair)
            put_k(head1, b, slot, y);
    } else {
        qkv[base + a] = x;
        if (is_pair)
            qkv[base + b] = y;
    }
}
