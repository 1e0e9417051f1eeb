// Products of matrices for training, a tile of C a workgroup: strips of A and B are staged in shared
// memory, and an invocation has a block of sums in registers. Its rows and columns lie ACROSS apart, so
// that neighbours read neighbouring words of shared memory.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "train.glsl"

layout(constant_id = TRAIN_TILE) const uint TILE = 64;
layout(constant_id = TRAIN_BLOCK) const uint BLOCK = 4;
layout(constant_id = TRAIN_DEPTH) const uint DEPTH = 16;

layout(push_constant) uniform Push { push_train_gemm pc; };

const uint ACROSS = TILE / BLOCK;
const uint STRIDE = TILE + 1; // odd, so that a column's words lie in different banks
const bool A_BY_K = MODE != TRAIN_TO_WEIGHT, B_BY_K = MODE == TRAIN_FORWARD;

shared float left[DEPTH * STRIDE], right[DEPTH * STRIDE]; // [k][row], [k][column]

float a_at(uint at)
{
    return MODE == TRAIN_FORWARD ? values[at] : gradients[at];
}

float b_at(uint at)
{
    return MODE == TRAIN_TO_WEIGHT ? values[at] : weights[at];
}

// Neighbours take neighbouring words of memory.
void stage(uint row0, uint column0, uint k0)
{
    for (uint e = gl_LocalInvocationIndex; e < TILE * DEPTH; e += gl_WorkGroupSize.x) {
        uint i = A_BY_K ? e / DEPTH : e % TILE, k = A_BY_K ? e % DEPTH : e / TILE;
        uint row = row0 + i, at = k0 + k;
        float x = 0.0;
        if (row < pc.m && at < pc.k)
            x = a_at(pc.a + (A_BY_K ? row * pc.lda + at : at * pc.lda + row));
        left[k * STRIDE + i] = x;
    }
    for (uint e = gl_LocalInvocationIndex; e < TILE * DEPTH; e += gl_WorkGroupSize.x) {
        uint j = B_BY_K ? e / DEPTH : e % TILE, k = B_BY_K ? e % DEPTH : e / TILE;
        uint column = column0 + j, at = k0 + k;
        float y = 0.0;
        if (column < pc.n && at < pc.k)
            y = b_at(pc.b + (B_BY_K ? column * pc.ldb + at : at * pc.ldb + column));
        right[k * STRIDE + j] = y;
    }
}

void store(uint row, uint column, float sum)
{
    uint at = pc.c + row * pc.ldc + column, old = pc.old + row * pc.ldold + column;
    if (MODE == TRAIN_FORWARD) {
        sum += pc.old != NONE ? values[old] : 0.0;
        values[at] = pc.bias != NONE ? sum + weights[pc.bias + column] : sum;
    } else if (MODE == TRAIN_TO_INPUT) {
        gradients[at] = sum + (pc.old != NONE ? gradients[old] : 0.0);
    } else {
        weight_gradients[at] = sum + (pc.old != NONE ? weight_gradients[old] : 0.0);
    }
}

void main()
{
    const uint row0 = gl_WorkGroupID.y * TILE, column0 = gl_WorkGroupID.x * TILE;
    const uint mine = gl_LocalInvocationIndex / ACROSS, other = gl_LocalInvocationIndex % ACROSS;
    float sum[BLOCK * BLOCK], x[BLOCK], y[BLOCK];
    [[unroll]] for (uint i = 0; i < BLOCK * BLOCK; i++)
        sum[i] = 0.0;
    for (uint k0 = 0; k0 < pc.k; k0 += DEPTH) {
        barrier();
        stage(row0, column0, k0);
        barrier();
        [[dont_unroll]] for (uint k = 0; k < min(DEPTH, pc.k - k0); k++) {
            [[unroll]] for (uint i = 0; i < BLOCK; i++) {
                x[i] = left[k * STRIDE + mine + i * ACROSS];
                y[i] = right[k * STRIDE + other + i * ACROSS];
            }
            [[unroll]] for (uint i = 0; i < BLOCK; i++)
                [[unroll]] for (uint j = 0; j < BLOCK; j++)
                    sum[i * BLOCK + j] = fma(x[i], y[j], sum[i * BLOCK + j]);
        }
    }
    // By slabs of ACROSS rows that go through shared memory, so that neighbours write neighbouring words. The
    // sums go round, because drivers take long to compile loops that are not rolled.
    [[dont_unroll]] for (uint i = 0; i < BLOCK; i++) {
        barrier();
        [[unroll]] for (uint j = 0; j < BLOCK; j++)
            left[mine * STRIDE + other + j * ACROSS] = sum[j];
        [[unroll]] for (uint j = 0; j < BLOCK * BLOCK - BLOCK; j++)
            sum[j] = sum[j + BLOCK];
        barrier();
        for (uint e = gl_LocalInvocationIndex; e < ACROSS * TILE; e += gl_WorkGroupSize.x) {
            uint row = row0 + i * ACROSS + e / TILE, column = column0 + e % TILE;
            if (row < pc.m && column < pc.n)
                store(row, column, left[e / TILE * STRIDE + e % TILE]);
        }
    }
}
