// What the host and the shaders agree on: bindings, constants, modes, sizes, and what a dispatch is
// told. C and GLSL both include it, so it holds macros and structs of uint and float alone.
#ifndef NB_ABI_H // glslang warns of #pragma once
#define NB_ABI_H

#ifndef VULKAN // which glslang defines
#include <stdint.h>
typedef uint32_t uint;
typedef struct push_planes push_planes;
#endif

// --- Sizes

// The first two for shaders alone: C has NB_KV_POSITIONS and NB_GROUP_ROWS.
#define KV_POSITIONS 32  // of a KV block, and of a tile of attention
#define GROUP_ROWS   16  // of a packed matrix (tensor/layout.h)
#define LANES        128 // of a workgroup, where its lanes work together
#define MATRIX_TILE  64  // rows and tokens of a workgroup: matrix.glsl
#define STRIPES      512 // of a row of logits: top.comp

#define NONE 0xffffffffu

// --- Bindings. What is only read is bound as texels of four words (NB_IS_TEXELS); the rest are
// storage buffers.

#define BIND_WEIGHTS 0 // a window of the packed weights
#define BIND_VECTORS 1 // norms, biases
#define BIND_STEP    2 // the step's words
#define BIND_IN      3 // floats
#define BIND_ACT     4 // quantized inputs; or a second input of floats
#define BIND_OUT     5
#define BIND_OUT2    6 // what a shader writes beside its result
#define BIND_KV      7 // keys and values; or the step's words, or choices, as texels
#define BIND_FLOATS  8 // floats beside quantized results
#define BIND_SYNC    9 // counts of workgroups that are done
#define BINDINGS     10

// --- Words of the step buffer: how many rows, how many of those whose result is wanted; then
// tables.

#define STEP_ROWS   0
#define STEP_WANTED 1

// --- Constants of specialisation; 0 is the size of a workgroup. From CONST_TIER on: the device's.

#define CONST_LOCAL       0
#define CONST_PLANES      1 // enum nb_planes
#define CONST_CODEBOOK    2 // enum nb_codebook
#define CONST_SUB         3 // enum nb_sub
#define CONST_OFFSET      4 // taken off a code
#define CONST_SCALE_BLOCK 5
#define CONST_GROUP       6 // weights under one effective scale
#define CONST_HAS_MIN     7
#define CONST_SUB_BYTES   8
#define CONST_TERMS       9  // of quantized activations
#define CONST_TOKENS      10 // that an invocation covers
#define CONST_MODE        11 // what an op does with its result
#define CONST_HEADS       12 // of the model
#define CONST_KV_HEADS    13
#define CONST_K_DIM       14
#define CONST_V_DIM       15
#define CONST_ROPE_DIMS   16
#define CONST_SHARE       17 // query heads that an invocation covers
#define CONST_ACTIVATION  18 // enum nb_activation
#define CONST_TIER        19
#define CONST_FRAGMENTS   19 // of a subgroup: matrix.glsl
#define CONST_SUBGROUPS   20 // at most
#define CONST_FRAGMENT_M  21 // rows, columns and depth of a fragment
#define CONST_FRAGMENT_N  22
#define CONST_FRAGMENT_K  23
#define CONSTANTS         24

// enum nb_planes and enum nb_sub, as far as shaders ask for them.
#define PLANES_F32   0
#define PLANES_F16   1
#define PLANES_BF16  2
#define PLANES_8     3
#define PLANES_4_1   5
#define PLANES_4_2   6
#define PLANES_2_1   8
#define CODEBOOK_NF4 2 // of enum nb_codebook
#define SUB_NONE     0
#define SUB_SM8      1
#define SUB_SM4      2
#define SUB_S6       3
#define SUB_F32      6

// --- Modes

// gemm.comp: what becomes of the sums.
#define MODE_STORE       0
#define MODE_ADD         1
#define MODE_GATED       2 // of two matrices: gate and up
#define MODE_GATED_UP    3 // the gate is there
#define MODE_ROPE        4
#define MODE_ROPE_NEOX   5
#define MODE_ACTIVATED   6
#define MODE_FINISH      8  // bits: the result becomes the next op's input,
#define MODE_FINISH_NORM 16 // normalized

// quantize, attention, rope: bits.
#define MODE_NORM      1 // with a mean (MODE_MEAN) LayerNorm, else RMS
#define MODE_FLOAT     2
#define MODE_QUANTIZED 4
#define MODE_CAP       8
#define MODE_CODES     16 // the KV cache is of Q8_0,
#define MODE_FLOATS    32 // of F32; else of F16
#define MODE_ODD       64 // heads have an odd number of elements
#define MODE_MEAN      128
#define MODE_ROW_SCALE 256 // quantize: a row has one scale,
#define MODE_RANGE     512 // or all rows have, for numbers up to push_quantize.range

// rows.comp
#define MODE_ACTIVATE 0
#define MODE_SUM      1 // out += scale * in
#define MODE_SCALE    2 // and cap
#define MODE_CHOOSE   3 // experts
#define MODE_ORDER    4 // rows by expert
#define MODE_COMBINE  5 // what experts gave

// adapter.comp
#define MODE_THIN 0 // z = by * (A x)
#define MODE_WIDE 1 // y += B z

// norm.comp: bits.
#define MODE_LAYER 1 // LayerNorm, else RMS

// dequantize.comp
#define MODE_TO_F32  0
#define MODE_TO_F16  1
#define MODE_TO_MOST 2
#define MODE_TO_INT8 3

// --- What a dispatch is told. The first word of a shader whose dispatches have so many invocations
// for each row is that count: the recording sets it.

#define PUSH_BYTES 128

// A packed matrix: words from one row group to the next, and where in a group its planes begin
// (struct nb_packed), in units of 4, 2, 2 and 1 words.
struct push_planes {
    uint stride1, high4, scale2, min2, sub1;
};

struct push_embed {
    uint lanes;
    uint table1; // of the rows that are looked up, in the step's words; NONE: the first row
    uint weight1, first_row, rows; // a window of the matrix: rows [first_row, first_row + rows)
    uint cols;
    push_planes planes;
    uint out1; // floats of a row of the result
    uint adds; // to what is there
    float scale;
};

struct push_quantize {
    uint lanes;
    uint count;   // which of the step's counts limits the tokens
    uint each;    // rows of a token
    uint gather1; // a table of rows in the step's words, or NONE
    uint cols, in4, out4, act4, norm1, bias1;
    float eps;
    float range;
};

// Up to three matrices of one shape but for their rows stand side by side: their row groups, and
// their columns of the result.
struct push_gemm {
    uint count;
    uint groups; // in all
    uint cols;
    push_planes planes;
    uint in4, out4; // uvec4 of a token's input record or floats, vec4 of its output
    uint weight1[3], first[3], column4[3], rows[3], bias1[3];
    float eps; // of the norm that finishes
    uint more[6];
};
// FINISH: of push_gemm.more.
#define FINISH_ACT4    0
#define FINISH_FLOATS4 1
#define FINISH_TERMS   2
#define FINISH_NORM1   3
#define FINISH_COLS    4
// ROPE and ROPE_NEOX: the step's tables.
#define ROTATE_POSITION1 0
#define ROTATE_SEQUENCE1 1
#define ROTATE_ROPE4     2
#define ROTATE_BLOCKS1   3
#define ROTATE_STRIDE1   4
#define ROTATE_ROPES4    5 // texels of a token's ropes
// Experts: a window has the row groups [begin, end) of all of them, one after the other.
#define EXPERTS_BEGIN  0
#define EXPERTS_END    1
#define EXPERTS_EACH   2 // groups of one
#define EXPERTS_CHOSEN 3 // rows of a token
#define EXPERTS_SHARED 4 // rows of the result that have one row of the input
#define EXPERTS_ORDER1 5 // where the order of rows by expert lies among the choices

struct push_rope {
    uint lanes;            // pairs of q, k and v; of codes pairs of q, then blocks of k and v
    uint qkv1, q1, k1, v1; // floats of a row; where q, k and v begin in it
    uint heads, kv_heads, k_dim, v_dim, rope_dims, neox;
    uint position1, sequence1, rope1, ropes1, table1, table_stride; // in the step's words
    uint block1, v_offset1; // words of a KV block, where V begins
};

struct push_attention {
    uint lanes; // heads by SHARE, by 32 outputs
    uint qkv1;  // floats of a row of queries
    uint out4, act4;
    uint sharing, k_dim, v_dim;                 // sharing: query heads of a KV head
    uint end1, sequence1, table1, table_stride; // end: how many positions a row may see
    uint block4, v_offset4;                     // uvec4 of a KV block, and where V begins
    uint window;
    float scale, softcap;
    uint terms; // of the records
    uint count;
    uint gather1; // a table of the rows whose queries these are in the step's words, or NONE
};

struct push_norm {
    uint lanes; // heads of a row
    uint count, each;
    uint dim;
    uint in1, in_at, out1, out_at; // floats of a row, and where the heads begin in it
    // weights: floats from one head's to the next's. NONE: ones, and no bias.
    uint weight1, weights1, bias1;
    float eps;
    uint adds; // the result, times a scale, to what is there
    float scale;
};

struct push_rows {
    uint lanes;
    uint count, each;
    uint width;
    uint in1, in_at, other1, other_at, out1, out_at; // other1 0: there is none
    uint function;                                   // enum nb_activation, or enum nb_gating
    uint chosen, bias1; // experts of a token; what is added to their scores
    uint order1;        // where the order of rows by expert goes, behind the choices
    uint normalizes;    // the chosen ones' weights, which are then scaled
    float scale, cap;
};

struct push_top {
    uint lanes;      // stripes of a row
    uint wanted1;    // in the step's words: how many candidates each row wants
    uint vocab, in4; // in4: texels of a row of logits
};

// Up to three matrices that read the same rows and whose results lie side by side.
struct push_adapter {
    uint units; // row quads of all of them: of A, as many of each, or of W
    uint count;
    uint slot1;   // of each row's adapter in the step's words; NONE there: it has none
    uint gather1; // a table of the rows that these are in the step's words, or NONE
    uint cols;    // of A
    uint in4, out4;
    uint rank4, z4; // texels of z, of one matrix; where the first one's are in its row
    // Where a matrix's pair lies in the table of them, and texels from one adapter's to the next's.
    uint pair4[3], pairs4;
    uint first[3], column4[3], rows[3]; // of W: quads before it, and of the result
};
// A pair's two texels: where A begins in the layer's factors and its row groups are apart, in
// texels, and the same of B; the rank (0: this adapter leaves the matrix as it is), `by`, and the
// planes of A and of B.
#define PAIR_TEXELS 2

struct push_dequantize {
    uint lanes;
    uint row0, rows; // in the window
    uint weight1, cols;
    push_planes planes;
    uint out1; // words of a row of the result
};

#endif
