// The matrix product, for every packed type and one- or two-term inputs: an invocation computes 4
// rows for TOKENS tokens. MODE says what becomes of the sums.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"

const uint MODE_STORE = 0, MODE_ADD = 1, MODE_SWIGLU = 2, MODE_SWIGLU_UP = 3;

// Up to three matrices of one shape but for their rows stand side by side: their row groups, and
// their columns of the result.
layout(push_constant) uniform Push {
    uint count;  // which of the step's counts limits the tokens
    uint groups; // in all
    uint cols, stride1, high4, scale2, min2, sub1;
    uint in4, out4; // uvec4 of a token's input record or floats, vec4 of its output
    uint weight1[3], first[3], column4[3], rows[3], bias[3];
} pc;

#if defined(GEMV)
#include "gemv.glsl"
#elif defined(TILE)
#include "tile.glsl"
#elif defined(MATRIX)
#include "matrix.glsl"
#else

layout(std430, binding = 5) buffer Output { vec4 result[]; };

// SIMD within a register: 16 weights by 16 inputs, both unsigned. A word holds the codes of k and
// k + 2 in its halves, another the inputs of k + 2 and k: the upper half of their product is the sum
// of two products, above at most 2^16 - 1 from below, and 8 such sums of 4-bit codes still fit.
uvec4 half_dot(uvec4 c0, uvec4 c1, uvec4 c2, uvec4 c3, uvec4 a)
{
    uvec4 even = a & 0x00ff00ff, odd = a >> 8 & 0x00ff00ff;
    uvec4 low = (c0 & 0x000f000f) * even.x + (c0 >> 8 & 0x000f000f) * odd.x +
                (c1 & 0x000f000f) * even.y + (c1 >> 8 & 0x000f000f) * odd.y +
                (c2 & 0x000f000f) * even.z + (c2 >> 8 & 0x000f000f) * odd.z +
                (c3 & 0x000f000f) * even.w + (c3 >> 8 & 0x000f000f) * odd.w;
    if (!WIDE)
        return low >> 16;
    uvec4 high = (c0 >> 4 & 0x000f000f) * even.x + (c0 >> 12 & 0x000f000f) * odd.x +
                 (c1 >> 4 & 0x000f000f) * even.y + (c1 >> 12 & 0x000f000f) * odd.y +
                 (c2 >> 4 & 0x000f000f) * even.z + (c2 >> 12 & 0x000f000f) * odd.z +
                 (c3 >> 4 & 0x000f000f) * even.w + (c3 >> 12 & 0x000f000f) * odd.w;
    return (low >> 16) + (high >> 16) * 16;
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

void quantized_product(uint group1, uint quad, uint token, out precise vec4 acc[TOKENS])
{
    Planes planes = Planes(pc.high4, pc.scale2, pc.min2, pc.sub1);
    [[unroll]] for (uint t = 0; t < TOKENS; t++)
        acc[t] = vec4(0.0);
    for (uint b = 0; b < pc.cols / 32; b++) {
        uvec4 c[8];
        vec4 ws[2], wm[2];
        load_codes(group1 / 4 + quad, pc.high4, b, c);
        load_scales(group1, planes, quad, b * 32, ws[0], wm[0]);
        if (GROUP == 16)
            load_scales(group1, planes, quad, b * 32 + 16, ws[1], wm[1]);
        // Inputs carry 128 too much.
        ivec4 much0 = ivec4(half_dot(c[0], c[1], c[2], c[3], uvec4(0x80808080u)));
        ivec4 much1 = ivec4(half_dot(c[4], c[5], c[6], c[7], uvec4(0x80808080u)));
        [[unroll]] for (uint t = 0; t < TOKENS; t++) {
            int at = int((token + t) * pc.in4 + b * RECORD);
            uvec4 head = texelFetch(records, at);
            ivec2 s1 = sums_of(head.y), s2 = sums_of(head.z);
            ivec4 a[4];
            [[unroll]] for (int i = 0; i < TERMS; i++) {
                ivec2 s = i == 0 ? s1 : s2;
                a[2 * i] = ivec4(half_dot(c[0], c[1], c[2], c[3], texelFetch(records, at + 1 + 2 * i))) - much0 -
                           int(ZERO) * s.x;
                a[2 * i + 1] = ivec4(half_dot(c[4], c[5], c[6], c[7], texelFetch(records, at + 2 + 2 * i))) -
                               much1 - int(ZERO) * s.y;
            }
            if (TERMS == 1)
                a[2] = a[3] = ivec4(0);
            float scale = uintBitsToFloat(head.x);
            if (GROUP == 16) {
                add_group(a[0], a[2], s1.x, s2.x, scale, ws[0], wm[0], acc[t]);
                add_group(a[1], a[3], s1.y, s2.y, scale, ws[1], wm[1], acc[t]);
            } else {
                add_group(a[0] + a[1], a[2] + a[3], s1.x + s1.y, s2.x + s2.y, scale, ws[0], wm[0],
                          acc[t]);
            }
        }
    }
}

void float_product(uint group1, uint quad, uint token, out precise vec4 acc[TOKENS])
{
    [[unroll]] for (uint t = 0; t < TOKENS; t++)
        acc[t] = vec4(0.0);
    for (uint k = 0; k < pc.cols; k += 4) {
        vec4 w0 = load_floats(group1, quad, k);
        vec4 w1 = load_floats(group1, quad, min(k + 1, pc.cols - 1));
        vec4 w2 = load_floats(group1, quad, min(k + 2, pc.cols - 1));
        vec4 w3 = load_floats(group1, quad, min(k + 3, pc.cols - 1));
        [[unroll]] for (uint t = 0; t < TOKENS; t++) {
            vec4 x = read_floats(inputs, (token + t) * pc.in4 + k / 4);
            acc[t] = fma(w0, vec4(x.x), acc[t]);
            acc[t] = k + 1 < pc.cols ? fma(w1, vec4(x.y), acc[t]) : acc[t];
            acc[t] = k + 2 < pc.cols ? fma(w2, vec4(x.z), acc[t]) : acc[t];
            acc[t] = k + 3 < pc.cols ? fma(w3, vec4(x.w), acc[t]) : acc[t];
        }
    }
}

vec4 swiglu(vec4 gate, vec4 up)
{
    precise vec4 y;
    [[unroll]] for (int i = 0; i < 4; i++) {
        precise float below = 1.0 + exp_f32(-gate[i]);
        precise float silu = gate[i] / below;
        y[i] = silu * up[i];
    }
    return y;
}

void main()
{
    uint quad = gl_GlobalInvocationID.x & 3, group = gl_GlobalInvocationID.x >> 2;
    uint token = gl_WorkGroupID.y * TOKENS;
    if (group >= pc.groups || token >= step_words[pc.count])
        return;
    uint part = group < pc.first[1] ? 0 : group < pc.first[2] ? 1 : 2;
    uint in_part = group - pc.first[part];
    vec4 before[TOKENS];
    precise vec4 acc[TOKENS];
    // With SWIGLU the second matrix has the same rows: gate first, then up.
    for (uint m = 0; m < (MODE == MODE_SWIGLU ? 2 : 1); m++) {
        [[unroll]] for (uint t = 0; t < TOKENS; t++)
            before[t] = acc[t];
        uint group1 = pc.weight1[part + m] + in_part * pc.stride1;
        if (PLANES <= PLANES_BF16)
            float_product(group1, quad, token, acc);
        else
            quantized_product(group1, quad, token, acc);
        if (pc.bias[part + m] != NONE) {
            uint row = in_part * 16 + quad * 4;
            vec4 bias = vec4(0.0);
            if (row < pc.rows[part + m])
                bias = read_floats(vectors, (pc.bias[part + m] + row) / 4);
            [[unroll]] for (uint t = 0; t < TOKENS; t++)
                acc[t] += bias;
        }
    }
    [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        uint at = (token + t) * pc.out4 + pc.column4[part] + in_part * 4 + quad;
        if (MODE == MODE_STORE)
            result[at] = acc[t];
        else if (MODE == MODE_ADD)
            result[at] += acc[t];
        else
            result[at] = swiglu(MODE == MODE_SWIGLU ? before[t] : result[at], acc[t]);
    }
}

#endif
