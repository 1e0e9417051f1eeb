// Eight neighbours of a subgroup hold a block of 32 values, four each. The lane is counted from
// what the subgroups say, so that neighbours share one.
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require

layout(std430, binding = BIND_OUT2) writeonly buffer Act { uint act[]; };

uint lane()
{
    return gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
}

// Sums of four bytes each over the four lanes of a half block.
int half_sum(ivec4 v)
{
    int sum = v.x + v.y + v.z + v.w;
    sum += subgroupShuffleXor(sum, 1u);
    return sum + subgroupShuffleXor(sum, 2u);
}

uint bytes_from(ivec4 v)
{
    uvec4 u = uvec4(v) & 255;
    return u.x | u.y << 8 | u.z << 16 | u.w << 24;
}

// Magnitudes up to that of these bits have a code in each block, those of a NaN: no number has one.
// 0: each block has a scale of its own.
uint shared_most = 0;

// The lane's four values of a block whose record, of `terms`, begins at word `at`. Unlike those of
// common.glsl's quantize_block, bytes are signed and in order: what packed dot products take.
void quantize_team(vec4 v, uint terms, uint at)
{
    vec4 size = abs(v);
    uint odd = all(are_finite(v)) ? 0 : 1;
    float amax = odd != 0 ? 0.0 : max(max(size.x, size.y), max(size.z, size.w));
    [[unroll]] for (uint i = 1; i < 8; i *= 2) {
        odd |= subgroupShuffleXor(odd, i);
        amax = max(amax, subgroupShuffleXor(amax, i));
    }
    if (shared_most == NAN_BITS)
        odd = 1;
    else if (shared_most != 0)
        amax = uintBitsToFloat(shared_most);
    bool zero = odd != 0 || amax < 1e-30;
    precise float s = zero ? 0.0 : amax / 127.0;
    precise float inv = zero ? 0.0 : 127.0 / amax;
    precise vec4 x = zero ? vec4(0.0) : v;
    precise vec4 scaled = x * inv;
    precise vec4 q1 = roundEven(clamp(scaled, vec4(-127.0), vec4(127.0)));
    uint i = lane() % 8;
    act[at + 4 + i] = bytes_from(ivec4(q1));
    int sum1 = half_sum(ivec4(q1)), sum2 = 0;
    if (terms == 2) {
        precise float inv2 = 254.0 * inv;
        precise vec4 q2 = roundEven(fma(vec4(-s), q1, x) * inv2);
        ivec4 second = ivec4(clamp(q2, vec4(-127.0), vec4(127.0)));
        act[at + 12 + i] = bytes_from(second);
        sum2 = half_sum(second);
    }
    uint sums1 = uint(sum1) & 0xffff | uint(subgroupShuffleXor(sum1, 4u)) << 16;
    uint sums2 = uint(sum2) & 0xffff | uint(subgroupShuffleXor(sum2, 4u)) << 16;
    precise float scale = terms == 2 ? s / 254.0 : s;
    if (i == 0) {
        act[at] = odd != 0 ? NAN_BITS : floatBitsToUint(scale);
        act[at + 1] = sums1;
        act[at + 2] = sums2;
    }
}
