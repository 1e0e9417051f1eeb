// The best logits of a row: an invocation takes every lanes-th texel of the vocabulary, a stripe,
// and writes the id of its highest logit alone; of equal ones the lowest. Keys are whole numbers, so
// that no driver's way with NaN, -0 or subnormals changes the order (engine/candidate.h): what is not
// finite comes first.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(push_constant) uniform Push { push_top pc; };

const uint AHEAD = 4; // texels that are under way together
const uvec2 FIRST = uvec2(0xffffffffu, 0), LAST = uvec2(0, NONE); // before and after all logits

uint key_of(uint bits)
{
    uint size = bits & 0x7fffffffu;
    if (size >= 0x7f800000u)
        return 0xfffffffeu;
    if (size == 0)
        return 0x80000000u;
    return size == bits ? bits | 0x80000000u : ~bits;
}

// Of two logits' keys and ids.
bool precedes(uvec2 a, uvec2 b)
{
    return a.x > b.x || (a.x == b.x && a.y < b.y);
}

// The best of a row's texels t, t + stride ... that come after `last`; LAST where none does.
uvec2 best_after(uvec2 last, uint row4, uint t, uint stride)
{
    uvec2 most = LAST;
    uint end = (pc.vocab + 3) / 4;
    for (; t < end; t += AHEAD * stride) {
        uvec4 bits[AHEAD];
        [[unroll]] for (uint i = 0; i < AHEAD; i++)
            bits[i] = texelFetch(inputs, int(row4 + min(t + i * stride, end - 1)));
        [[unroll]] for (uint i = 0; i < AHEAD * 4; i++) {
            uvec2 one = uvec2(key_of(bits[i / 4][i % 4]), (t + i / 4 * stride) * 4 + i % 4);
            if (one.y < pc.vocab && precedes(last, one) && precedes(one, most))
                most = one;
        }
    }
    return most;
}

#ifdef TEAM
#include "top_team.glsl"
#else

layout(std430, binding = BIND_OUT) writeonly buffer Output { uint best[]; };

void main()
{
    uint row = invocation() / pc.lanes, lane = invocation() % pc.lanes;
    if (row >= step_words[STEP_WANTED] || step_words[pc.wanted1 + row] == 0)
        return;
    best[row * pc.lanes + lane] = best_after(FIRST, row * pc.in4, lane, pc.lanes).y;
}
#endif
