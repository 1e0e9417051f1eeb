// Matrices of floats to the bytes of any type that tensor/type.h lists, rounded to nearest or with
// scales searched for the least weighted squared error. Pure functions: no files, no state. Rows
// are independent, so any number of threads, any order of rows and every ISA level give the same
// bytes. Methods: llama.cpp's encoders for the measure and for the starts (tenths of a step around
// the extreme weight); what is searched from there is described in quant/line_tmpl.h and
// quant/super_tmpl.h.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/cpu/threads.h"
#include "quant/scheme.h"

enum nb_effort {
    NB_EFFORT_REFERENCE, // scales that span each group's weights; the importance is not looked at
    NB_EFFORT_SEARCH,
};

// How to encode. The measure that a search lowers, over the weights x of a row and what is decoded:
//     sum of w[k] * (x[k] - decoded[k])^2,  w[k] = importance[k] * (by_size ? sqrt(s2 + x[k]^2) :
//     1)
// with s2 the mean of x^2 over the row. Multiplying all of importance by a number changes nothing.
struct nb_encode {
    uint32_t type; // enum nb_type
    enum nb_effort effort;
    bool by_size;            // llama.cpp's measure; false: the plain weighted error
    const float *importance; // [cols], >= 0: the mean of x^2 of each input. NULL: all alike
    // NULL: the type's own. Else one that this type holds. Its scales are as the effort says, but
    // for one scale of a whole tensor, and for a zero point, which span the weights always.
    const struct nb_scheme *scheme;
    float least, most; // of all weights, for a scheme with one scale of a whole tensor
};

// Bytes of a matrix; 0 when the type is unknown or cols is not a multiple of its block.
size_t nb_encoded_bytes(uint32_t type, uint64_t rows, uint64_t cols);

// src: [rows][cols] floats, row after row. dst: nb_encoded_bytes(). Does not block. On failure dst
// is undefined:
//   -EINVAL  the type is unknown, cols is not a multiple of its block, or the importance holds a
//            negative number, a NaN, or an infinity
//   -EDOM    a weight is a NaN or an infinity (nb_find_not_finite says which)
//   -ERANGE  a weight is too large for the type's fp16 scale, or for fp16 itself
//   -ENOMEM  of a search of scales for more weights than a block
int nb_encode_rows(const struct nb_encode *how, const float *src, uint64_t rows, uint64_t cols,
                   void *dst);
// The same on all threads of a team; the caller is the team's thread 0. -EDOM goes before -ERANGE.
int nb_encode_matrix(const struct nb_encode *how, struct nb_team *team, const float *src,
                     uint64_t rows, uint64_t cols, void *dst);

// The measure of `how` for encoded rows, summed over them, importance taken as it is.
int nb_encode_error(const struct nb_encode *how, const float *src, const void *encoded,
                    uint64_t rows, uint64_t cols, double *ret);

// The place of the first NaN or infinity, or n.
size_t nb_find_not_finite(const float *src, size_t n);
