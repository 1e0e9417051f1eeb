// A workgroup takes a query and a head: the scores of ROUND tiles at a time, a position a lane, then
// an output a lane and tile after tile. The same order as one invocation's, so the same bits.
#include "team.glsl"

layout(std430, binding = BIND_OUT) writeonly buffer Output { float result[]; };

const uint ROUND = LANES / KV_POSITIONS, OUTPUTS = 4; // OUTPUTS: of a lane, at most

shared float weight[LANES], tile_top[LANES / 8], tile_sum[ROUND], finished[OUTPUTS * LANES];

vec2 halves(usamplerBuffer from, uint i) // the word with half `i` of it
{
    return unpackHalf2x16(word_at(from, i / 2));
}

float half_at(usamplerBuffer from, uint i)
{
    vec2 pair = halves(from, i);
    return i % 2 != 0 ? pair.y : pair.x;
}

// Scales of codes, which lie behind a head's n elements: of those around element d.
float scale_at(uint head1, uint n, uint d, uint slot)
{
    return half_at(cache, (head1 + n * 8 + d / 32 * 16) * 2 + slot);
}

float dot_codes(uint q1, uint head1, uint slot)
{
    precise float s = 0.0;
    for (uint b = 0; b < pc.k_dim; b += 32) {
        float scale = scale_at(head1, pc.k_dim, b, slot);
        for (uint d = b; d < b + 32; d += 4) {
            vec4 q = read_floats(inputs, (q1 + d) / 4);
            vec4 key = signed_bytes(word_at(cache, head1 + d * 8 + slot)) * scale;
            [[unroll]] for (int e = 0; e < 4; e++)
                s = fma(q[e], key[e], s);
        }
    }
    return s;
}

float dot_halves(uint q1, uint head1, uint slot)
{
    precise float s = 0.0;
    for (uint d = 0; d < pc.k_dim; d += 2) {
        vec2 q = pair_at(q1 + d, d + 1 < pc.k_dim);
        vec2 key = halves(cache, (head1 + slot) * 2 + d * 32);
        s = fma(q.x, key.x, s);
        s = fma(q.y, key.y, s);
    }
    return s;
}

float dot_floats(uint q1, uint head1, uint slot)
{
    precise float s = 0.0;
    for (uint d = 0; d < pc.k_dim; d += 2) {
        vec2 q = pair_at(q1 + d, d + 1 < pc.k_dim);
        s = fma(q.x, uintBitsToFloat(word_at(cache, head1 + d * 32 + slot)), s);
        s = fma(q.y, uintBitsToFloat(word_at(cache, head1 + d * 32 + 32 + slot)), s);
    }
    return s;
}

// One query against a lane's key, whose head begins at word `head1`.
float score(uint q1, uint head1, uint slot)
{
    precise float s = CODES    ? dot_codes(q1, head1, slot)
                      : FLOATS ? dot_floats(q1, head1, slot)
                               : dot_halves(q1, head1, slot);
    s = s * pc.scale;
    if (pc.softcap > 0.0)
        s = pc.softcap * tanh_f32(s / pc.softcap);
    return s;
}

float value(uint head1, uint slot, uint d)
{
    uint at = slot * padded(pc.v_dim) + d;
    if (FLOATS)
        return uintBitsToFloat(word_at(cache, head1 + at));
    if (!CODES)
        return half_at(cache, head1 * 2 + at);
    int code = int(word_at(cache, head1 + at / 4)) << (24 - at % 4 * 8) >> 24;
    return float(code) * scale_at(head1, pc.v_dim, d, slot);
}

// Partial i of a tile is the weight of slots i and i + 16, folded 8, 4, 2, 1.
void sum_tile(uint me)
{
    uint slot = me % KV_POSITIONS;
    if (slot >= 8)
        return;
    precise float p0 = weight[me] + weight[me + 16], p1 = weight[me + 8] + weight[me + 24];
    precise float sum = p0 + p1;
    sum += subgroupShuffleXor(sum, 4u);
    sum += subgroupShuffleXor(sum, 2u);
    sum += subgroupShuffleXor(sum, 1u);
    if (slot == 0)
        tile_sum[me / KV_POSITIONS] = sum;
}

void main()
{
    uint me = lane(), to = gl_WorkGroupID.y, head = gl_WorkGroupID.x;
    if (to >= step_words[pc.count])
        return;
    uint row = pc.gather1 == NONE ? to : step_words[pc.gather1 + to];
    uint kv_head = head / pc.sharing;
    uint k4 = kv_head * head4(even(pc.k_dim)), v4 = pc.v_offset4 + kv_head * head4(padded(pc.v_dim));
    uint end = step_words[pc.end1 + row];
    uint first = pc.window != 0 && pc.window < end ? end - pc.window : 0;
    uint table = pc.table1 + step_words[pc.sequence1 + row] * pc.table_stride;
    const float nothing = uintBitsToFloat(0xff800000u);
    float top = nothing;
    precise float total = 0.0, o[OUTPUTS];
    [[unroll]] for (uint i = 0; i < OUTPUTS; i++)
        o[i] = 0.0;
    for (uint b = first / KV_POSITIONS; b * KV_POSITIONS < end; b += ROUND) {
        uint position = b * KV_POSITIONS + me;
        bool seen = position >= first && position < end;
        float s = nothing;
        if (seen)
            s = score(row * pc.qkv1 + head * pc.k_dim,
                      (step_words[table + position / KV_POSITIONS] * pc.block4 + k4) * 4,
                      me % KV_POSITIONS);
        float most = s;
        [[unroll]] for (uint i = 1; i < 8; i *= 2)
            most = max(most, subgroupShuffleXor(most, i));
        if (me % 8 == 0)
            tile_top[me / 8] = most;
        barrier();
        float keep[ROUND], mine = top;
        [[unroll]] for (uint r = 0; r < ROUND; r++) {
            float before = top;
            [[unroll]] for (uint i = 0; i < 4; i++)
                top = max(top, tile_top[r * 4 + i]);
            keep[r] = exp_f32(before - top);
            mine = me / KV_POSITIONS == r ? top : mine;
        }
        weight[me] = seen ? exp_f32(s - mine) : 0.0;
        barrier();
        sum_tile(me);
        barrier();
        for (uint r = 0; r < ROUND && (b + r) * KV_POSITIONS < end; r++) {
            uint base = (b + r) * KV_POSITIONS;
            uint lo = first > base ? first - base : 0;
            uint hi = min(end - base, KV_POSITIONS);
            uint v = (step_words[table + b + r] * pc.block4 + v4) * 4;
            total = fma(total, keep[r], tile_sum[r]);
            [[unroll]] for (uint i = 0; i < OUTPUTS; i++) {
                uint d = i * LANES + me;
                if (d >= pc.v_dim)
                    break;
                o[i] = o[i] * keep[r];
                for (uint slot = lo; slot < hi; slot++)
                    o[i] = fma(weight[r * KV_POSITIONS + slot], value(v, slot, d), o[i]);
            }
        }
        barrier(); // the weights have been read
    }
    precise float inv = 1.0 / total;
    [[unroll]] for (uint i = 0; i < OUTPUTS; i++) {
        uint d = i * LANES + me;
        if (d >= pc.v_dim)
            break;
        precise float y = o[i] * inv;
        finished[d] = y;
        if ((MODE & MODE_FLOAT) != 0)
            result[to * pc.out4 * 4 + head * pc.v_dim + d] = y;
    }
    barrier();
    uint block = me / 8, d = block * 32 + me % 8 * 4;
    if ((MODE & MODE_QUANTIZED) != 0 && block < pc.v_dim / 32)
        quantize_team(vec4(finished[d], finished[d + 1], finished[d + 2], finished[d + 3]), TERMS,
                      (to * pc.act4 + (head * (pc.v_dim / 32) + block) * RECORD) * 4);
}
