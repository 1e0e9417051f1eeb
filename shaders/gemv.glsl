// A workgroup computes a row group of 16 for TOKENS tokens (8 at most): a lane takes four rows and
// one of the chunks of K, so that four lanes read 64 bytes side by side. The workgroup that is the
// last to make its part of what the next op takes as one makes it that (FINISH).
#include "gemm_team.glsl"

const uint STRIDE = CHUNKS * 16 + 16; // floats of a token; 16 more, for other banks of the memory

shared float chunk_sum[TOKENS * STRIDE];

void quantized_chunk(uint group1, uint quad, uint chunk, uint token, uint tokens,
                     inout precise vec4 acc[TOKENS])
{
    uint blocks = pc.cols / 32, per = chunk_of(blocks, 1);
    for (uint b = chunk * per; b < min(chunk * per + per, blocks); b++) {
        uvec4 c[8];
        vec4 ws[2], wm[2];
        load_codes(group1 / 4 + quad, pc.planes.high4, b, c);
        [[unroll]] for (uint i = 0; i < 8; i++)
            c[i] = signed_codes(c[i]);
        [[unroll]] for (uint g = 0; g < 32 / GROUP; g++)
            load_scales(group1, pc.planes, quad, b * 32 + g * 16, ws[g], wm[g]);
        [[unroll]] for (uint t = 0; t < TOKENS; t++) {
            if (t >= tokens)
                break;
            int at = int(input_row(token + t) * pc.in4 + b * RECORD);
            uvec4 head = texelFetch(records, at);
            ivec2 s1 = sums_of(head.y), s2 = sums_of(head.z);
            float scale = uintBitsToFloat(head.x);
            ivec4 a[4];
            [[unroll]] for (uint i = 0; i < 4; i++)
                a[i] = ivec4(0);
            [[unroll]] for (int i = 0; i < 2 * TERMS; i++) {
                uvec4 x = texelFetch(records, at + 1 + i);
                [[unroll]] for (uint j = 0; j < 4; j++)
                    [[unroll]] for (uint r = 0; r < 4; r++)
                        a[i][r] += dot4(c[i % 2 * 4 + j][r], x[j]);
            }
            ivec2 s = ivec2(whole_sum(s1.x, s2.x), whole_sum(s1.y, s2.y));
            ivec4 low = TERMS == 2 ? 254 * a[0] + a[2] : a[0];
            ivec4 high = TERMS == 2 ? 254 * a[1] + a[3] : a[1];
            precise vec2 sum = (GROUP == 16 ? vec2(s) : vec2(s.x + s.y)) * scale;
            if (GROUP == 16) {
                add_group(low, scale, sum.x, ws[0], wm[0], acc[t]);
                add_group(high, scale, sum.y, ws[1], wm[1], acc[t]);
            } else {
                add_group(low + high, scale, sum.x, ws[0], wm[0], acc[t]);
            }
        }
    }
}

void float_chunk(uint group1, uint quad, uint chunk, uint token, uint tokens,
                 inout precise vec4 acc[TOKENS])
{
    uint per = chunk_of(pc.cols, 4), end = min(chunk * per + per, pc.cols);
    for (uint k = chunk * per; k < end; k += 4) {
        vec4 w[4];
        [[unroll]] for (uint i = 0; i < 4; i++)
            w[i] = load_floats(group1, pc.planes, quad, min(k + i, pc.cols - 1));
        [[unroll]] for (uint t = 0; t < TOKENS; t++) {
            if (t >= tokens)
                break;
            vec4 x = read_floats(inputs, input_row(token + t) * pc.in4 + k / 4);
            [[unroll]] for (uint i = 0; i < 4; i++)
                acc[t] = k + i < end ? fma(w[i], vec4(x[i]), acc[t]) : acc[t];
        }
    }
}

#ifdef FINISH

// Counts the workgroups that have made their part of a tile, or of a tile's block; zeros between
// dispatches.
layout(std430, binding = BIND_SYNC) coherent buffer Sync { uint arrived[]; };
shared uint arrival;

vec4 row_values(uint at)
{
    at *= 4;
    return vec4(result[at], result[at + 1], result[at + 2], result[at + 3]);
}

// Whether this workgroup is the last of `n` to come here.
bool is_last(uint at, uint n)
{
    meet();
    if (gl_LocalInvocationID.x == 0) {
        arrival = atomicAdd(arrived[at], 1, gl_ScopeDevice, gl_StorageSemanticsBuffer,
                            gl_SemanticsAcquireRelease) + 1;
        if (arrival == n)
            arrived[at] = 0;
    }
    meet();
    return arrival == n;
}

// With a norm whole rows, which all workgroups of a tile have made; else blocks of 32, which two have.
void finish_next(uint group, uint token, uint tokens)
{
    Next next = Next(pc.more[FINISH_ACT4], pc.more[FINISH_FLOATS4], pc.more[FINISH_TERMS],
                     pc.more[FINISH_NORM1]);
    uint tile = gl_WorkGroupID.y, block = group / 2, blocks = (pc.groups + 1) / 2;
    if (NORM) {
        if (!is_last(tile, gl_NumWorkGroups.x))
            return;
        for (uint t = 0; t < tokens; t++)
            finish_row(token + t, (token + t) * pc.out4, pc.more[FINISH_COLS], pc.eps, next);
    } else if (is_last(tile * blocks + block, min(2, pc.groups - block * 2))) {
        uint row = token + lane() / 8;
        if (row < token + tokens)
            finish_block(row, block, 1.0, row_values(row * pc.out4 + block * 8 + lane() % 8), next);
    }
}
#endif

// A row group for so many tokens, from `token` on.
void compute(uint group, uint token, uint tokens)
{
    uint me = gl_LocalInvocationID.x, quad = me % 4, chunk = me / 4;
    uint part = part_of(group), in_part = group - pc.first[part];
    uint t_out = me / 16, row = in_part * 16 + me % 16; // of the sum that this lane finishes
    precise float before = 0.0, y = 0.0;
    // With GATED the second matrix has the same rows: gate first, then up.
    for (uint m = 0; m < (WHAT == MODE_GATED ? 2 : 1); m++) {
        uint group1 = first_word(part + m) + in_part * pc.planes.stride1;
        precise vec4 acc[TOKENS];
        [[unroll]] for (uint t = 0; t < TOKENS; t++)
            acc[t] = vec4(0.0);
        if (FLOAT_WEIGHTS)
            float_chunk(group1, quad, chunk, token, tokens, acc);
        else
            quantized_chunk(group1, quad, chunk, token, tokens, acc);
        barrier(); // the sums of the matrix before have been read
        [[unroll]] for (uint t = 0; t < TOKENS; t++)
            [[unroll]] for (uint r = 0; r < 4; r++)
                chunk_sum[t * STRIDE + chunk * 16 + quad * 4 + r] = acc[t][r];
        barrier();
        before = y;
        y = 0.0;
        if (t_out < tokens) {
            for (uint c = 0; c < CHUNKS; c++)
                y += chunk_sum[t_out * STRIDE + c * 16 + me % 16];
            y += bias_of(part + m, row);
        }
    }
    if (t_out < tokens)
        finish(part, row, row_at(token + t_out), WHAT == MODE_GATED ? gated(before, y) : y);
}

void main()
{
    uint group = gl_WorkGroupID.x, token = gl_WorkGroupID.y * TOKENS, count = count_rows();
    if (token >= count)
        return;
    uint tokens = min(TOKENS, count - token);
#ifdef EXPERTS
    for (end = 0; end < tokens;) {
        begin_rows(token, end, tokens);
        if (is_here(group))
            compute(group, token + begin, end - begin);
    }
#else
    compute(group, token, tokens);
#endif
#ifdef FINISH
    finish_next(group, token, tokens);
#endif
}
