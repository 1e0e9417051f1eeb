// GEMM, for every packed type and one- or two-term inputs: an invocation computes 8
// rows, as two quads, for TOKENS tokens. MODE says what becomes of the sums: they are stored, added
// to the residual stream, or activated, and then (FINISH) become the next op's input; or they are
// queries, keys and values (ROTATE), rotated by their position. These two are modules of their own,
// because a driver takes its time for code that a constant leaves out as well.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"
#include "activate.glsl"

const uint WHAT = MODE & 7;
const bool NORM = (MODE & MODE_FINISH_NORM) != 0; // FINISH: the next op's input is normalized

layout(push_constant) uniform Push { push_gemm pc; };

#include "experts.glsl"

#if defined(GEMV)
#include "gemv.glsl"
#elif defined(TILE)
#include "tile.glsl"
#elif defined(MATRIX)
#include "matrix.glsl"
#else

#include "finish.glsl"

layout(std430, binding = BIND_OUT) coherent buffer Output { vec4 result[]; };
layout(std430, binding = BIND_OUT2) writeonly buffer Cache { uint kv[]; };
// For each tile of rows: how many workgroups have made theirs. Zeros between dispatches.
layout(std430, binding = BIND_SYNC) coherent buffer Sync { uint arrived[]; };

#define NEXT                                                                                       \
    Next(pc.more[FINISH_ACT4], pc.more[FINISH_FLOATS4], pc.more[FINISH_TERMS],                     \
         pc.more[FINISH_NORM1])
#define NEXT_COLS pc.more[FINISH_COLS]

// SIMD within a register: 16 weights by 16 inputs, both unsigned. A word holds the codes of k and
// k + 2 in its halves, another the inputs of k + 2 and k: the upper half of their product is the sum
// of two products, above at most 2^16 - 1 from below, and 8 such sums of 4-bit codes still fit.
// Codes of 16 weights of 4 rows, apart: even and odd ones of each word.
struct Codes {
    uvec4 even[4], odd[4];
};

struct Inputs { // 16 of them
    uvec4 even, odd;
};

Inputs split(uvec4 a)
{
    return Inputs(a & 0x00ff00ff, a >> 8 & 0x00ff00ff);
}

uvec4 half_dot(Codes c, Inputs a)
{
    uvec4 sum = c.even[0] * a.even.x + c.odd[0] * a.odd.x + c.even[1] * a.even.y +
                c.odd[1] * a.odd.y + c.even[2] * a.even.z + c.odd[2] * a.odd.z +
                c.even[3] * a.even.w + c.odd[3] * a.odd.w;
    return sum >> 16;
}

// The sum of the codes, and what inputs that carry 128 too much make of it.
uvec4 much(Codes c)
{
    uvec4 sum = c.even[0] + c.odd[0] + c.even[1] + c.odd[1] + c.even[2] + c.odd[2] + c.even[3] +
                c.odd[3];
    return ((sum & 0xffff) + (sum >> 16)) * 128;
}

ivec2 sums_of(uint word)
{
    return ivec2(int(word << 16) >> 16, int(word) >> 16);
}

// acc += what a group of 16 or 32 contributes.
void add_group(ivec4 a1, ivec4 a2, int s1, int s2, float scale, vec4 ws, vec4 wm,
               inout precise vec4 acc)
{
    // 254 * a + b is below 2^31, so the conversion is the one rounding that fma would do.
    precise vec4 t = vec4(TERMS == 2 ? 254 * a1 + a2 : a1);
    precise vec4 scaled = t * scale;
    acc = fma(scaled, ws, acc);
    if (HAS_MIN != 0) {
        precise float sum = float(TERMS == 2 ? 254 * s1 + s2 : s1) * scale;
        acc = fma(vec4(sum), wm, acc);
    }
}

// A block of 32 weights of 4 rows, ready to be multiplied: codes by halves of 16, of more than 4
// bits as two of 4 bits.
const uint DIGITS = WIDE ? 2 : 1;
struct Block {
    Codes codes[2][2];
    ivec4 much[2];
};

struct Scales { // of groups of 16, or one of 32
    vec4 ws[2], wm[2];
};

void load_block(uint at, uint b, out Block ret)
{
    uvec4 c[8];
    load_codes(at, pc.planes.high4, b, c);
    [[unroll]] for (uint h = 0; h < 2; h++) {
        ret.much[h] = ivec4(0);
        [[unroll]] for (uint d = 0; d < DIGITS; d++) {
            [[unroll]] for (uint i = 0; i < 4; i++) {
                ret.codes[h][d].even[i] = c[4 * h + i] >> 4 * d & 0x000f000f;
                ret.codes[h][d].odd[i] = c[4 * h + i] >> (8 + 4 * d) & 0x000f000f;
            }
            ret.much[h] += ivec4(much(ret.codes[h][d]) << 4 * d);
        }
    }
}

// The two quads that an invocation computes: rows 4 * at.x .. + 3 and 4 * at.y .. + 3 of a matrix.
void load_scales(uint group1, uvec2 at, uint k, out vec4 ws[2], out vec4 wm[2])
{
    uvec2 in_group = at / 4 * pc.planes.stride1 + group1;
#ifdef ROTATE
    if (WHAT != MODE_ROPE_NEOX) {
        load_scale_pair(in_group.x, pc.planes, at.x % 4 / 2, k, ws, wm);
        return;
    }
    [[unroll]] for (uint q = 0; q < 2; q++) {
        vec4 s[2], m[2];
        load_scale_pair(in_group[q], pc.planes, at[q] % 4 / 2, k, s, m);
        ws[q] = at[q] % 2 != 0 ? s[1] : s[0];
        wm[q] = at[q] % 2 != 0 ? m[1] : m[0];
    }
#else
    load_scale_pair(in_group.x, pc.planes, at.x % 4 / 2, k, ws, wm);
#endif
}

ivec4 dot16(Block w, uint h, Inputs x, int sum)
{
    uvec4 dot = half_dot(w.codes[h][0], x);
    if (WIDE)
        dot += half_dot(w.codes[h][DIGITS - 1], x) << 4;
    return ivec4(dot) - w.much[h] - int(ZERO) * sum;
}

// acc += a block of weights times the inputs of a token.
void add_block(Block w, Scales scales, uvec4 record[5], inout precise vec4 acc)
{
    ivec2 s1 = sums_of(record[0].y), s2 = sums_of(record[0].z);
    ivec4 a1[2], a2[2] = ivec4[2](ivec4(0), ivec4(0));
    [[unroll]] for (int h = 0; h < 2; h++) {
        a1[h] = dot16(w, h, split(record[1 + h]), s1[h]);
        if (TERMS == 2)
            a2[h] = dot16(w, h, split(record[3 + h]), s2[h]);
    }
    float scale = uintBitsToFloat(record[0].x);
    if (GROUP == 16) {
        [[unroll]] for (int h = 0; h < 2; h++)
            add_group(a1[h], a2[h], s1[h], s2[h], scale, scales.ws[h], scales.wm[h], acc);
    } else {
        add_group(a1[0] + a1[1], a2[0] + a2[1], s1.x + s1.y, s2.x + s2.y, scale, scales.ws[0],
                  scales.wm[0], acc);
    }
}

// Where sums stand: all tokens of the first quad, then of the second.
const uint SUMS = 2 * TOKENS;

void quantized_product(uint group1, uvec2 quad, uint token, inout precise vec4 acc[SUMS])
{
    uvec2 at = (group1 + quad / 4 * pc.planes.stride1) / 4 + quad % 4;
    for (uint b = 0; b < pc.cols / 32; b++) {
        Scales scales[2];
        [[unroll]] for (uint g = 0; g < 32 / GROUP; g++) {
            vec4 ws[2], wm[2];
            load_scales(group1, quad, b * 32 + g * 16, ws, wm);
            [[unroll]] for (uint q = 0; q < 2; q++) {
                scales[q].ws[g] = ws[q];
                scales[q].wm[g] = wm[q];
            }
        }
        uvec4 record[TOKENS][5];
        [[unroll]] for (uint t = 0; t < TOKENS; t++)
            [[unroll]] for (uint i = 0; i < RECORD; i++)
                record[t][i] = texelFetch(records, int(input_row(token + t) * pc.in4 + b * RECORD + i));
        [[unroll]] for (uint q = 0; q < 2; q++) {
            Block w;
            load_block(at[q], b, w);
            [[unroll]] for (uint t = 0; t < TOKENS; t++)
                add_block(w, scales[q], record[t], acc[q * TOKENS + t]);
        }
    }
}

void float_product(uint group1, uvec2 quad, uint token, inout precise vec4 acc[SUMS])
{
    uvec2 at = group1 + quad / 4 * pc.planes.stride1;
    for (uint k = 0; k < pc.cols; k += 4) {
        vec4 x[TOKENS];
        [[unroll]] for (uint t = 0; t < TOKENS; t++)
            x[t] = read_floats(inputs, input_row(token + t) * pc.in4 + k / 4);
        [[unroll]] for (uint q = 0; q < 2; q++) {
            [[unroll]] for (uint i = 0; i < 4; i++) {
                vec4 w = load_floats(at[q], pc.planes, quad[q] % 4, min(k + i, pc.cols - 1));
                [[unroll]] for (uint t = 0; t < TOKENS; t++) {
                    uint s = q * TOKENS + t;
                    acc[s] = k + i < pc.cols ? fma(w, vec4(x[t][i]), acc[s]) : acc[s];
                }
            }
        }
    }
}

// The sums of matrix m of `part`.
void product(uint part, uint m, uvec2 quad, uint token, out precise vec4 acc[SUMS])
{
    uint group1 = first_word(part + m), bias1 = first_bias(part + m);
    [[unroll]] for (uint t = 0; t < TOKENS; t++)
        acc[t] = acc[TOKENS + t] = vec4(0.0);
    if (FLOAT_WEIGHTS)
        float_product(group1, quad, token, acc);
    else
        quantized_product(group1, quad, token, acc);
    vec4 bias[2] = vec4[2](vec4(0.0), vec4(0.0));
    if (bias1 != NONE) {
        [[unroll]] for (uint q = 0; q < 2; q++)
            if (quad[q] * 4 < pc.rows[part + m])
                bias[q] = read_floats(vectors, bias1 / 4 + quad[q]);
    }
    [[unroll]] for (uint q = 0; q < 2; q++)
        [[unroll]] for (uint t = 0; t < TOKENS; t++)
            acc[q * TOKENS + t] += bias[q];
}

vec4 gated(vec4 gate, vec4 up)
{
    precise vec4 y = activate(ACTIVATION, gate) * up;
    return y;
}

// --- Queries, keys and values

#ifdef ROTATE

const uint K4 = (HEADS * K_DIM + 15) / 16 * 4; // quads of the row where keys begin, values
const uint V4 = K4 + (KV_HEADS * K_DIM + 15) / 16 * 4;

// With NEOX pairs are (i, i + ROPE_DIMS / 2), and an invocation takes the quads that pair up.
uvec2 quads_of(uint part, uint unit)
{
    uint n = K_DIM / 8, j = unit % n;
    if (WHAT == MODE_ROPE_NEOX && pc.column4[part] + unit * 2 < V4 && j < ROPE_DIMS / 8)
        return unit / n * n * 2 + uvec2(j, j + ROPE_DIMS / 8);
    return unit * 2 + uvec2(0, 1);
}

void rotate(inout precise vec2 v, float c, float s)
{
    precise vec2 vs = v * s;
    precise vec2 rotated = vec2(fma(v.x, c, -vs.y), fma(v.y, c, vs.x));
    v = rotated;
}

// Rotates the pairs of two quads, the first of them element d of a head.
void rotate_quads(uint token, uint d, inout vec4 a, inout vec4 b)
{
    bool neox = WHAT == MODE_ROPE_NEOX;
    uint at = pc.more[ROTATE_ROPE4] + token * pc.more[ROTATE_ROPES4] + (neox ? d : d / 2) / 4;
    vec4 c = uintBitsToFloat(texelFetch(cache, int(at)));
    vec4 s = uintBitsToFloat(texelFetch(cache, int(at + ROPE_DIMS / 8)));
    [[unroll]] for (int i = 0; i < 4; i++) {
        precise vec2 v = neox ? vec2(a[i], b[i]) : i < 2 ? vec2(a[2 * i], a[2 * i + 1])
                                                         : vec2(b[2 * i - 4], b[2 * i - 3]);
        if (d + (neox ? i : 2 * i) < (neox ? ROPE_DIMS / 2 : ROPE_DIMS))
            rotate(v, c[i], s[i]);
        if (neox) {
            a[i] = v.x;
            b[i] = v.y;
        } else if (i < 2) {
            a[2 * i] = v.x;
            a[2 * i + 1] = v.y;
        } else {
            b[2 * i - 4] = v.x;
            b[2 * i - 3] = v.y;
        }
    }
}

uint step_word(uint i)
{
    return word_at(cache, i);
}

uvec2 halves(vec4 v)
{
    return uvec2(cached_half(v.x) | cached_half(v.y) << 16, cached_half(v.z) | cached_half(v.w) << 16);
}

// A word of the cache holds two elements of a position: of keys 32 positions lie side by side, of
// values a head's elements.
void put_qkv(uint part, uvec2 quad, uint token, vec4 a, vec4 b)
{
    uvec2 column = pc.column4[part] + quad;
    bool is_q = column.x < K4, is_v = column.x >= V4;
    if (!is_v) {
        uint d = (is_q ? column.x : column.x - K4) * 4 % K_DIM;
        rotate_quads(token, d, a, b);
    }
    uvec4 words = uvec4(halves(a), halves(b));
    uint position = step_word(pc.more[ROTATE_POSITION1] + token), slot = position % KV_POSITIONS;
    uint table = pc.more[ROTATE_BLOCKS1] + step_word(pc.more[ROTATE_SEQUENCE1] + token) * pc.more[ROTATE_STRIDE1];
    uint block = step_word(table + position / KV_POSITIONS) * (KV_HEADS * (K_DIM + V_DIM) * 16);
    uvec2 element = (column - (is_v ? V4 : K4)) * 4;
    uint apart = is_v ? 1 : 32;
    uvec2 at = element / 2 * 32 + slot;
    if (is_v)
        at = KV_HEADS * K_DIM * 16 + ((element / V_DIM * 32 + slot) * V_DIM + element % V_DIM) / 2;
    if (is_q) {
        result[token * pc.out4 + column.x] = a;
        result[token * pc.out4 + column.y] = b;
    } else {
        [[unroll]] for (uint i = 0; i < 4; i++)
            kv[block + at[i / 2] + i % 2 * apart] = words[i];
    }
}
#else

uvec2 quads_of(uint part, uint unit)
{
    return unit * 2 + uvec2(0, 1);
}
#endif

// ---

void put(uint part, uvec2 quad, uint token, vec4 y[2], vec4 gate[2])
{
#ifdef ROTATE
    if (quad.y * 4 < pc.rows[part] && token < step_words[pc.count])
        put_qkv(part, quad, token, y[0], y[1]);
#else
    [[unroll]] for (uint q = 0; q < 2; q++) {
        uint at = token * pc.out4 + pc.column4[part] + quad[q];
        if (WHAT == MODE_STORE)
            result[at] = y[q];
        else if (WHAT == MODE_ADD)
            result[at] += y[q];
        else if (WHAT == MODE_ACTIVATED)
            result[at] = activate(ACTIVATION, y[q]);
        else
            result[at] = gated(WHAT == MODE_GATED ? gate[q] : result[at], y[q]);
    }
#endif
}

void compute(uint group, uint pair, uint token)
{
    uint part = group < pc.first[1] ? 0 : group < pc.first[2] ? 1 : 2;
    uvec2 quad = quads_of(part, (group - pc.first[part]) * 2 + pair);
    precise vec4 acc[SUMS], before[SUMS];
    // With GATED the second matrix has the same rows: gate first, then up.
    for (uint m = 0; m < (WHAT == MODE_GATED ? 2 : 1); m++) {
        [[unroll]] for (uint i = 0; i < SUMS; i++)
            before[i] = acc[i];
        product(part, m, quad, token, acc);
    }
    // Rolled: the sums go round.
    [[dont_unroll]] for (uint t = 0; t < TOKENS; t++) {
        vec4 y[2] = vec4[2](acc[0], acc[TOKENS]), gate[2] = vec4[2](before[0], before[TOKENS]);
#ifdef EXPERTS
        if (t >= begin && t < end)
            put(part, quad, row_at(token + t), y, gate);
#else
        put(part, quad, token + t, y, gate);
#endif
        [[unroll]] for (uint i = 0; i + 1 < SUMS; i++) {
            acc[i] = acc[i + 1];
            before[i] = before[i + 1];
        }
    }
}

// --- The next op's input

#ifdef FINISH

shared uint arrival;
shared float row_scale[TOKENS]; // of the tile's rows' norms

// Blocks [first, end) of the tile's rows, shared by the workgroup.
void finish_blocks(uint first, uint end, uint token, uint count)
{
    uint n = end - first;
    for (uint i = gl_LocalInvocationID.x; i < n * TOKENS; i += gl_WorkGroupSize.x) {
        uint block = first + i % n, row = token + i / n;
        if (row >= count)
            continue;
        vec4 v[8];
        [[dont_unroll]] for (uint j = 0; j < 8; j++) { // the values go round
            [[unroll]] for (uint k = 0; k < 7; k++)
                v[k] = v[k + 1];
            v[7] = result[row * pc.out4 + block * 8 + j];
        }
        float scale = NORM ? row_scale[row - token] : 1.0;
        finish_block(row, block, scale, v, NEXT);
    }
}

float norm_scale(uint row4)
{
    precise vec4 p[4];
    [[unroll]] for (int i = 0; i < 4; i++)
        p[i] = vec4(0.0);
    for (uint k = 0; k < NEXT_COLS; k += 4) { // the partial sums go round
        vec4 x = result[row4 + k / 4];
        precise vec4 first = fma(x, x, p[0]);
        p[0] = p[1];
        p[1] = p[2];
        p[2] = p[3];
        p[3] = first;
    }
    for (uint k = (NEXT_COLS + 3) / 4; k % 4 != 0; k++)
        p = vec4[4](p[1], p[2], p[3], p[0]);
    p[0] += p[2];
    p[1] += p[3];
    p[0] += p[1];
    p[0].xy += p[0].zw;
    precise float mean = (p[0].x + p[0].y) / float(NEXT_COLS);
    return factor_of(mean, pc.eps);
}

// The workgroup that is the last to make its rows of a tile takes whole rows.
void finish_rows(uint token, uint count)
{
    if (gl_LocalInvocationID.x == 0) {
        arrival = atomicAdd(arrived[gl_WorkGroupID.y], 1, gl_ScopeDevice, gl_StorageSemanticsBuffer,
                            gl_SemanticsAcquireRelease) + 1;
        if (arrival == gl_NumWorkGroups.x)
            arrived[gl_WorkGroupID.y] = 0;
    }
    meet();
    bool last = arrival == gl_NumWorkGroups.x;
    uint rows = last && token < count ? min(count - token, TOKENS) : 0;
    for (uint t = gl_LocalInvocationID.x; t < rows; t += gl_WorkGroupSize.x)
        row_scale[t] = norm_scale((token + t) * pc.out4);
    meet();
    finish_blocks(0, last ? (NEXT_COLS + 31) / 32 : 0, token, count);
}
#endif

void main()
{
    uint unit = gl_GlobalInvocationID.x, token = gl_WorkGroupID.y * TOKENS;
    uint count = count_rows();
#ifdef EXPERTS
    if (unit >= pc.groups * 2 || token >= count)
        return;
    uint tokens = min(TOKENS, count - token);
    for (end = 0; end < tokens;) {
        begin_rows(token, end, tokens);
        if (is_here(unit / 2))
            compute(unit / 2, unit % 2, token);
    }
#else
    if (unit < pc.groups * 2 && token < count)
        compute(unit / 2, unit % 2, token);
#endif
#ifdef FINISH
    meet();
    if (NORM) {
        finish_rows(token, count);
        return;
    }
    // The workgroup has made whole blocks of 32 outputs.
    uint first = gl_WorkGroupID.x * (gl_WorkGroupSize.x / 4);
    finish_blocks(first, min(first + gl_WorkGroupSize.x / 4, (pc.groups + 1) / 2), token, count);
#endif
}

#endif
