// What a matrix may become, by the names that users give: a GGUF type, or a scheme (bits, group,
// symmetric or with a minimum) in the type that holds it. Some schemes are a type exactly: the same
// codes, the same scales, nothing else in the bytes. Others are held by a type with room to spare:
// neighbouring blocks repeat the scale of their group, and codes stay within the scheme's bits. So
// stock llama.cpp computes what the scheme says, and the file is larger than the scheme would be.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Groups that are no number of weights.
#define NB_GROUP_ROW    0xfffffffeu // an output channel
#define NB_GROUP_TENSOR 0xffffffffu // of a stack of experts, all of them

struct nb_scheme {
    const char *name;     // "int4-g64-min"; one that is a type alone has the type's name
    uint32_t bits, group; // of a code; weights under one scale
    bool has_min;         // as int8-*-zero: a zero point
    uint32_t type;        // that holds it
    bool exact;           // the type is the scheme
    const char *instead;  // where the type is none of GGUF's: what has it, the end of a sentence
};

// All schemes, ordered by bits. ret_n: how many.
const struct nb_scheme *nb_schemes(size_t *ret_n);
// A scheme's or a type's name, in either case. NULL: it is neither.
const struct nb_scheme *nb_scheme_by_name(const char *name);
// The scheme that a type is, of one that Nibble loads.
const struct nb_scheme *nb_scheme_of_type(uint32_t type);

// The weights under one scale in rows of `cols`: the last group of a row may be shorter.
uint64_t nb_scheme_group(const struct nb_scheme *s, uint64_t rows, uint64_t cols);
// Bits a weight, scales and minima included: what the scheme needs, whatever holds it. A scale is
// 16 bits, and so is a minimum; with a zero point a scale is 32 bits and the zero point 8.
double nb_scheme_bits(const struct nb_scheme *s, uint64_t rows, uint64_t cols);
// Whether one of its codes decodes to 0 whatever the scale: with a minimum none does, nor does one
// of IQ4's table.
bool nb_scheme_has_zero(const struct nb_scheme *s);
// The lowest and the highest integer that a code stands for, where the type does not say it all.
void nb_scheme_codes(const struct nb_scheme *s, float *ret_low, float *ret_high);
