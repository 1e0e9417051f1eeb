// An ONNX graph on its way to bytes: nodes and initializers, as protobuf has them (onnx.proto of IR
// version 8, opset 17). It knows no model. Names of results are numbers, which it gives. An error
// (no memory, 2 GiB of protobuf) stays until the end.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define NB_ONNX_INPUTS 5
#define NB_ONNX_NAME   32

// The numbers of TensorProto.DataType.
enum nb_onnx_type {
    NB_ONNX_FLOAT = 1,
    NB_ONNX_UINT8 = 2,
    NB_ONNX_INT8 = 3,
    NB_ONNX_INT64 = 7,
    NB_ONNX_BOOL = 9,
};

// A result of a node, an initializer or an input; "" where an optional input is left out.
struct nb_ref {
    char text[NB_ONNX_NAME];
};

// The attributes that our nodes have, each for some of them.
struct nb_onnx_attribute {
    const char *name; // NULL: there is none more
    enum { NB_ONNX_INT, NB_ONNX_INTS, NB_ONNX_REAL } kind;
    int64_t values[5];
    size_t n;
    float real;
};

struct nb_onnx_graph;

struct nb_onnx_graph *nb_onnx_graph_create(void);    // NULL without memory
void nb_onnx_graph_destroy(struct nb_onnx_graph *g); // NULL is fine

// Appends a node of up to three results, of which the first is returned; `others` gets the next two
// and may be NULL. `attributes` ends with a row of zeros, or is NULL.
struct nb_ref nb_onnx_node(struct nb_onnx_graph *g, const char *op, const struct nb_ref *inputs,
                           size_t n_inputs, const struct nb_onnx_attribute *attributes,
                           struct nb_ref *others, size_t n_others);
// An initializer of `n_dims` dimensions; its data is copied.
struct nb_ref nb_onnx_constant(struct nb_onnx_graph *g, enum nb_onnx_type type, const int64_t *dims,
                               size_t n_dims, const void *data, size_t bytes);
// An input of the graph with rows of any number: [rows] for width 0, else [rows][width].
struct nb_ref nb_onnx_input(struct nb_onnx_graph *g, const char *name, enum nb_onnx_type type,
                            uint32_t width);
// Gives a result a name of its own, as an output of floats.
void nb_onnx_output(struct nb_onnx_graph *g, struct nb_ref value, const char *name, uint32_t width);

// The whole file, malloc'ed. -ENOMEM, or -EFBIG past 2 GiB.
int nb_onnx_graph_finish(struct nb_onnx_graph *g, void **ret, size_t *ret_len);
