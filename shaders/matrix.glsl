// A workgroup computes 64 rows for TOKENS (64) tokens by cooperative matrices: int8 by int8 to int32
// for each group of 16 or 32 weights, whose sums join a matrix of floats element by element. Codes
// and inputs are staged as bytes, STEP blocks at a time. glslang of Debian 12 knows the older
// GL_NV_cooperative_matrix alone: coopmat.py makes the module one of VK_KHR_cooperative_matrix.
#extension GL_NV_cooperative_matrix : require
#extension GL_NV_integer_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_int8 : require
#include "gemm_team.glsl"

// Of the device (tier.c): fragments of a subgroup, subgroups at most, and a fragment's shape.
layout(constant_id = CONST_FRAGMENTS) const uint FRAGMENTS = 4;
layout(constant_id = CONST_SUBGROUPS) const uint SUBGROUPS = 4;
layout(constant_id = CONST_FRAGMENT_M) const uint FRAGMENT_ROWS = 16;
layout(constant_id = CONST_FRAGMENT_N) const uint FRAGMENT_COLUMNS = 16;
layout(constant_id = CONST_FRAGMENT_K) const uint FRAGMENT_DEPTH = 16;

#define CODES   icoopmatNV<8, gl_ScopeSubgroup, FRAGMENT_ROWS, FRAGMENT_DEPTH>
#define INPUTS  icoopmatNV<8, gl_ScopeSubgroup, FRAGMENT_DEPTH, FRAGMENT_COLUMNS>
#define SUMS    icoopmatNV<32, gl_ScopeSubgroup, FRAGMENT_ROWS, FRAGMENT_COLUMNS>
#define RESULTS fcoopmatNV<32, gl_ScopeSubgroup, FRAGMENT_ROWS, FRAGMENT_COLUMNS>

// A group of 16 is padded with zeros where a fragment is deeper. Rows are 4 words longer than they
// need be, for other banks of the memory, and because a padded group's inputs reach beyond it.
const uint ROWS = MATRIX_TILE, STEP = 2, GROUPS = 32 / GROUP;
const uint GROUP_WORDS = (GROUP > FRAGMENT_DEPTH ? GROUP : FRAGMENT_DEPTH) / 4;
const uint CODE_ROW = GROUPS * GROUP_WORDS + 4, INPUT_ROW = 8 * TERMS + 4;
const uint ACROSS = TOKENS / FRAGMENT_COLUMNS; // fragments

shared uint codes[STEP * ROWS * CODE_ROW], inner[STEP * TOKENS * INPUT_ROW];
shared float scales[STEP * GROUPS * ROWS], least[STEP * GROUPS * ROWS];
shared float factors[STEP * TOKENS], sums[STEP * GROUPS * TOKENS], biases[ROWS];
shared float scratch[SUBGROUPS * FRAGMENT_ROWS * FRAGMENT_COLUMNS];

void stage_codes(uint group1, uint quad, uint b, uint s)
{
    uvec4 c[8];
    load_codes(group1 / 4 + quad % 4, pc.planes.high4, b + s, c);
    [[unroll]] for (uint i = 0; i < 8; i++) {
        c[i] = signed_codes(c[i]);
        uint at = i / (GROUP / 4) * GROUP_WORDS + i % (GROUP / 4);
        [[unroll]] for (uint r = 0; r < 4; r++)
            codes[(s * ROWS + quad * 4 + r) * CODE_ROW + at] = c[i][r];
    }
    for (uint i = GROUP / 4; i < GROUP_WORDS; i++)
        [[unroll]] for (uint g = 0; g < GROUPS; g++)
            [[unroll]] for (uint r = 0; r < 4; r++)
                codes[(s * ROWS + quad * 4 + r) * CODE_ROW + g * GROUP_WORDS + i] = 0;
}

void stage_scales(uint group1, uint quad, uint b, uint s)
{
    [[unroll]] for (uint g = 0; g < GROUPS; g++) {
        vec4 ws, wm;
        load_scales(group1, pc.planes, quad % 4, (b + s) * 32 + g * 16, ws, wm);
        [[unroll]] for (uint r = 0; r < 4; r++) {
            scales[(s * GROUPS + g) * ROWS + quad * 4 + r] = ws[r];
            least[(s * GROUPS + g) * ROWS + quad * 4 + r] = wm[r];
        }
    }
}

void stage_inputs(uint token, uint tokens, uint b, uint blocks)
{
    uint words = min(STEP, blocks - b) * RECORD;
    for (uint i = gl_LocalInvocationID.x; i < tokens * words; i += LANES) {
        uint t = i / words, s = i % words / RECORD, at = i % RECORD;
        uvec4 v = texelFetch(records, int((token + t) * pc.in4 + (b + s) * RECORD + at));
        if (at == 0) {
            ivec2 s1 = sums_of(v.y), s2 = sums_of(v.z);
            ivec2 whole = ivec2(whole_sum(s1.x, s2.x), whole_sum(s1.y, s2.y));
            precise float scale = uintBitsToFloat(v.x);
            precise vec2 sum = (GROUP == 16 ? vec2(whole) : vec2(whole.x + whole.y)) * scale;
            factors[s * TOKENS + t] = scale;
            [[unroll]] for (uint g = 0; g < GROUPS; g++)
                sums[(s * GROUPS + g) * TOKENS + t] = sum[g];
        } else {
            [[unroll]] for (uint w = 0; w < 4; w++)
                inner[(s * TOKENS + t) * INPUT_ROW + (at - 1) * 4 + w] = v[w];
        }
    }
}

// Which row and column of a fragment each component of an invocation is, as a driver deals them out:
// loaded as any fragment is.
RESULTS load_places()
{
    RESULTS places;
    const uint size = FRAGMENT_ROWS * FRAGMENT_COLUMNS;
    uint mine = gl_SubgroupID * size;
    for (uint i = gl_SubgroupInvocationID; i < size; i += gl_SubgroupSize)
        scratch[mine + i] = float(i);
    subgroupBarrier();
    coopMatLoadNV(places, scratch, mine, FRAGMENT_COLUMNS, false);
    subgroupBarrier();
    return places;
}

uint row_of(float place)
{
    return uint(place) / FRAGMENT_COLUMNS;
}

uint column_of(float place)
{
    return uint(place) % FRAGMENT_COLUMNS;
}

// What a block adds to a fragment of results: rows from `row`, tokens from `t` on.
void add_block(uint s, uint row, uint t, RESULTS places, inout RESULTS acc)
{
    [[unroll]] for (uint g = 0; g < GROUPS; g++) {
        SUMS a = SUMS(0);
        [[unroll]] for (uint term = 0; term < TERMS; term++) {
            if (term > 0)
                a = a * 254;
            [[unroll]] for (uint k = 0; k < GROUP_WORDS; k += FRAGMENT_DEPTH / 4) {
                CODES c;
                INPUTS x;
                coopMatLoadNV(c, codes, (s * ROWS + row) * CODE_ROW + g * GROUP_WORDS + k, CODE_ROW,
                              false);
                coopMatLoadNV(x, inner,
                              (s * TOKENS + t) * INPUT_ROW + term * 8 + g * (GROUP / 4) + k,
                              INPUT_ROW, true);
                a = coopMatMulAddNV(c, x, a);
            }
        }
        RESULTS product = RESULTS(a);
        uint row1 = (s * GROUPS + g) * ROWS + row, t1 = (s * GROUPS + g) * TOKENS + t;
        [[unroll]] for (uint i = 0; i < acc.length(); i++) {
            uint r = row_of(places[i]), c = column_of(places[i]);
            precise float scaled = product[i] * factors[s * TOKENS + t + c];
            precise float y = fma(scaled, scales[row1 + r], acc[i]);
            if (HAS_MIN != 0)
                y = fma(sums[t1 + c], least[row1 + r], y);
            acc[i] = y;
        }
    }
}

// `group1`: of the row quad that this lane stages; `index`: of this subgroup's first fragment.
void product(uint group1, uint index, uint token, uint tokens, RESULTS places,
             out RESULTS total[FRAGMENTS])
{
    uint me = gl_LocalInvocationID.x, quad = me % 16, s = me / 16;
    uint blocks = pc.cols / 32, per = chunk_of(blocks, 1), left = per;
    RESULTS acc[FRAGMENTS];
    [[unroll]] for (uint f = 0; f < FRAGMENTS; f++)
        total[f] = acc[f] = RESULTS(0.0);
    for (uint b = 0; b < blocks; b += STEP) {
        barrier();
        if (s < STEP && b + s < blocks && group1 != NONE)
            stage_codes(group1, quad, b, s);
        else if (s >= STEP && s < 2 * STEP && b + s - STEP < blocks && group1 != NONE)
            stage_scales(group1, quad, b, s - STEP);
        stage_inputs(token, tokens, b, blocks);
        barrier();
        for (uint i = 0; i < min(STEP, blocks - b); i++) {
            [[unroll]] for (uint f = 0; f < FRAGMENTS; f++) {
                uint at = index + f;
                if (at < ROWS / FRAGMENT_ROWS * ACROSS)
                    add_block(i, at / ACROSS * FRAGMENT_ROWS, at % ACROSS * FRAGMENT_COLUMNS,
                              places, acc[f]);
            }
            if (--left == 0 || b + i + 1 == blocks) {
                left = per;
                [[unroll]] for (uint f = 0; f < FRAGMENTS; f++) {
                    total[f] = total[f] + acc[f];
                    acc[f] = RESULTS(0.0);
                }
            }
        }
    }
}

// The matrix's biases, and for a second matrix the function of both.
void join(uint index, bool second, RESULTS places, in RESULTS before[FRAGMENTS],
          inout RESULTS y[FRAGMENTS])
{
    [[unroll]] for (uint f = 0; f < FRAGMENTS; f++) {
        uint row = (index + f) / ACROSS * FRAGMENT_ROWS % ROWS;
        [[unroll]] for (uint i = 0; i < y[f].length(); i++) {
            precise float sum = y[f][i] + biases[row + row_of(places[i])];
            y[f][i] = second ? gated(before[f][i], sum) : sum;
        }
    }
}

void main()
{
    uint me = gl_LocalInvocationID.x, quad = me % 16, count = step_words[pc.count];
    uint group = gl_WorkGroupID.x * 4 + quad / 4, token = gl_WorkGroupID.y * TOKENS;
    if (token >= count)
        return;
    uint tokens = min(TOKENS, count - token), part = part_of(min(group, pc.groups - 1));
    uint in_part = group - pc.first[part], index = gl_SubgroupID * FRAGMENTS;
    bool there = group < pc.groups;
    RESULTS before[FRAGMENTS], y[FRAGMENTS], places = load_places();
    for (uint m = 0; m < (WHAT == MODE_GATED ? 2 : 1); m++) {
        [[unroll]] for (uint f = 0; f < FRAGMENTS; f++)
            before[f] = y[f];
        product(there ? pc.weight1[part + m] + in_part * pc.planes.stride1 : NONE, index, token,
                tokens, places, y);
        barrier(); // the biases of the matrix before have been read
        if (me < 16)
            [[unroll]] for (uint r = 0; r < 4; r++)
                biases[quad * 4 + r] = bias_of(part + m, in_part * 16 + quad % 4 * 4 + r);
        barrier();
        join(index, m == 1, places, before, y);
    }
    const uint size = FRAGMENT_ROWS * FRAGMENT_COLUMNS;
    uint mine = gl_SubgroupID * size;
    [[unroll]] for (uint f = 0; f < FRAGMENTS; f++) {
        coopMatStoreNV(y[f], scratch, mine, FRAGMENT_ROWS, true);
        subgroupBarrier();
        uint row = (index + f) / ACROSS * FRAGMENT_ROWS, t = (index + f) % ACROSS * FRAGMENT_COLUMNS;
        for (uint i = gl_SubgroupInvocationID; i < size; i += gl_SubgroupSize) {
            uint r = row + i % FRAGMENT_ROWS, to = t + i / FRAGMENT_ROWS;
            uint g = gl_WorkGroupID.x * 4 + r / 16, p = part_of(min(g, pc.groups - 1));
            if (r < ROWS && g < pc.groups && to < tokens)
                finish(p, (g - pc.first[p]) * 16 + r % 16, token + to, scratch[mine + i]);
        }
        subgroupBarrier();
    }
}
