// The packed compute layout of a weight matrix: rows interleaved by 16, codes in planes, scales as
// the type stores them. Lossless: nb_layout_unpack(nb_layout_pack(x)) == x, bit for bit.
//
// A matrix is `rows` outputs by `cols` inputs. Row groups of 16 follow each other at `stride` bytes
// (a multiple of 64); rows past the last are zero. Inside a row group, plane after plane, each
// covering all of `cols`:
//
//   codes   by 32-weight cell, in the order of k. With i in 0..3 and r the row in 0..15:
//     B8    512 bytes: byte [j 0..7][r][i] holds code k = 4j+i
//     B4    256 bytes: byte [j 0..3][r][i] holds k = 4j+i in bits 0-3 and k = 16+4j+i in bits 4-7
//     B2    128 bytes: byte [j 0..1][r][i] holds k = 8p+4j+i in bits 2p, 2p+1, for p in 0..3
//     B1     64 bytes: byte [r][i]         holds k = 4p+i in bit p, for p in 0..7
//           4+1, 4+2 and 2+1 bit types have a low plane (all cells), then a high plane (all cells).
//     F32/F16/BF16: element [k][r].
//   scale   fp16 d: [k / scale_block][r]; scale_block is 32, 64 (Q2_0, NF4) or 256 (super-blocks);
//           fp32 of INT8 and NF4.
//   min     fp16 m or dmin, the same shape, where the type has one.
//   sub     integer sub-scales of super-blocks, by super-block, `sub_bytes` a row: see enum nb_sub.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/type.h"

#define NB_GROUP_ROWS 16
#define NB_CELL       32 // weights of a code cell
#define NB_MAX_COLS   (1 << 20)

enum nb_planes {
    NB_PLANES_F32,
    NB_PLANES_F16,
    NB_PLANES_BF16,
    NB_PLANES_8,
    NB_PLANES_4,
    NB_PLANES_4_1,
    NB_PLANES_4_2,
    NB_PLANES_2,
    NB_PLANES_2_1,
};

// What a code means: code - offset, an integer of the IQ4 table, or a float of the NF4 table. Those
// are no integers in any unit, so such a matrix is of the float class: kernels multiply its weights
// by inputs that are not quantized.
enum nb_codebook { NB_CODEBOOK_LINEAR, NB_CODEBOOK_IQ4, NB_CODEBOOK_NF4 };

// S6 keeps the low 4 bits in u8 [8][16 rows] (group g in bits 0-3, g+8 in 4-7), then the high 2
// bits in u8 [4][16] (group g in byte g%4, bits 2(g/4)).
enum nb_sub {
    NB_SUB_NONE,
    NB_SUB_SM8,  // Q4_K, Q5_K: u8 scale[8][16 rows], then u8 min[8][16]; groups of 32
    NB_SUB_SM4,  // Q2_K: u8 [16][16 rows], scale in bits 0-3, min in bits 4-7; groups of 16
    NB_SUB_S6,   // Q3_K: see above; value - 32; groups of 16
    NB_SUB_S8,   // Q6_K: int8 [16][16 rows]; groups of 16
    NB_SUB_S6X8, // IQ4_XS: int8 [8][16 rows], the 6-bit value - 32; groups of 32
    NB_SUB_F32,  // groupwise matrices: none; scale and min are fp32 (groupwise.h)
};

// What a kernel must know of a type. One table, indexed by type.
struct nb_layout {
    uint32_t type;
    enum nb_planes planes;
    enum nb_codebook codebook;
    enum nb_sub sub;
    uint32_t offset; // of a linear code: 8 for Q4_0, 128 for Q8_0 (stored XOR 0x80); 0 with minima
    uint32_t scale_block; // weights under one fp16 scale; 0 for floats
    uint32_t group;       // weights under one effective scale: 16 or 32 (64 for Q2_0); 0 for floats
    bool has_min;
    uint32_t sub_bytes; // a row's, a super-block's
};

// A matrix in packed form, as kernels see it. Offsets are from the start of a row group.
struct nb_packed {
    const struct nb_layout *layout;
    uint32_t rows, cols;
    const uint8_t *data;
    size_t stride;                // bytes of a row group of 16
    size_t high, scale, min, sub; // plane offsets; the low code plane is at 0
};

// Of the float class: computed with in floats.
static inline bool nb_is_float(const struct nb_packed *w)
{
    return w->layout->planes <= NB_PLANES_BF16 || w->layout->codebook == NB_CODEBOOK_NF4;
}

// NULL for a type with no layout.
const struct nb_layout *nb_layout_of(uint32_t type);

// Fills everything but `data`. -EINVAL when cols does not divide into the type's blocks, -EOVERFLOW
// when too large.
int nb_packed_init(struct nb_packed *ret, uint32_t type, uint64_t rows, uint64_t cols);
size_t nb_packed_bytes(const struct nb_packed *p);

// `src`: the matrix, rows in file order, each cols/block blocks. Packs row groups [first, first +
// n) into dst + first * stride. A part of a matrix is packed as a matrix of its own: same layout,
// cols and stride, rows of the part.
void nb_layout_pack(const struct nb_packed *p, const void *src, uint8_t *dst, uint32_t first_group,
                    uint32_t n_groups);
// One row back to the file's bytes (unpack), or straight to floats (the kernels' reference).
void nb_layout_unpack_row(const struct nb_packed *p, uint32_t row, void *dst);
void nb_layout_dequantize_row(const struct nb_packed *p, uint32_t row, float *dst);
