// Groupwise matrices as other programs have them: integer codes row by row, a scale and perhaps a
// zero point for each group of a row, w = scale * (code - zero). They are packed for the same
// kernels as a model's types (layout.h), with scales and minima in fp32. Their bytes may be another
// process's memory, which changes at any time: each is read once and only looked up, never trusted.
#pragma once

#include "tensor/layout.h"

// What it is, without where it lies.
struct nb_groupwise_shape {
    uint32_t bits; // 8: int8; 4: 0 to 15, two in a byte, the lower first
    uint64_t rows, cols;
    uint32_t group;   // 32, 64 or 128 columns, the last of a row perhaps fewer; 0: the whole row
    bool half_scales; // fp16, else fp32
    bool has_zeros;   // int8, or 4 bits as the codes; without: 0, and 8 for 4 bits
};

struct nb_groupwise {
    struct nb_groupwise_shape shape;
    const uint8_t *codes;  // [rows], each of whole bytes
    const uint8_t *scales; // [rows][groups]
    const uint8_t *zeros;  // [rows], each of whole bytes; NULL without
};

// Bytes of the three parts.
struct nb_groupwise_bytes {
    uint64_t codes, scales, zeros;
};

// The packed form of the shape: everything but `data`; `ret_layout` must live as long as it.
// -EINVAL for a shape that makes no sense, -EOVERFLOW for one that is too large.
int nb_groupwise_init(const struct nb_groupwise_shape *shape, struct nb_layout *ret_layout,
                      struct nb_packed *ret, struct nb_groupwise_bytes *ret_bytes);
// Packs row groups [first, first + n) to dst, n * stride bytes.
void nb_groupwise_pack(const struct nb_groupwise *g, const struct nb_packed *p, uint8_t *dst,
                       uint32_t first, uint32_t n);
