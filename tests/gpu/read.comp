// Reads a buffer once and keeps nothing: the memory's speed by the way that the buffer is bound. Each
// invocation reads `count` words of 16 bytes, neighbours beside each other, 8 of them in flight.
#version 450
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_buffer_reference : enable
#extension GL_EXT_buffer_reference_uvec2 : enable
layout(local_size_x = 256) in;

layout(push_constant) uniform Push { uvec2 address; uint count; } pc;
layout(std430, binding = 1) buffer Data { uvec4 words[]; } data;
#if defined(TEXELS)
layout(binding = 0) uniform utextureBuffer texels;
#define READ(i) texelFetch(texels, int(i))
#elif defined(ADDRESS)
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer Words { uvec4 at[]; };
#define READ(i) Words(pc.address).at[i]
#else
#define READ(i) data.words[i]
#endif

void main()
{
    uint lanes = gl_NumWorkGroups.x * gl_WorkGroupSize.x, at = gl_GlobalInvocationID.x;
    uvec4 all[8] = uvec4[8](uvec4(0), uvec4(0), uvec4(0), uvec4(0), uvec4(0), uvec4(0), uvec4(0),
                            uvec4(0));
    for (uint i = 0; i < pc.count; i += 8) {
        uvec4 next[8];
        [[unroll]] for (uint j = 0; j < 8; j++)
            next[j] = READ(at + (i + j) * lanes);
        [[unroll]] for (uint j = 0; j < 8; j++)
            all[j] ^= next[j];
    }
    uvec4 sum = uvec4(0);
    [[unroll]] for (uint j = 0; j < 8; j++)
        sum ^= all[j];
    if (sum == uvec4(0xdeadbeefu)) // never: the buffer is zeros
        data.words[at] = sum;
}
