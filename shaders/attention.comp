// Attention by tiles of 32 positions: an invocation computes 32 outputs of each of SHARE heads that
// read the same keys and values, for one position's queries, and makes them the next matrix's input.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(push_constant) uniform Push { push_attention pc; };
#define NEXT Next(pc.act4, (MODE & MODE_FLOAT) != 0 ? pc.out4 : 0, pc.terms, NONE)

#include "cache.glsl"

#ifdef TEAM
#include "attention_team.glsl"
#else

#include "finish.glsl"

// The scores of a tile: the queries of SHARE heads against 32 keys. A texel holds two elements of
// four positions.
void score_tile(uint q1, uint k4, out precise vec4 s[SHARE][8])
{
    [[unroll]] for (uint h = 0; h < SHARE; h++)
        [[unroll]] for (int i = 0; i < 8; i++)
            s[h][i] = vec4(0.0);
    for (uint d = 0; d < pc.k_dim; d += 2) {
        vec2 q[SHARE];
        [[unroll]] for (uint h = 0; h < SHARE; h++)
            q[h] = pair_at(q1 + h * pc.k_dim + d, d + 1 < pc.k_dim);
        [[unroll]] for (uint i = 0; i < 8; i++) {
            uvec4 k = texelFetch(cache, int(k4 + d * 4 + i));
            vec2 k0 = unpackHalf2x16(k.x), k1 = unpackHalf2x16(k.y), k2 = unpackHalf2x16(k.z),
                 k3 = unpackHalf2x16(k.w);
            vec4 even = vec4(k0.x, k1.x, k2.x, k3.x), odd = vec4(k0.y, k1.y, k2.y, k3.y);
            [[unroll]] for (uint h = 0; h < SHARE; h++) {
                s[h][i] = fma(vec4(q[h].x), even, s[h][i]);
                s[h][i] = fma(vec4(q[h].y), odd, s[h][i]);
            }
        }
    }
}

// The same where a texel holds four elements of four positions.
void score_codes(uint q1, uint k4, out precise vec4 s[SHARE][8])
{
    [[unroll]] for (uint h = 0; h < SHARE; h++)
        [[unroll]] for (int i = 0; i < 8; i++)
            s[h][i] = vec4(0.0);
    for (uint b = 0; b < pc.k_dim; b += 32) {
        vec4 scale[8];
        [[unroll]] for (uint i = 0; i < 4; i++) {
            uvec4 pair = texelFetch(cache, int(k4 + pc.k_dim * 2 + b / 8 + i));
            scale[2 * i] = halves_of(pair.xy);
            scale[2 * i + 1] = halves_of(pair.zw);
        }
        for (uint d = b; d < b + 32; d += 4) {
            vec4 q[SHARE];
            [[unroll]] for (uint h = 0; h < SHARE; h++)
                q[h] = read_floats(inputs, (q1 + h * pc.k_dim + d) / 4);
            [[unroll]] for (uint i = 0; i < 8; i++) {
                ivec4 k = ivec4(texelFetch(cache, int(k4 + d * 2 + i)));
                [[unroll]] for (int e = 0; e < 4; e++) {
                    vec4 key = vec4(k << (24 - 8 * e) >> 24) * scale[i];
                    [[unroll]] for (uint h = 0; h < SHARE; h++)
                        s[h][i] = fma(vec4(q[h][e]), key, s[h][i]);
                }
            }
        }
    }
}

// The same where a texel holds one element of four positions.
void score_floats(uint q1, uint k4, out precise vec4 s[SHARE][8])
{
    [[unroll]] for (uint h = 0; h < SHARE; h++)
        [[unroll]] for (int i = 0; i < 8; i++)
            s[h][i] = vec4(0.0);
    for (uint d = 0; d < pc.k_dim; d += 2) {
        vec2 q[SHARE];
        [[unroll]] for (uint h = 0; h < SHARE; h++)
            q[h] = pair_at(q1 + h * pc.k_dim + d, d + 1 < pc.k_dim);
        [[unroll]] for (uint i = 0; i < 8; i++) {
            vec4 even = read_floats(cache, k4 + d * 8 + i);
            vec4 odd = read_floats(cache, k4 + d * 8 + 8 + i);
            [[unroll]] for (uint h = 0; h < SHARE; h++) {
                s[h][i] = fma(vec4(q[h].x), even, s[h][i]);
                s[h][i] = fma(vec4(q[h].y), odd, s[h][i]);
            }
        }
    }
}

bvec4 seen(int i, uint lo, uint hi)
{
    uvec4 slot = uvec4(4 * i) + uvec4(0, 1, 2, 3);
    return bvec4(uvec4(greaterThanEqual(slot, uvec4(lo))) & uvec4(lessThan(slot, uvec4(hi))));
}

// Scales and caps the scores of a tile and hides what is not seen; raises `top`.
void cap_scores(uint lo, uint hi, inout precise vec4 s[8], inout float top)
{
    vec4 most = vec4(top);
    [[unroll]] for (int i = 0; i < 8; i++) {
        precise vec4 x = s[0] * pc.scale;
        if ((MODE & MODE_CAP) != 0) {
            [[unroll]] for (int j = 0; j < 4; j++)
                x[j] = pc.softcap * tanh_f32(x[j] / pc.softcap);
        }
        x = mix(vec4(uintBitsToFloat(0xff800000u)), x, seen(i, lo, hi));
        most = max(most, x);
        [[unroll]] for (int j = 0; j < 7; j++)
            s[j] = s[j + 1];
        s[7] = x;
    }
    top = max(max(most.x, most.y), max(most.z, most.w));
}

// The sum over a tile of what was added to partial i mod 16 for each slot i.
float fold(vec4 p[4])
{
    precise vec4 q = (p[0] + p[2]) + (p[1] + p[3]);
    precise vec2 r = q.xy + q.zw;
    precise float sum = r.x + r.y;
    return sum;
}

// Adds the values of the positions that are seen, in order, and returns the sum of their weights.
// Rolled, so that the code is there once: scores and partial sums go round. scale4: where codes have
// their scales.
void mix_tile(uint v4, uint scale4, uint lo, uint hi, float top[SHARE], vec4 s[SHARE][8],
              inout precise vec4 o[SHARE][8], out float sum[SHARE])
{
    precise vec4 partial[SHARE][4];
    [[unroll]] for (uint h = 0; h < SHARE; h++)
        [[unroll]] for (int i = 0; i < 4; i++)
            partial[h][i] = vec4(0.0);
    [[dont_unroll]] for (uint i = 0; i < KV_POSITIONS; i += 4) {
        vec4 p[SHARE];
        bvec4 is_seen = seen(int(i / 4), lo, hi);
        [[unroll]] for (uint h = 0; h < SHARE; h++) {
            [[unroll]] for (int j = 0; j < 4; j++)
                p[h][j] = is_seen[j] ? exp_f32(s[h][0][j] - top[h]) : 0.0;
            vec4 first = partial[h][0] + p[h];
            [[unroll]] for (int j = 0; j < 3; j++)
                partial[h][j] = partial[h][j + 1];
            partial[h][3] = first;
            [[unroll]] for (int j = 0; j < 7; j++)
                s[h][j] = s[h][j + 1];
        }
        vec4 scale = vec4(0.0);
        if (CODES) {
            uvec4 pair = texelFetch(cache, int(scale4 + i / 8));
            scale = mix(scale, halves_of(i % 8 != 0 ? pair.zw : pair.xy), is_seen);
        }
        [[unroll]] for (uint j = 0; j < 4; j++) {
            [[unroll]] for (uint d = 0; d < 32 / TEXEL; d++) {
                uvec4 v = texelFetch(cache, int(v4 + (i + j) * (padded(pc.v_dim) / TEXEL) + d));
                // What is not seen may hold anything, and is never multiplied.
                v = is_seen[j] ? v : uvec4(0);
                [[unroll]] for (uint w = 0; w < (CODES ? 4 : 0); w++) {
                    vec4 value = signed_bytes(v[w]) * scale[j];
                    [[unroll]] for (uint h = 0; h < SHARE; h++)
                        o[h][4 * d + w] = fma(vec4(p[h][j]), value, o[h][4 * d + w]);
                }
                if (FLOATS)
                    [[unroll]] for (uint h = 0; h < SHARE; h++)
                        o[h][d] = fma(vec4(p[h][j]), uintBitsToFloat(v), o[h][d]);
                if (CODES || FLOATS)
                    continue;
                vec4 first = vec4(unpackHalf2x16(v.x), unpackHalf2x16(v.y));
                vec4 second = vec4(unpackHalf2x16(v.z), unpackHalf2x16(v.w));
                [[unroll]] for (uint h = 0; h < SHARE; h++) {
                    o[h][2 * d] = fma(vec4(p[h][j]), first, o[h][2 * d]);
                    o[h][2 * d + 1] = fma(vec4(p[h][j]), second, o[h][2 * d + 1]);
                }
            }
        }
    }
    [[unroll]] for (uint h = 0; h < SHARE; h++)
        sum[h] = fold(partial[h]);
}

// 32 outputs of a head from element d on, where no block is one head's alone: they are floats then.
void store(uint row, uint head, uint d, vec4 v[8])
{
    uint at = row * pc.out4 * 4 + head * pc.v_dim + d;
    [[dont_unroll]] for (uint i = 0; i < 32 && d + i < pc.v_dim; i++) { // the values go round
        floats[(at + i) / 4][(at + i) % 4] = v[0].x;
        v[0] = vec4(v[0].yzw, v[1].x);
        [[unroll]] for (uint j = 1; j < 7; j++)
            v[j] = vec4(v[j].yzw, v[j + 1].x);
        v[7] = vec4(v[7].yzw, 0.0);
    }
}

void main()
{
    uint to = invocation() / pc.lanes, lane = invocation() % pc.lanes;
    if (to >= step_words[pc.count])
        return;
    uint row = pc.gather1 == NONE ? to : step_words[pc.gather1 + to];
    uint parts = padded(pc.v_dim) / 32, head = lane / parts * SHARE, part = lane % parts;
    uint kv_head = head / pc.sharing, end = step_words[pc.end1 + row];
    uint first = pc.window != 0 && pc.window < end ? end - pc.window : 0;
    uint table = pc.table1 + step_words[pc.sequence1 + row] * pc.table_stride;
    precise vec4 o[SHARE][8];
    float top[SHARE], keep[SHARE], sum[SHARE];
    precise float total[SHARE];
    [[unroll]] for (uint h = 0; h < SHARE; h++) {
        [[unroll]] for (int i = 0; i < 8; i++)
            o[h][i] = vec4(0.0);
        top[h] = uintBitsToFloat(0xff800000u);
        total[h] = 0.0;
    }
    for (uint b = first / KV_POSITIONS; b * KV_POSITIONS < end; b++) {
        uint block = step_words[table + b] * pc.block4;
        uint base = b * KV_POSITIONS;
        uint lo = first > base ? first - base : 0, hi = min(end - base, KV_POSITIONS);
        precise vec4 s[SHARE][8];
        uint q1 = row * pc.qkv1 + head * pc.k_dim, k4 = block + kv_head * head4(even(pc.k_dim));
        if (CODES)
            score_codes(q1, k4, s);
        else if (FLOATS)
            score_floats(q1, k4, s);
        else
            score_tile(q1, k4, s);
        [[unroll]] for (uint h = 0; h < SHARE; h++) {
            float before = top[h];
            cap_scores(lo, hi, s[h], top[h]);
            keep[h] = exp_f32(before - top[h]);
            [[unroll]] for (int i = 0; i < 8; i++)
                o[h][i] = o[h][i] * keep[h];
        }
        uint v4 = block + pc.v_offset4 + kv_head * head4(padded(pc.v_dim));
        mix_tile(v4 + part * (32 / TEXEL), v4 + pc.v_dim * 2 + part * 4, lo, hi, top, s, o, sum);
        [[unroll]] for (uint h = 0; h < SHARE; h++)
            total[h] = fma(total[h], keep[h], sum[h]);
    }
    // Rolled: the heads go round.
    [[dont_unroll]] for (uint h = 0; h < SHARE; h++) {
        precise float inv = 1.0 / total[0];
        [[unroll]] for (int i = 0; i < 8; i++)
            o[0][i] = o[0][i] * inv;
        if (pc.v_dim % 32 == 0)
            finish_block(to, (head + h) * parts + part, 1.0, o[0], NEXT);
        else
            store(to, head + h, part * 32, o[0]);
        [[unroll]] for (uint j = 0; j + 1 < SHARE; j++) {
            o[j] = o[j + 1];
            total[j] = total[j + 1];
        }
    }
}

#endif
