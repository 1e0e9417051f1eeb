// What calibration learns of each matrix: over the rows that it was multiplied by, the sum of the
// squares of each column, and how many rows these were. Of a stack of experts, for each of them.
// Method: llama.cpp's importance matrix. Kept in doubles that are added in the order of the rows,
// so that a computation that was interrupted goes on to the same bits.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/fail.h"
#include "tensor/gguf.h"
#include "tensor/source.h"

#define NB_IMPORTANCE_COLS     (1u << 20)
#define NB_IMPORTANCE_EXPERTS  (1u << 16)
#define NB_IMPORTANCE_MATRICES (1u << 16)
#define NB_IMPORTANCE_VALUES   (UINT64_C(1) << 28) // sums of all matrices together

struct nb_column_stats {
    char *name; // the tensor's
    uint32_t cols, n;
    double *sums;     // [n][cols]
    uint64_t *counts; // [n]: rows
};

// All zero: empty.
struct nb_importance {
    struct nb_column_stats *items;
    uint32_t count;
    uint64_t values;
};

void nb_importance_finish(struct nb_importance *s);
// Sums of zero for one more matrix. -EINVAL over a bound or for a name that is there, -ENOMEM.
int nb_importance_add(struct nb_importance *s, struct nb_str name, uint32_t cols, uint32_t n);
// NULL: there is none.
struct nb_column_stats *nb_importance_find(const struct nb_importance *s, struct nb_str name);

void nb_column_stats_take(struct nb_column_stats *m, uint32_t expert, const float *x);
// The mean of each column's squares, [cols], from sums in fp32: what they are in the file of an
// importance matrix, so that what was exported does what was measured. False, and untouched, where
// no row was seen.
bool nb_column_stats_mean(const struct nb_column_stats *m, uint32_t expert, float *ret);

// The importance of a tensor's columns, [experts][cols], malloc'ed; NULL where none was measured.
// An expert that no token took has columns that are all alike. -EINVAL: the matrix has another
// shape; -ENOMEM; with its line. `s` may be NULL.
int nb_importance_weights(const struct nb_importance *s, const struct nb_source_tensor *t,
                          float **ret, struct nb_error *ret_error);

// As bytes, for a journal. malloc'ed; -ENOMEM.
int nb_importance_store(const struct nb_importance *s, void **ret, size_t *ret_len);
// -EINVAL: they are none. `ret` is empty before, and stays so on failure.
int nb_importance_restore(const void *data, size_t len, struct nb_importance *ret);
