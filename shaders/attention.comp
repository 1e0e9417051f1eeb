// Attention by tiles of 32 positions: an invocation computes 32 of a head's outputs for one query,
// and quantizes them where the next matrix wants that.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

const uint MODE_FLOAT = 2, MODE_QUANTIZED = 4; // bits

layout(push_constant) uniform Push {
    uint lanes;         // invocations of a row: heads by 32 outputs
    uint qkv1, out4, act4;
    uint sharing, k_dim, v_dim; // sharing: query heads of a KV head
    uint position1, sequence1, table1, table_stride;
    uint block4, v_offset4; // uvec4 of a KV block, and where V begins
    uint window;
    float scale, softcap;
} pc;

#ifdef TEAM
#include "attention_team.glsl"
#else

layout(std430, binding = 6) writeonly buffer Act { uvec4 act[]; };
layout(std430, binding = 5) writeonly buffer Output { vec4 result[]; };

float tanh_f32(float x)
{
    precise float y = 1.0 - 2.0 / (exp_f32(x + x) + 1.0);
    return y;
}

// The scores of a tile: one query against 32 keys.
void score_tile(uint q1, uint k4, out precise vec4 s[8])
{
    [[unroll]] for (int i = 0; i < 8; i++)
        s[i] = vec4(0.0);
    for (uint d = 0; d < pc.k_dim; d++) {
        vec4 quad = read_floats(inputs, (q1 + d) / 4);
        vec2 pair = (q1 + d) % 4 >= 2 ? quad.zw : quad.xy;
        vec4 q = vec4(d % 2 != 0 ? pair.y : pair.x);
        [[unroll]] for (uint i = 0; i < 4; i++) {
            uvec4 k = texelFetch(cache, int(k4 + d * 4 + i));
            s[2 * i] = fma(q, vec4(unpackHalf2x16(k.x), unpackHalf2x16(k.y)), s[2 * i]);
            s[2 * i + 1] = fma(q, vec4(unpackHalf2x16(k.z), unpackHalf2x16(k.w)), s[2 * i + 1]);
        }
    }
}

bvec4 seen(int i, uint lo, uint hi)
{
    uvec4 slot = uvec4(4 * i) + uvec4(0, 1, 2, 3);
    return bvec4(uvec4(greaterThanEqual(slot, uvec4(lo))) & uvec4(lessThan(slot, uvec4(hi))));
}

// Scores to weights; returns their sum, and raises `top`.
float soften(uint lo, uint hi, inout vec4 s[8], inout float top)
{
    vec4 most = vec4(top);
    [[unroll]] for (int i = 0; i < 8; i++) {
        precise vec4 x = s[i] * pc.scale;
        if (pc.softcap > 0.0) {
            [[unroll]] for (int j = 0; j < 4; j++)
                x[j] = pc.softcap * tanh_f32(x[j] / pc.softcap);
        }
        s[i] = mix(vec4(uintBitsToFloat(0xff800000u)), x, seen(i, lo, hi));
        most = max(most, s[i]);
    }
    top = max(max(most.x, most.y), max(most.z, most.w));
    [[unroll]] for (int i = 0; i < 8; i++)
        [[unroll]] for (int j = 0; j < 4; j++)
            s[i][j] = 4 * i + j >= lo && 4 * i + j < hi ? exp_f32(s[i][j] - top) : 0.0;
    precise vec4 p[4];
    [[unroll]] for (int i = 0; i < 4; i++)
        p[i] = s[i] + s[i + 4];
    p[0] += p[2];
    p[1] += p[3];
    p[0] += p[1];
    p[0].xy += p[0].zw;
    precise float sum = p[0].x + p[0].y;
    return sum;
}

// Adds the values of the positions that are seen, in order. The weights go round so that every
// index is a constant in a rolled loop.
void mix_tile(uint v4, uint lo, uint hi, vec4 p[8], inout precise vec4 o[8])
{
    for (uint i = 0; i < 32; i += 4) {
        [[unroll]] for (uint j = 0; j < 4; j++) {
            if (i + j < lo || i + j >= hi)
                continue;
            vec4 w = vec4(p[0][j]);
            [[unroll]] for (uint d = 0; d < 4; d++) {
                uvec4 v = texelFetch(cache, int(v4 + (i + j) * (pc.v_dim / 8) + d));
                o[2 * d] = fma(w, vec4(unpackHalf2x16(v.x), unpackHalf2x16(v.y)), o[2 * d]);
                o[2 * d + 1] =
                    fma(w, vec4(unpackHalf2x16(v.z), unpackHalf2x16(v.w)), o[2 * d + 1]);
            }
        }
        [[unroll]] for (int k = 0; k < 7; k++)
            p[k] = p[k + 1];
    }
}

void main()
{
    uint row = gl_GlobalInvocationID.x / pc.lanes, lane = gl_GlobalInvocationID.x % pc.lanes;
    if (row >= step_words[STEP_ROWS])
        return;
    uint head = lane / (pc.v_dim / 32), part = lane % (pc.v_dim / 32), kv_head = head / pc.sharing;
    uint end = step_words[pc.position1 + row] + 1;
    uint first = pc.window != 0 && pc.window < end ? end - pc.window : 0;
    uint table = pc.table1 + step_words[pc.sequence1 + row] * pc.table_stride;
    precise vec4 o[8];
    [[unroll]] for (int i = 0; i < 8; i++)
        o[i] = vec4(0.0);
    float top = uintBitsToFloat(0xff800000u);
    precise float total = 0.0;
    for (uint b = first / 32; b * 32 < end; b++) {
        uint block = step_words[table + b] * pc.block4;
        uint lo = first > b * 32 ? first - b * 32 : 0, hi = min(end - b * 32, 32);
        precise vec4 s[8];
        score_tile(row * pc.qkv1 + head * pc.k_dim, block + kv_head * pc.k_dim * 4, s);
        float before = top;
        vec4 p[8] = s;
        float sum = soften(lo, hi, p, top);
        float keep = exp_f32(before - top);
        total = fma(total, keep, sum);
        [[unroll]] for (int i = 0; i < 8; i++)
            o[i] = o[i] * keep;
        mix_tile(block + pc.v_offset4 + kv_head * 4 * pc.v_dim + part * 4, lo, hi, p, o);
    }
    precise float inv = 1.0 / total;
    [[unroll]] for (int i = 0; i < 8; i++)
        o[i] = o[i] * inv;
    uint block = head * (pc.v_dim / 32) + part;
    if ((MODE & MODE_FLOAT) != 0) {
        [[unroll]] for (uint i = 0; i < 8; i++)
            result[row * pc.out4 + block * 8 + i] = o[i];
    }
    if ((MODE & MODE_QUANTIZED) != 0) {
        uvec4 record[5];
        quantize_block(o, record);
        [[unroll]] for (uint i = 0; i < RECORD; i++)
            act[row * pc.act4 + block * RECORD + i] = record[i];
    }
}

#endif
