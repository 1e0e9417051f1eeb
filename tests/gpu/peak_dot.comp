// Chains of dot products of four bytes, on registers alone: the int8 peak without matrices. Eight
// chains of an invocation hide the latency; the factors are unknown to a compiler.
#version 450
#extension GL_EXT_spirv_intrinsics : require
layout(local_size_x = 256) in;
layout(push_constant) uniform Push { uvec2 address; uint count; } pc;
layout(std430, binding = 1) buffer Data { uvec4 words[]; } data;

spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019],
                  id = 4450)
int packed_dot(uint a, uint b, spirv_literal int format);

#define FOUR(x)                                                                                    \
    x.x += packed_dot(uint(x.y), factor.x, 0);                                                     \
    x.y += packed_dot(uint(x.z), factor.y, 0);                                                     \
    x.z += packed_dot(uint(x.w), factor.z, 0);                                                     \
    x.w += packed_dot(uint(x.x), factor.w, 0);

void main()
{
    uvec4 factor = data.words[0];
    ivec4 a = ivec4(gl_GlobalInvocationID.x) + ivec4(data.words[1]), b = a + 1;
    for (uint i = 0; i < pc.count; i++) {
        FOUR(a) FOUR(b) FOUR(a) FOUR(b)
        FOUR(a) FOUR(b) FOUR(a) FOUR(b)
    }
    if (a + b == ivec4(0x5eadbeef)) // hardly ever
        data.words[0] = uvec4(a);
}
