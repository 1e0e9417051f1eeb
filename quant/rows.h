// Rows of a source's tensors, read, checked and encoded by all threads.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/cpu/threads.h"
#include "quant/scheme.h"
#include "quant/sparse.h"
#include "tensor/source.h"

struct nb_rows_encoder;

struct nb_rows_type {
    uint32_t type;                  // enum nb_type
    bool search;                    // scales searched for the least weighted error; else to nearest
    const float *weights;           // [experts][cols]: the importance of columns; NULL: all alike
    const struct nb_scheme *scheme; // that the type is, or holds; NULL: the type
    float least, most;              // of the tensor, where the scheme has one scale for it
    const struct nb_sparsity *sparse; // whose zeros are made before; NULL: none
    const struct nb_sparse_cut *cuts; // of each row, for a share by magnitude
};

// Both are borrowed. -ENOMEM.
int nb_rows_create(const struct nb_source *s, struct nb_team *team, struct nb_rows_encoder **ret,
                   struct nb_error *ret_error);
void nb_rows_destroy(struct nb_rows_encoder *r); // NULL is fine

// The least and the largest weight of a tensor, and 0. Blocks, on the team. As of nb_rows_encode.
int nb_rows_extent(struct nb_rows_encoder *r, const struct nb_source_tensor *t, float *ret_least,
                   float *ret_most, struct nb_error *ret_error);
// A share of a tensor's magnitudes, of a stack of each expert's: where each row cuts them. ret:
// [rows]. Blocks, on the team. As of nb_rows_encode.
int nb_rows_cuts(struct nb_rows_encoder *r, const struct nb_source_tensor *t,
                 const struct nb_sparsity *sparse, struct nb_sparse_cut *ret,
                 struct nb_error *ret_error);
// Rows [first, first + n) of a tensor, whole blocks of the type, one behind the other to `out`.
// Blocks, on the team. The failure told is that of the first row that has one: -EDOM for a NaN or
// an infinity, -ERANGE for what is too large for the type, -errno of reading.
int nb_rows_encode(struct nb_rows_encoder *r, const struct nb_source_tensor *t,
                   const struct nb_rows_type *how, uint64_t first, uint64_t n, void *out,
                   struct nb_error *ret_error);
