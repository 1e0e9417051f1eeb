// A workgroup computes 64 rows for TOKENS (32) tokens: the codes of STEP blocks, as signed bytes,
// and the inputs' records are staged in shared memory; a lane takes four rows and four tokens. Of
// float weights and their inputs it stages COLUMNS in the same memory.
#include "gemm_team.glsl"

const uint STEP = 4, QUADS = 16, MINE = TOKENS * QUADS / LANES; // MINE: tokens of a lane
const uint GROUPS = 32 / GROUP;

shared uvec4 codes[STEP][8][QUADS];
shared vec4 scales[STEP][GROUPS][QUADS], least[STEP][GROUPS][QUADS];
shared uvec4 heads[STEP][TOKENS], inner[STEP][2 * TERMS][TOKENS];
const uint COLUMNS = STEP * 8; // as many as `codes` holds, and `inner` with one term

// Half of the lanes bring codes, the others scales, then all of them inputs.
void stage(uint group1, uint b, uint blocks, uint token, uint tokens)
{
    uint me = gl_LocalInvocationID.x, quad = me % QUADS, s = me / QUADS % STEP;
    if (group1 != NONE && b + s < blocks) {
        if (me < LANES / 2) {
            uvec4 c[8];
            load_codes(group1 / 4 + quad % 4, pc.planes.high4, b + s, c);
            [[unroll]] for (uint i = 0; i < 8; i++)
                codes[s][i][quad] = signed_codes(c[i]);
        } else {
            [[unroll]] for (uint g = 0; g < GROUPS; g++)
                load_scales(group1, pc.planes, quad % 4, (b + s) * 32 + g * 16, scales[s][g][quad],
                            least[s][g][quad]);
        }
    }
    uint words = min(STEP, blocks - b) * RECORD;
    for (uint i = me; i < tokens * words; i += LANES) {
        uint t = i / words, at = i % words;
        uvec4 v = texelFetch(records, int((token + t) * pc.in4 + b * RECORD + at));
        if (at % RECORD == 0)
            heads[at / RECORD][t] = v;
        else
            inner[at / RECORD][at % RECORD - 1][t] = v;
    }
}

void add_block(uint s, uint quad, uint t, inout precise vec4 acc)
{
    uvec4 head = heads[s][t];
    ivec2 s1 = sums_of(head.y), s2 = sums_of(head.z);
    ivec2 sums = ivec2(whole_sum(s1.x, s2.x), whole_sum(s1.y, s2.y));
    float scale = uintBitsToFloat(head.x);
    ivec4 a[GROUPS];
    [[unroll]] for (uint g = 0; g < GROUPS; g++)
        a[g] = ivec4(0);
    [[unroll]] for (uint i = 0; i < 2 * TERMS; i++) {
        if (TERMS == 2 && i == 2)
            [[unroll]] for (uint g = 0; g < GROUPS; g++)
                a[g] *= 254;
        uvec4 x = inner[s][i][t];
        [[unroll]] for (uint j = 0; j < 4; j++) {
            uvec4 c = codes[s][i % 2 * 4 + j][quad];
            [[unroll]] for (uint r = 0; r < 4; r++)
                a[i % 2 * (GROUPS - 1)][r] += dot4(c[r], x[j]);
        }
    }
    precise vec2 sum = (GROUP == 16 ? vec2(sums) : vec2(sums.x + sums.y)) * scale;
    [[unroll]] for (uint g = 0; g < GROUPS; g++)
        add_group(a[g], scale, sum[g], scales[s][g][quad], least[s][g][quad], acc);
}

void close_chunk(inout precise vec4 acc[MINE], inout precise vec4 total[MINE])
{
    [[unroll]] for (uint i = 0; i < MINE; i++) {
        total[i] += acc[i];
        acc[i] = vec4(0.0);
    }
}

void quantized_product(uint group1, uint token, uint tokens, inout precise vec4 acc[MINE],
                       inout precise vec4 total[MINE])
{
    uint me = gl_LocalInvocationID.x, quad = me % QUADS, t = me / QUADS * MINE;
    uint blocks = pc.cols / 32, per = chunk_of(blocks, 1), left = per;
    for (uint b = 0; b < blocks; b += STEP) {
        barrier();
        stage(group1, b, blocks, token, tokens);
        barrier();
        for (uint s = 0; s < min(STEP, blocks - b); s++) {
            [[unroll]] for (uint i = 0; i < MINE; i++)
                add_block(s, quad, t + i, acc[i]);
            if (--left == 0 || b + s + 1 == blocks) {
                left = per;
                close_chunk(acc, total);
            }
        }
    }
}

void stage_floats(uint group1, uint column, uint token, uint tokens)
{
    uint me = gl_LocalInvocationID.x, quad = me % QUADS;
    for (uint k = me / QUADS; group1 != NONE && k < COLUMNS; k += LANES / QUADS)
        codes[k / 8][k % 8][quad] =
            floatBitsToUint(load_floats(group1, pc.planes, quad % 4, min(column + k, pc.cols - 1)));
    for (uint i = me; i < COLUMNS / 4 * TOKENS; i += LANES) {
        uint at = i / TOKENS, t = i % TOKENS;
        if (t < tokens && column + 4 * at < pc.cols)
            inner[at / 2][at % 2][t] =
                floatBitsToUint(read_floats(inputs, (token + t) * pc.in4 + column / 4 + at));
    }
}

void float_product(uint group1, uint token, uint tokens, inout precise vec4 acc[MINE],
                   inout precise vec4 total[MINE])
{
    uint me = gl_LocalInvocationID.x, quad = me % QUADS, t = me / QUADS * MINE;
    uint per = chunk_of(pc.cols, 4) / 4, left = per;
    for (uint column = 0; column < pc.cols; column += COLUMNS) {
        barrier();
        stage_floats(group1, column, token, tokens);
        barrier();
        for (uint at = 0; at < COLUMNS / 4 && column + 4 * at < pc.cols; at++) {
            [[unroll]] for (uint i = 0; i < MINE; i++) {
                vec4 x = uintBitsToFloat(inner[at / 2][at % 2][t + i]);
                [[unroll]] for (uint j = 0; j < 4; j++) {
                    vec4 w = uintBitsToFloat(codes[at / 2][at % 2 * 4 + j][quad]);
                    if (column + 4 * at + j < pc.cols)
                        acc[i] = fma(w, vec4(x[j]), acc[i]);
                }
            }
            if (--left == 0 || column + 4 * at + 4 >= pc.cols) {
                left = per;
                close_chunk(acc, total);
            }
        }
    }
}

void product(uint group1, uint token, uint tokens, out precise vec4 total[MINE])
{
    precise vec4 acc[MINE];
    [[unroll]] for (uint i = 0; i < MINE; i++)
        total[i] = acc[i] = vec4(0.0);
    if (FLOAT_WEIGHTS)
        float_product(group1, token, tokens, acc, total);
    else
        quantized_product(group1, token, tokens, acc, total);
}

void main()
{
    uint me = gl_LocalInvocationID.x, quad = me % QUADS;
    uint group = gl_WorkGroupID.x * 4 + quad / 4, token = gl_WorkGroupID.y * TOKENS;
    uint count = step_words[pc.count];
    if (token >= count)
        return;
    uint tokens = min(TOKENS, count - token), part = part_of(min(group, pc.groups - 1));
    uint in_part = group - pc.first[part];
    bool there = group < pc.groups;
    uint row = in_part * 16 + quad % 4 * 4;
    precise vec4 before[MINE], y[MINE];
    for (uint m = 0; m < (WHAT == MODE_GATED ? 2 : 1); m++) {
        [[unroll]] for (uint i = 0; i < MINE; i++)
            before[i] = y[i];
        product(there ? pc.weight1[part + m] + in_part * pc.planes.stride1 : NONE, token, tokens, y);
        [[unroll]] for (uint r = 0; r < 4; r++) {
            float bias = bias_of(part + m, row + r);
            [[unroll]] for (uint i = 0; i < MINE; i++)
                y[i][r] += bias;
        }
    }
    [[unroll]] for (uint i = 0; i < MINE; i++) {
        uint t = me / QUADS * MINE + i;
        if (there && t < tokens)
            [[unroll]] for (uint r = 0; r < 4; r++)
                finish(part, row + r, token + t,
                       WHAT == MODE_GATED ? gated(before[i][r], y[i][r]) : y[i][r]);
    }
}
