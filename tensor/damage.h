// What a damaged file shows although every count in it is right: numbers that are none, and zeros
// to its end. Private to tensor/.
#pragma once

#include <stdbool.h>

#include "tensor/layout.h"
#include "tensor/source.h"

// A NaN or an infinity, and where it is.
struct nb_no_number {
    const char *what; // "a scale that is NaN"
    uint32_t row;
    uint32_t block; // of the row; of a float type the element
};

// Whether any float of these packed row groups is none: the scales and minima of a quantized
// matrix, which lie side by side there, or the weights themselves. Rows count from `groups` on.
bool nb_packed_no_number(const struct nb_packed *p, const uint8_t *groups, uint32_t n_groups,
                         struct nb_no_number *ret);
// The same of a vector.
bool nb_vector_no_number(const float *x, size_t n, struct nb_no_number *ret);

// The first tensor in a file that an interrupted download of full length has left as zeros, to
// *ret; NULL: there is none. A file's end is all that is looked at: zeros with something behind
// them are what somebody wrote. So are a bias of zeros, and rows of zeros at a matrix's end, with
// which vocabularies are padded. -errno of pread.
int nb_find_zeros(const struct nb_source *s, const struct nb_piece **ret);
