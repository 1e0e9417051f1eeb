// What the float engine on a Vulkan device and its shaders agree on (grad/vulkan/). Every shader
// sees five buffers, and is told where in them its operands begin: offsets count floats, and a
// row's length is given beside its offset. A value and its gradient have the same offset. C and
// GLSL both include it.
#ifndef NB_TRAIN_H // glslang warns of #pragma once
#define NB_TRAIN_H

#include "abi.h"

// --- Bindings: five that the device's layout has for storage buffers.

#define BIND_TABLES           BIND_STEP // words: angles, tiles of sequences, looked up rows
#define BIND_VALUES           BIND_OUT  // of one span
#define BIND_GRADIENTS        BIND_OUT2 // in these values
#define BIND_SPAN_WEIGHTS     BIND_FLOATS
#define BIND_WEIGHT_GRADIENTS BIND_SYNC

// --- Constants of specialisation; 0 is the size of a workgroup.

#define TRAIN_MODE   1
#define TRAIN_TILE   2 // of a product: rows and columns of a workgroup's tile
#define TRAIN_BLOCK  3 // and of an invocation's block of it
#define TRAIN_DEPTH  4 // numbers of the sum that are staged at once
#define TRAIN_CHUNKS 5 // of attention: a head's numbers, in chunks of 16

// --- Sizes

#define TRAIN_LANES        64 // of a workgroup that has a row, or a part of one
#define TRAIN_TEAM         256
#define TRAIN_COLUMNS      16 // of a workgroup that sums columns
#define TRAIN_QUERIES      32 // of a tile of attention, and as many keys
#define TRAIN_ATTEND_DEPTH 32
// Bytes that the largest workgroup shares, of TRAIN_TEAM invocations: two strips and two tiles.
#define TRAIN_SHARED (8 * TRAIN_QUERIES * (TRAIN_ATTEND_DEPTH + 1 + TRAIN_QUERIES + 1))

// --- Modes

// train_gemm.comp
#define TRAIN_FORWARD   0 // Y = X W^T
#define TRAIN_TO_INPUT  1 // dX = dY W
#define TRAIN_TO_WEIGHT 2 // dW = dY^T X

// train_rows.comp; the odd ones are gradients.
#define TRAIN_SUM           0
#define TRAIN_SUM_BACK      1
#define TRAIN_CAP           2
#define TRAIN_CAP_BACK      3
#define TRAIN_ACTIVATE      4
#define TRAIN_ACTIVATE_BACK 5
#define TRAIN_ROPE          6
#define TRAIN_ROPE_BACK     7
#define TRAIN_EMBED         8
#define TRAIN_EMBED_BACK    9

// train_norm.comp
#define TRAIN_NORM      0
#define TRAIN_NORM_BACK 1

// train_sums.comp
#define TRAIN_SUM_BIAS 0
#define TRAIN_SUM_NORM 1 // of a norm's weights

// train_attention.comp
#define TRAIN_ATTEND         0
#define TRAIN_ATTEND_QUERIES 1 // gradients of queries; leaves for each row and head what
#define TRAIN_ATTEND_KEYS    2 // those of keys and values need, where the gradient of `sum` is

// --- What a dispatch is told

// C [m][n] = old + the sum over k, + bias; old NONE: 0. A and B are [rows][k], but for gradients of
// inputs, whose B is [k][n], and of weights, whose A is [k][m] and B [k][n].
struct push_train_gemm {
    uint m, n, k;
    uint a, lda, b, ldb, c, ldc;
    uint old, ldold;
    uint bias; // [n] among the weights, or NONE
};

// Result y of x and perhaps z; of gradients x is the result's, and the operands' values are p and
// q.
struct push_train_rows {
    uint rows, width;
    uint x, x1, y, y1;
    uint z, z1;     // NONE: there is none
    uint old, old1; // what the result is added to; NONE: 0
    uint p, p1, q, q1;
    uint function; // enum nb_activation
    // In words: of RoPE where angles begin, and those of a row; of EMBED each row's place among
    // those that are looked up; backward where each one's rows begin in the list at table1.
    uint table, table1;
    uint dim, rope_dims, neox; // of RoPE: of a head
    float scale, cap;
};

// Heads of `dim` numbers, which lie side by side in a row.
struct push_train_norm {
    uint rows, heads, dim;
    uint x, x1, y, y1;
    uint stat, stat1;            // mean and factor of each head
    uint weight, weights1, bias; // weights1: from one head's weights to the next's
    uint layer;                  // LayerNorm, else RMS
    float eps;
};

// Sums over rows of columns of heads; with `each` every head has its own columns.
struct push_train_sums {
    uint rows, heads, dim, each;
    uint x, x1, y, y1; // x: of a norm alone
    uint stat, stat1;
    uint to; // among the gradients of weights
};

struct push_train_attention {
    uint tiles; // words: of each tile its sequence's first row and rows, and the tile's first
    uint q, q1, k, k1, v, v1, made, made1;
    uint sum, sum1; // logarithms of the softmaxes' sums
    uint k_dim, v_dim;
    uint sharing; // query heads of a KV head
    uint causal, window;
    float scale, softcap;
};
#define TRAIN_TILE_WORDS 3

#endif
