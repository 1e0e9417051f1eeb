// What adapters add to products (docs/numerics.md), for the rows of a step that have one: first
// z = by * (A x), then y += B z. An invocation computes four rows of a factor for TOKENS tokens; or
// (TEAM, of A, whose rows are few) a workgroup 16 of them, a lane four and a chunk of K. Rows of one
// adapter are neighbours: each run of them in a tile reads the factors once.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "weights.glsl"

layout(push_constant) uniform Push { push_adapter pc; };

// Rows [begin, end) of the tile have one adapter, whose factors of the matrix these are.
struct Factor {
    uint at1, stride1, planes, cols;
};

struct Pair {
    Factor a, b;
    uint rank;
    float by;
};

uint begin, end;

uint slot_of(uint row)
{
    return step_words[pc.slot1 + (pc.gather1 == NONE ? row : step_words[pc.gather1 + row])];
}

// The next run of rows, of a tile of so many; returns its adapter, or NONE.
uint next_run(uint token, uint tokens)
{
    begin = end;
    uint slot = slot_of(token + begin);
    for (end = begin + 1; end < tokens; end++)
        if (slot_of(token + end) != slot)
            break;
    return slot;
}

Pair pair_of(uint slot, uint part)
{
    int at = int(slot * pc.pairs4 + pc.pair4[part]);
    uvec4 where = texelFetch(vectors, at), what = texelFetch(vectors, at + 1);
    return Pair(Factor(where.x * 4, where.y * 4, what.z, pc.cols),
                Factor(where.z * 4, where.w * 4, what.w, what.x), what.x, uintBitsToFloat(what.y));
}

// acc += columns [k, last) of a factor's row quad times the run's rows, whose inputs begin at
// texel `in4` of a row.
void multiply(Factor f, uint quad, uint k, uint last, uint token, uint in4,
              inout precise vec4 acc[TOKENS])
{
    uint group1 = f.at1 + quad / 4 * f.stride1;
    for (; k < last; k += 4) {
        vec4 w[4];
        [[unroll]] for (uint i = 0; i < 4; i++)
            w[i] = load_elements(f.planes, group1, quad % 4, min(k + i, f.cols - 1));
        [[unroll]] for (uint t = 0; t < TOKENS; t++) {
            if (t < begin || t >= end)
                continue;
            vec4 x = read_floats(inputs, (token + t) * pc.in4 + in4 + k / 4);
            [[unroll]] for (uint i = 0; i < 4; i++)
                acc[t] = k + i < last ? fma(w[i], vec4(x[i]), acc[t]) : acc[t];
        }
    }
}

#ifdef TEAM
#include "chunks.glsl"

layout(std430, binding = BIND_OUT) writeonly buffer Output { float result[]; };

const uint STRIDE = CHUNKS * 16 + 16; // floats of a token; 16 more, for other banks of the memory

shared float chunk_sum[TOKENS * STRIDE];

void compute(uint unit, uint slot, uint token)
{
    uint part = unit * 4 / pc.rank4, quad = unit * 4 % pc.rank4, me = gl_LocalInvocationID.x;
    Pair pair = pair_of(slot, part);
    if (quad * 4 >= pair.rank)
        return;
    uint chunk = me / 4, per = chunk_of(pc.cols, 4), t_out = me / 16, row = me % 16;
    precise vec4 acc[TOKENS];
    [[unroll]] for (uint t = 0; t < TOKENS; t++)
        acc[t] = vec4(0.0);
    multiply(pair.a, quad + me % 4, chunk * per, min(chunk * per + per, pc.cols), token, 0, acc);
    barrier(); // the sums of the run before have been read
    [[unroll]] for (uint t = 0; t < TOKENS; t++)
        [[unroll]] for (uint r = 0; r < 4; r++)
            chunk_sum[t * STRIDE + chunk * 16 + me % 4 * 4 + r] = acc[t][r];
    barrier();
    if (t_out < begin || t_out >= end)
        return;
    precise float z = 0.0;
    for (uint c = 0; c < CHUNKS; c++)
        z += chunk_sum[t_out * STRIDE + c * 16 + row];
    z = z * pair.by;
    result[((token + t_out) * pc.out4 + pc.z4 + unit * 4) * 4 + row] = z;
}
#else
layout(std430, binding = BIND_OUT) buffer Output { vec4 result[]; };

void thin(uint unit, uint slot, uint token, inout precise vec4 acc[TOKENS])
{
    uint part = unit / pc.rank4, quad = unit % pc.rank4;
    Pair pair = pair_of(slot, part);
    if (quad * 4 >= pair.rank)
        return;
    multiply(pair.a, quad, 0, pc.cols, token, 0, acc);
    [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        precise vec4 z = acc[t] * pair.by;
        if (t >= begin && t < end)
            result[(token + t) * pc.out4 + pc.z4 + unit] = z;
    }
}

void wide(uint unit, uint slot, uint token, inout precise vec4 acc[TOKENS])
{
    uint part = unit < pc.first[1] ? 0 : unit < pc.first[2] ? 1 : 2, quad = unit - pc.first[part];
    Pair pair = pair_of(slot, part);
    if (pair.rank == 0)
        return;
    multiply(pair.b, quad, 0, pair.rank, token, pc.z4 + part * pc.rank4, acc);
    uvec4 row = quad * 4 + uvec4(0, 1, 2, 3);
    [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        if (t < begin || t >= end)
            continue;
        uint at = (token + t) * pc.out4 + pc.column4[part] + quad;
        precise vec4 y = result[at] + acc[t];
        result[at] = mix(result[at], y, lessThan(row, uvec4(pc.rows[part])));
    }
}

void compute(uint unit, uint slot, uint token)
{
    precise vec4 acc[TOKENS];
    [[unroll]] for (uint t = 0; t < TOKENS; t++)
        acc[t] = vec4(0.0);
    if (unit >= pc.units)
        return;
    if (MODE == MODE_THIN)
        thin(unit, slot, token, acc);
    else
        wide(unit, slot, token, acc);
}
#endif

void main()
{
#ifdef TEAM
    uint unit = gl_WorkGroupID.x;
#else
    uint unit = gl_GlobalInvocationID.x;
#endif
    uint token = gl_WorkGroupID.y * TOKENS, count = step_words[pc.count];
    if (token >= count)
        return;
    uint tokens = min(TOKENS, count - token);
    for (end = 0; end < tokens;) {
        uint slot = next_run(token, tokens);
        if (slot != NONE)
            compute(unit, slot, token);
    }
}
