// A norm whose result is no quantized input: of whole rows or head by head, perhaps in place, or
// added to what is there. An invocation, or a workgroup, takes one head; of whole rows there is one.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(push_constant) uniform Push { push_norm pc; };

const bool LAYER = (MODE & MODE_LAYER) != 0; // else RMS

#ifdef TEAM
#include "team.glsl"
#include "fold_team.glsl"
#endif

layout(std430, binding = BIND_OUT) buffer Output { float result[]; };

// Four numbers of a head, from k on; zeros past the last.
vec4 load(uint at, uint k)
{
    vec4 x = floats_at(inputs, at + k);
    return mix(vec4(0.0), x, lessThan(uvec4(k, k + 1, k + 2, k + 3), uvec4(pc.dim)));
}

// Four numbers less the mean; zeros past the last.
vec4 centred(uint at, uint k, float mean)
{
    precise vec4 x = load(at, k) - vec4(mean);
    return mix(vec4(0.0), x, lessThan(uvec4(k, k + 1, k + 2, k + 3), uvec4(pc.dim)));
}

#ifdef TEAM
const uint STEP = LANES * 4;

uint first_quad()
{
    return lane() * 4;
}

// Of what each lane has of a row: 4 * LANES partial sums, folded in halves.
float sum_of(vec4 mine[4])
{
    return fold_team(mine[0]);
}
#else
const uint STEP = 4;

uint first_quad()
{
    return 0;
}

// 16 partial sums, folded in halves.
float sum_of(vec4 p[4])
{
    precise vec4 a = p[0] + p[2], b = p[1] + p[3];
    precise vec4 c = a + b;
    precise vec2 d = c.xy + c.zw;
    precise float sum = d.x + d.y;
    return sum;
}
#endif

// The sum of a head's numbers, or of the squares of how far they are from the mean.
float sum(uint at, bool squares, float mean)
{
    precise vec4 p[4] = vec4[4](vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0));
    uint i = 0;
    for (uint k = first_quad(); k < pc.dim; k += STEP) {
        vec4 x = squares && LAYER ? centred(at, k, mean) : load(at, k);
#ifdef TEAM
        p[0] = squares ? fma(x, x, p[0]) : p[0] + x;
#else
        // The partial sums go round.
        precise vec4 first = squares ? fma(x, x, p[0]) : p[0] + x;
        p = vec4[4](p[1], p[2], p[3], first);
        i++;
#endif
    }
    for (; i % 4 != 0; i++)
        p = vec4[4](p[1], p[2], p[3], p[0]);
    return sum_of(p);
}

vec4 vector_at(uint vector1, uint k)
{
    return floats_at(vectors, vector1 + k);
}

void normalize(uint row, uint head)
{
    uint from = row * pc.in1 + pc.in_at + head * pc.dim, to = row * pc.out1 + pc.out_at + head * pc.dim;
    float n = float(pc.dim);
    precise float mean = LAYER ? sum(from, false, 0.0) / n : 0.0;
    precise float spread = sum(from, true, mean) / n;
    float scale = factor_of(spread, pc.eps);
    for (uint k = first_quad(); k < pc.dim; k += STEP) {
        precise vec4 y = LAYER ? centred(from, k, mean) : load(from, k);
        y = y * scale;
        if (pc.weight1 != NONE)
            y = y * vector_at(pc.weight1 + head * pc.weights1, k);
        if (LAYER && pc.bias1 != NONE)
            y = y + vector_at(pc.bias1, k);
        [[unroll]] for (uint i = 0; i < 4; i++) {
            if (k + i >= pc.dim)
                break;
            precise float sum = pc.adds != 0 ? fma(pc.scale, y[i], result[to + k + i]) : y[i];
            result[to + k + i] = sum;
        }
    }
}

void main()
{
#ifdef TEAM
    uint row = gl_WorkGroupID.y, head = gl_WorkGroupID.x;
#else
    uint row = invocation() / pc.lanes, head = invocation() % pc.lanes;
#endif
    if (row / pc.each < step_words[pc.count])
        normalize(row, head);
}
