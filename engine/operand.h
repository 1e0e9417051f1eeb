// What clients ask of a model's device beside its steps: rows times a matrix, and a matrix's rows
// as numbers. The matrix is a tensor of the model, or a groupwise one in the client's memory. Work
// is done in slices of about a step's length, so that streams go on between them.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/device.h"
#include "tensor/groupwise.h"

struct nb_model;
struct nb_operand;

struct nb_tensor_info {
    uint32_t index;
    const char *type;
    uint64_t rows, cols;
};
// -ENOENT: no tensor of that name; -EINVAL: it is a vector.
int nb_operand_find(const struct nb_model *m, const char *name, struct nb_tensor_info *ret);

// A tensor of the model by its index, used where it lies. -ENOENT, -EINVAL as above; -EOPNOTSUPP: a
// device without these.
int nb_operand_tensor(struct nb_model *m, uint32_t index, struct nb_operand **ret);
// The client's matrix, which must stay mapped. With `keep` its bytes do not change any more: it is
// packed once. Without, each slice packs what it needs.
int nb_operand_groupwise(struct nb_model *m, const struct nb_groupwise *g, bool keep,
                         struct nb_operand **ret);
void nb_operand_destroy(struct nb_operand *o); // NULL is fine
uint64_t nb_operand_packed_bytes(const struct nb_operand *o);
// Whether the model's device can multiply by it: some drivers take no row as long as that.
bool nb_operand_has_gemm(const struct nb_operand *o);
void nb_operand_shape(const struct nb_operand *o, uint64_t *ret_rows, uint64_t *ret_cols);

// A slice returns 1 when there is more to do, 0 at the end, -ENOMEM, or what the device failed
// with: it is lost then.
struct nb_gemm_job {
    struct nb_operand *w;
    const float *x; // [n][cols]
    float *y;       // [n][rows]
    uint32_t n, terms;
    uint32_t group, row; // done: rows of y in groups of 16; with the next of these, rows of x
};
int nb_gemm_slice(struct nb_gemm_job *job);

struct nb_dequantize_job {
    struct nb_operand *w;
    uint64_t row, end; // rows of the matrix that are not done yet
    enum nb_number to;
    uint8_t *out;  // of `row`
    float *scales; // of `row`, for INT8
};
int nb_dequantize_slice(struct nb_dequantize_job *job);
