// What stands under one scale when the input of a quantized matrix becomes int8 codes. By itself
// that is 32 numbers of a row; a model's file may say that it is the row (dynamic), or every row
// that the matrix will see, under a scale that calibration has fixed (static).
//
//   nibble.activations.scheme    string: "dynamic" or "static"; without it, blocks of 32
//   nibble.activations.matrices  static: strings, the tensors' names
//   nibble.activations.ranges    static: as many floats: the largest magnitude that has a code, or
//                                0: this matrix's inputs are dynamic
#pragma once

#include "tensor/fail.h"
#include "tensor/gguf.h"

enum nb_input_scale { NB_INPUT_BLOCK, NB_INPUT_ROW, NB_INPUT_FIXED };

#define NB_KEY_ACTIVATIONS          "nibble.activations.scheme"
#define NB_KEY_ACTIVATIONS_MATRICES "nibble.activations.matrices"
#define NB_KEY_ACTIVATIONS_RANGES   "nibble.activations.ranges"
#define NB_ACTIVATIONS_DYNAMIC      "dynamic"
#define NB_ACTIVATIONS_STATIC       "static"

// Ranges that have a scale and an inverse in fp32.
#define NB_INPUT_RANGE_LEAST 1e-30f
#define NB_INPUT_RANGE_MOST  1e30f

// What a file says of all inputs. It borrows the metadata.
struct nb_inputs {
    const struct nb_gguf *g;
    enum nb_input_scale scale;
    uint64_t n; // matrices with a range
};

// -EINVAL with its line for a scheme that Nibble does not compute, for lists that do not fit each
// other or have more than `most` matrices, and for a range that is neither 0 nor a number between
// the two.
int nb_inputs_read(const struct nb_gguf *g, uint64_t most, struct nb_inputs *ret,
                   struct nb_error *ret_error);
// The range of a matrix's inputs, of a static file; 0: a row has its own. -ENOENT: the file has
// none.
int nb_inputs_range(const struct nb_inputs *inputs, struct nb_str matrix, float *ret);
