// What every shader shares: the bindings, the constants that specialise it, and the functions of
// docs/numerics.md. One invocation stands alone: no shared memory, no subgroups.
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_memory_scope_semantics : require
#include "abi.h"

layout(local_size_x_id = CONST_LOCAL) in;
layout(constant_id = CONST_PLANES) const uint PLANES = 4;
layout(constant_id = CONST_CODEBOOK) const uint CODEBOOK = 0;
layout(constant_id = CONST_SUB) const uint SUB = 0;
layout(constant_id = CONST_OFFSET) const uint OFFSET = 0;
layout(constant_id = CONST_SCALE_BLOCK) const uint SCALE_BLOCK = 32;
layout(constant_id = CONST_GROUP) const uint GROUP = 32;
layout(constant_id = CONST_HAS_MIN) const uint HAS_MIN = 0;
layout(constant_id = CONST_SUB_BYTES) const uint SUB_BYTES = 0;
layout(constant_id = CONST_TERMS) const uint TERMS = 1;
layout(constant_id = CONST_TOKENS) const uint TOKENS = 1;
layout(constant_id = CONST_MODE) const uint MODE = 0;
layout(constant_id = CONST_HEADS) const uint HEADS = 1;
layout(constant_id = CONST_KV_HEADS) const uint KV_HEADS = 1;
layout(constant_id = CONST_K_DIM) const uint K_DIM = 32;
layout(constant_id = CONST_V_DIM) const uint V_DIM = 32;
layout(constant_id = CONST_ROPE_DIMS) const uint ROPE_DIMS = 32;
layout(constant_id = CONST_SHARE) const uint SHARE = 1;
layout(constant_id = CONST_ACTIVATION) const uint ACTIVATION = 0;

// Where a row goes as the next op's input, and as what.
struct Next {
    uint act4, floats4; // uvec4 of a row's records; vec4 of a row of floats, or 0: not wanted
    uint terms;         // of the records; a workgroup makes none of 0
    uint norm1;         // the norm's weights in `vectors`, or NONE
};

// What is only read comes as texels of four words: a texel's fetch is straight code everywhere, while
// lavapipe makes a loop over its lanes of each word that is loaded from a storage buffer.
layout(binding = BIND_WEIGHTS) uniform usamplerBuffer weights;
layout(binding = BIND_VECTORS) uniform usamplerBuffer vectors;
layout(std430, binding = BIND_STEP) readonly buffer Step { uint step_words[]; };
layout(binding = BIND_IN) uniform usamplerBuffer inputs;
layout(binding = BIND_ACT) uniform usamplerBuffer records;
layout(binding = BIND_KV) uniform usamplerBuffer cache;

// Where dispatches have so many invocations for each row, their number may be more than one dimension
// holds.
uint invocation()
{
    return gl_GlobalInvocationID.y * gl_NumWorkGroups.x * gl_WorkGroupSize.x + gl_GlobalInvocationID.x;
}

uint pick(uvec4 v, uint i) // word i % 4
{
    uvec2 pair = i % 4 >= 2 ? v.zw : v.xy;
    return i % 2 != 0 ? pair.y : pair.x;
}

uint word_at(usamplerBuffer from, uint i)
{
    return pick(texelFetch(from, int(i / 4)), i);
}

// By whole numbers, because unpackHalf2x16 may take subnormals for 0, and scales often are: one whose
// exponent is 0 counts 2^-24.
vec4 halves_of(uvec2 words)
{
    uvec4 h = uvec4(words.x, words.x >> 16, words.y, words.y >> 16), size = h & 0x7fff;
    uvec4 bits = (size << 13) + mix(uvec4(112u << 23), uvec4(224u << 23), greaterThan(size, uvec4(0x7bff)));
    vec4 small = vec4(size) * uintBitsToFloat(0x33800000u);
    bits = mix(bits, floatBitsToUint(small), lessThan(size, uvec4(0x400)));
    return uintBitsToFloat(bits | (h & 0x8000) << 16);
}

float half_of(uint h)
{
    return halves_of(uvec2(h & 0xffff, 0)).x;
}

vec4 read_floats(usamplerBuffer from, uint at)
{
    return uintBitsToFloat(texelFetch(from, int(at)));
}

// A block of 32 quantized inputs is a record of 1 + 2 * TERMS uvec4: {scale as float bits, sums of
// q1 over its halves as two int16, the same of q2, 0}, then q1 as bytes + 128, then q2. Bytes of a
// word stand in the order k+2, k+3, k, k+1: see half_dot in gemm.comp.
const uint RECORD = 1 + 2 * TERMS;

// Waits for the workgroup. What its lanes have written is there for them, for whoever one of them tells
// that it is (by arrive), and what they were told is there for all of them.
void meet()
{
    controlBarrier(gl_ScopeWorkgroup, gl_ScopeDevice,
                   gl_StorageSemanticsBuffer | gl_StorageSemanticsShared, gl_SemanticsAcquireRelease);
}

// Told by their bits, because a driver may reckon as if NaN did not exist.
bvec4 are_finite(vec4 v)
{
    return notEqual(floatBitsToUint(v) & 0x7f800000u, uvec4(0x7f800000u));
}

const uint NAN_BITS = 0x7fc00000u, NAN_HALF = 0x7e00;

// A norm's factor for a row of this mean square: none where the squares have overflowed.
float factor_of(float mean, float eps)
{
    precise float scale = 1.0 / sqrt(mean + eps);
    return (floatBitsToUint(mean) & 0x7f800000u) != 0x7f800000u ? scale : uintBitsToFloat(NAN_BITS);
}

// Four floats from word `at` on.
vec4 floats_at(usamplerBuffer from, uint at)
{
    uvec4 v = texelFetch(from, int(at / 4));
    if (at % 4 != 0) {
        uvec4 w = texelFetch(from, int(at / 4 + 1));
        v = at % 4 == 1 ? uvec4(v.yzw, w.x) : at % 4 == 2 ? uvec4(v.zw, w.xy) : uvec4(v.w, w.xyz);
    }
    return uintBitsToFloat(v);
}

#include "functions.glsl"

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

// The largest magnitude among 32 values, a NaN's bits where one of them is not finite.
uint most_of(vec4 v[8])
{
    vec4 most = vec4(0.0);
    bool finite = true;
    [[unroll]] for (int i = 0; i < 8; i++) {
        most = max(most, abs(v[i]));
        finite = finite && all(are_finite(v[i]));
    }
    return finite ? floatBitsToUint(max(max(most.x, most.y), max(most.z, most.w))) : NAN_BITS;
}

// 32 values as a record of quantized inputs, under a scale for magnitudes up to that of these bits.
void quantize_under(uint most, vec4 v[8], uint terms, out uvec4 record[5])
{
    bool finite = most != NAN_BITS;
    float amax = finite ? uintBitsToFloat(most) : 0.0;
    bool zero = !finite || amax < 1e-30;
    precise float s = zero ? 0.0 : amax / 127.0;
    precise float inv = zero ? 0.0 : 127.0 / amax;
    precise float inv2 = 254.0 * inv;
    ivec2 sum1 = ivec2(0), sum2 = ivec2(0);
    uvec4 q1[2], q2[2];
    // Rolled, because a driver's time to compile counts as well; values, words and sums go round.
    [[dont_unroll]] for (int i = 0; i < 8; i++) {
        precise vec4 x = zero ? vec4(0.0) : v[0];
        precise vec4 scaled = x * inv;
        precise vec4 r1 = roundEven(clamp(scaled, vec4(-127.0), vec4(127.0)));
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
    record[0] = uvec4(finite ? floatBitsToUint(scale) : NAN_BITS, uint(sum1.y) & 0xffff | uint(sum1.x) << 16,
                      uint(sum2.y) & 0xffff | uint(sum2.x) << 16, 0);
    [[unroll]] for (int i = 0; i < 2; i++) {
        record[1 + i] = q1[i];
        record[3 + i] = q2[i];
    }
}

void quantize_block(vec4 v[8], uint terms, out uvec4 record[5])
{
    quantize_under(most_of(v), v, terms, record);
}
