// An encoder, or a layer of a decoder, as an ONNX graph (opset 17), made of the plan's list of ops.
// A graph takes one text: the encoder its ids [rows] and gives a vector a token, a layer the hidden
// states [rows][width] before it and gives those behind it. Matrices are floats, or int8 with a
// scale for each output behind DequantizeLinear; inputs of matrices are floats, or uint8 by each
// call's own range (DynamicQuantizeLinear, then DequantizeLinear), or int8 by the range that the
// model's file has for the matrix (QuantizeLinear, then DequantizeLinear).
#pragma once

#include "engine/inputs.h"
#include "engine/plan.h"
#include "tensor/fail.h"

#define NB_ONNX_ENCODER   UINT32_MAX
#define NB_ONNX_POSITIONS 4096 // that a layer's table of rotations has at most

struct nb_onnx_options {
    uint32_t layer; // of a decoder, or NB_ONNX_ENCODER
    bool int8;
    enum nb_input_scale scale; // NB_INPUT_BLOCK: floats; NB_INPUT_ROW: of the whole call
    struct nb_inputs inputs;   // with NB_INPUT_FIXED
};

// The file's bytes, malloc'ed. -ENOTSUP of ops that no graph here has (experts), of an encoder that
// is none; -EINVAL of a layer, or of a matrix without a range; -EFBIG past protobuf's 2 GiB;
// -ENOMEM.
int nb_onnx_export(const struct nb_plan *plan, const struct nb_onnx_options *options, void **ret,
                   size_t *ret_len, struct nb_error *ret_error);
