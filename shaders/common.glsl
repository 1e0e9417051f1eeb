// What every shader shares: the bindings, the constants that specialise it, and the functions of
// docs/numerics.md. One invocation stands alone: no shared memory, no subgroups.
#extension GL_EXT_control_flow_attributes : require

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint PLANES = 4;     // enum nb_planes
layout(constant_id = 2) const uint CODEBOOK = 0;   // enum nb_codebook
layout(constant_id = 3) const uint SUB = 0;        // enum nb_sub
layout(constant_id = 4) const uint OFFSET = 0;     // taken off a code
layout(constant_id = 5) const uint SCALE_BLOCK = 32;
layout(constant_id = 6) const uint GROUP = 32;     // weights under one effective scale
layout(constant_id = 7) const uint HAS_MIN = 0;
layout(constant_id = 8) const uint SUB_BYTES = 0;
layout(constant_id = 9) const uint TERMS = 1;      // of quantized activations
layout(constant_id = 10) const uint TOKENS = 1;    // that an invocation covers
layout(constant_id = 11) const uint MODE = 0;      // what an operator does with its result
layout(constant_id = 12) const uint HEADS = 1;     // of the model
layout(constant_id = 13) const uint KV_HEADS = 1;
layout(constant_id = 14) const uint K_DIM = 32;
layout(constant_id = 15) const uint V_DIM = 32;
layout(constant_id = 16) const uint ROPE_DIMS = 32;
layout(constant_id = 17) const uint SHARE = 1;     // query heads that an invocation covers

const uint PLANES_F32 = 0, PLANES_F16 = 1, PLANES_BF16 = 2, PLANES_8 = 3, PLANES_4 = 4,
           PLANES_4_1 = 5, PLANES_4_2 = 6, PLANES_2 = 7, PLANES_2_1 = 8;
const uint SUB_NONE = 0, SUB_SM8 = 1, SUB_SM4 = 2, SUB_S6 = 3, SUB_F32 = 6;
const uint NONE = 0xffffffffu;
const uint LANES = 128; // of a workgroup, where its lanes work together: engine/vulkan/tier.c

// Where a row goes as the next operator's input, and as what.
struct Next {
    uint act4, floats4; // uvec4 of a row's records; vec4 of a row of floats, or 0: not wanted
    uint terms;         // of the records; a workgroup makes none of 0
    uint norm1;         // the norm's weights in `vectors`, or NONE
};

// What is only read comes as texels of four words: a texel's fetch is straight code everywhere, while
// lavapipe makes a loop over its lanes of each word that is loaded from a storage buffer.
layout(binding = 0) uniform usamplerBuffer weights; // a window of the packed weights
layout(binding = 1) uniform usamplerBuffer vectors; // norms, biases
layout(std430, binding = 2) readonly buffer Step { uint step_words[]; }; // engine/vulkan/model.h
layout(binding = 3) uniform usamplerBuffer inputs;  // floats
layout(binding = 4) uniform usamplerBuffer records; // quantized inputs
layout(binding = 7) uniform usamplerBuffer cache;   // keys and values

uint pick(uvec4 v, uint i) // word i % 4
{
    uvec2 pair = i % 4 >= 2 ? v.zw : v.xy;
    return i % 2 != 0 ? pair.y : pair.x;
}

uint word_at(usamplerBuffer from, uint i)
{
    return pick(texelFetch(from, int(i / 4)), i);
}

vec4 halves_of(uvec2 words)
{
    return vec4(unpackHalf2x16(words.x), unpackHalf2x16(words.y));
}

vec4 read_floats(usamplerBuffer from, uint at)
{
    return uintBitsToFloat(texelFetch(from, int(at)));
}

// A block of 32 quantized inputs is a record of 1 + 2 * TERMS uvec4: {scale as float bits, sums of
// q1 over its halves as two int16, the same of q2, 0}, then q1 as bytes + 128, then q2. Bytes of a
// word stand in the order k+2, k+3, k, k+1: see half_dot in gemm.comp.
const uint RECORD = 1 + 2 * TERMS;

const uint STEP_ROWS = 0; // words of the step: how many rows, how many of logits, then tables
const uint STEP_LOGITS = 1;

float exp_f32(float x)
{
    if (isnan(x))
        return x;
    x = clamp(x, -104.0, 89.0);
    precise float n = roundEven(x * uintBitsToFloat(0x3fb8aa3bu));
    precise float r = fma(-n, uintBitsToFloat(0xb102e308u),
                          fma(-n, uintBitsToFloat(0x3f317218u), x));
    precise float p = uintBitsToFloat(0x3ab68885u);
    p = fma(p, r, uintBitsToFloat(0x3c0905b7u));
    p = fma(p, r, uintBitsToFloat(0x3d2aaa8du));
    p = fma(p, r, uintBitsToFloat(0x3e2aaa6eu));
    p = fma(p, r, 0.5);
    p = fma(p, r, 1.0);
    p = fma(p, r, 1.0);
    int whole = int(n), first = whole >> 1;
    precise float scaled = intBitsToFloat((first + 127) << 23) * p;
    precise float y = scaled * intBitsToFloat((whole - first + 127) << 23);
    return y;
}

// To nearest even, clamped to the largest finite half (packHalf2x16 may round as it likes).
uint cached_half(float x)
{
    if (isnan(x))
        return 0x7e00;
    uint bits = floatBitsToUint(clamp(x, -65504.0, 65504.0));
    uint sign = bits >> 16 & 0x8000, most = bits & 0x7fffffff;
    if (most < 0x38800000u)
        return sign | uint(roundEven(uintBitsToFloat(most) * 16777216.0));
    return sign | (most - 0x38000000u + 0xfff + (most >> 13 & 1)) >> 13;
}

// 32 values as a record of quantized inputs.
void quantize_block(vec4 v[8], uint terms, out uvec4 record[5])
{
    vec4 most = vec4(0.0);
    bool finite = true;
    [[unroll]] for (int i = 0; i < 8; i++) {
        most = max(most, abs(v[i]));
        finite = finite && all(lessThanEqual(abs(v[i]), vec4(3.402823466e38)));
    }
    float amax = max(max(most.x, most.y), max(most.z, most.w));
    bool zero = !finite || amax < 1e-30;
    precise float s = zero ? 0.0 : amax / 127.0;
    precise float inv = zero ? 0.0 : 127.0 / amax;
    precise float inv2 = 254.0 * inv;
    ivec2 sum1 = ivec2(0), sum2 = ivec2(0);
    uvec4 q1[2], q2[2];
    // Rolled, because a driver's time to compile counts as well; values, words and sums go round.
    [[dont_unroll]] for (int i = 0; i < 8; i++) {
        precise vec4 x = zero ? vec4(0.0) : v[0];
        precise vec4 r1 = roundEven(x * inv);
        precise vec4 r2 = roundEven(fma(vec4(-s), r1, x) * inv2);
        ivec4 a = ivec4(r1), b = ivec4(clamp(r2, vec4(-127.0), vec4(127.0)));
        uvec4 u = uvec4(a + 128), w = uvec4(b + 128);
        [[unroll]] for (int j = 0; j < 7; j++)
            v[j] = v[j + 1];
        q1[0] = uvec4(q1[0].yzw, q1[1].x);
        q1[1] = uvec4(q1[1].yzw, u.z | u.w << 8 | u.x << 16 | u.y << 24);
        q2[0] = uvec4(q2[0].yzw, q2[1].x);
        q2[1] = uvec4(q2[1].yzw, w.z | w.w << 8 | w.x << 16 | w.y << 24);
        if (i == 4) {
            sum1 = sum1.yx;
            sum2 = sum2.yx;
        }
        sum1.x += a.x + a.y + a.z + a.w;
        sum2.x += b.x + b.y + b.z + b.w;
    }
    precise float scale = terms == 2 ? s / 254.0 : s;
    record[0] = uvec4(floatBitsToUint(scale), uint(sum1.y) & 0xffff | uint(sum1.x) << 16,
                      uint(sum2.y) & 0xffff | uint(sum2.x) << 16, 0);
    [[unroll]] for (int i = 0; i < 2; i++) {
        record[1 + i] = q1[i];
        record[3 + i] = q2[i];
    }
}
