// The highest logit of each stripe of a row: an invocation takes every lanes-th texel of the
// vocabulary. What is written is its id alone; of equal ones the lowest. Keys are whole numbers, so
// that no driver's way with NaN, -0 or subnormals changes the order (engine/candidate.h).
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(std430, binding = 5) writeonly buffer Output { uint best[]; };

layout(push_constant) uniform Push {
    uint lanes; // stripes of a row
    uint wanted1; // in the step's words: how many candidates each row wants
    uint vocab, in4; // in4: texels of a row of logits
} pc;

uint key_of(uint bits)
{
    uint size = bits & 0x7fffffffu;
    if (size > 0x7f800000u)
        return 0x007fffffu; // NaN as -inf
    if (size == 0)
        return 0x80000000u;
    return size == bits ? bits | 0x80000000u : ~bits;
}

void main()
{
    uint row = gl_GlobalInvocationID.x / pc.lanes, lane = gl_GlobalInvocationID.x % pc.lanes;
    if (row >= step_words[STEP_LOGITS] || step_words[pc.wanted1 + row] == 0)
        return;
    uint most = 0, id = NONE; // a stripe beyond the vocabulary's end has none
    for (uint t = lane; t * 4 < pc.vocab; t += pc.lanes) {
        uvec4 bits = texelFetch(inputs, int(row * pc.in4 + t));
        [[unroll]] for (uint i = 0; i < 4; i++) {
            uint key = key_of(bits[i]);
            if (key > most && t * 4 + i < pc.vocab) {
                most = key;
                id = t * 4 + i;
            }
        }
    }
    best[row * pc.lanes + lane] = id;
}
