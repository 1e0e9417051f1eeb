// The types a weight may have in a file: sizes, names, scalar dequantize and quantize. The numbers
// are GGUF's own, but for those at the end, which come from Hugging Face folders. This is the
// oracle of every kernel; it is not meant to be fast.
#pragma once

#include <stddef.h>
#include <stdint.h>

enum nb_type {
    NB_TYPE_F32 = 0,
    NB_TYPE_F16 = 1,
    NB_TYPE_Q4_0 = 2,
    NB_TYPE_Q4_1 = 3,
    NB_TYPE_Q5_0 = 6,
    NB_TYPE_Q5_1 = 7,
    NB_TYPE_Q8_0 = 8,
    NB_TYPE_Q2_K = 10,
    NB_TYPE_Q3_K = 11,
    NB_TYPE_Q4_K = 12,
    NB_TYPE_Q5_K = 13,
    NB_TYPE_Q6_K = 14,
    NB_TYPE_IQ4_NL = 20,
    NB_TYPE_IQ4_XS = 23,
    NB_TYPE_BF16 = 30,
    NB_TYPE_Q2_0 = 42,
    NB_TYPE_GGUF_END, // past the largest that a GGUF may have

    // Their scales are fp32. A folder keeps them apart from the codes (source.h).
    NB_TYPE_INT8 = 64, // int8
    NB_TYPE_NF4 = 65,  // the 16 values of "QLoRA" (Dettmers et al., 2023), the earlier code high
    NB_TYPE_END,       // past the largest
};

struct nb_type_info {
    const char *name;
    uint32_t type;
    uint32_t block; // weights in a block; 1 for the float types
    uint32_t bytes; // bytes of a block
    // n_blocks consecutive blocks to block * n_blocks floats, and back; encode is NULL where we
    // have no encoder.
    void (*dequantize)(const void *src, float *dst, size_t n_blocks);
    void (*quantize)(const float *src, void *dst, size_t n_blocks);
};

// NULL for a type that Nibble does not load.
const struct nb_type_info *nb_type_info(uint32_t type);
const struct nb_type_info *nb_type_by_name(const char *name);
// The name of any type of ours or GGUF's, loadable or not, for error messages; "unknown" otherwise.
const char *nb_type_name(uint32_t type);
// Of a type that Nibble loads: bytes of a row of `cols` weights, whole blocks; bits of a weight.
uint64_t nb_type_row_bytes(uint32_t type, uint64_t cols);
double nb_type_bits(uint32_t type);

float nb_f16_to_f32(uint16_t h);
uint16_t nb_f32_to_f16(float f); // round to nearest even
float nb_bf16_to_f32(uint16_t h);
uint16_t nb_f32_to_bf16(float f);
