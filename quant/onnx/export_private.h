// What the files of the export share. Private to quant/onnx/.
#pragma once

#include "quant/onnx/export.h"
#include "quant/onnx/graph.h"

#define NB_ONNX_WRITTEN 32 // slices of values that hold a result

// A part of a value, and the result that it is.
struct nb_onnx_written {
    struct nb_slice slice;
    struct nb_ref name;
};

struct nb_onnx {
    const struct nb_plan *plan;
    struct nb_onnx_options options;
    struct nb_onnx_graph *g;
    struct nb_onnx_written written[NB_ONNX_WRITTEN]; // the newest last
    size_t n_written;
    struct nb_ref ids, positions; // int64 [rows]
    struct nb_ref keys, values;   // of the last KV
    struct nb_error *ret_error;
};

// Nodes of one, two and three inputs, without attributes.
struct nb_ref nb_onnx_1(struct nb_onnx *o, const char *op, struct nb_ref a);
struct nb_ref nb_onnx_2(struct nb_onnx *o, const char *op, struct nb_ref a, struct nb_ref b);
struct nb_ref nb_onnx_3(struct nb_onnx *o, const char *op, struct nb_ref a, struct nb_ref b,
                        struct nb_ref c);
struct nb_ref nb_onnx_real(struct nb_onnx *o, float x);
struct nb_ref nb_onnx_ints(struct nb_onnx *o, const int64_t *x, size_t n); // [n]
struct nb_ref nb_onnx_int(struct nb_onnx *o, int64_t x);                   // without dimensions
struct nb_ref nb_onnx_floats(struct nb_onnx *o, const float *x, size_t rows,
                             size_t cols); // rows 0: [cols]
struct nb_ref nb_onnx_reshape(struct nb_onnx *o, struct nb_ref x, const int64_t *shape,
                              size_t n); // -1: the rest
struct nb_ref nb_onnx_transpose(struct nb_onnx *o, struct nb_ref x, const int64_t *order, size_t n);
struct nb_ref nb_onnx_cut(struct nb_onnx *o, struct nb_ref x, int64_t axis, int64_t begin,
                          int64_t end);
struct nb_ref nb_onnx_concat(struct nb_onnx *o, struct nb_ref a, struct nb_ref b, int64_t axis);

// What a slice of a value holds now.
struct nb_ref nb_onnx_read(struct nb_onnx *o, const struct nb_slice *s);
void nb_onnx_write(struct nb_onnx *o, const struct nb_slice *s, struct nb_ref x);

// ops.c: one op's nodes. -ENOTSUP by its name, -ENOMEM.
int nb_onnx_op(struct nb_onnx *o, const struct nb_op *op);
// rotate.c, attention.c
int nb_onnx_rope(struct nb_onnx *o, const struct nb_op *op);
int nb_onnx_attention(struct nb_onnx *o, const struct nb_op *op);
