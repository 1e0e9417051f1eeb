// What calibration learns of how large each matrix's inputs are: the largest magnitude, and a
// histogram of magnitudes in steps of a 32nd of an octave, from 2^-32 to 2^32. Counts alone, so
// that any order and any interruption give the same. From it the range of a static scale is chosen.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "quant/recipe.h"
#include "tensor/gguf_write.h"

#define NB_RANGE_BINS 2048

struct nb_input_range {
    char *name; // the matrix's; of a stack of experts one for all
    float most;
    uint64_t bins[NB_RANGE_BINS]; // the first and the last have what is beyond, too
};

// All zero: empty.
struct nb_ranges {
    struct nb_input_range *items;
    uint32_t count;
};

void nb_ranges_finish(struct nb_ranges *r);
struct nb_input_range *nb_ranges_find(const struct nb_ranges *r, struct nb_str name); // or NULL
// The item of this name, made where there was none; it may move with the next. NULL: no memory, or
// more than a model can have.
struct nb_input_range *nb_ranges_of(struct nb_ranges *r, struct nb_str name);
void nb_input_range_take(struct nb_input_range *r, const float *x, size_t n);

// The range of int8 codes that `how` chooses, within what engine/inputs.h allows; 0: no one range
// fits (struct nb_activations.spread). Else the largest
// magnitude; one that a part of all magnitudes does not exceed (to a bin's width, 2 to 3 %); or the
// one with the least mean squared error of rounding and clipping together.
float nb_input_range_choose(const struct nb_input_range *r, const struct nb_activations *how);
// Puts names and ranges as engine/inputs.h has them. 0 or -ENOMEM.
int nb_ranges_put(const struct nb_ranges *r, const struct nb_activations *how,
                  struct nb_gguf_writer *w);

// As bytes, for a journal. malloc'ed; -ENOMEM.
int nb_ranges_store(const struct nb_ranges *r, void **ret, size_t *ret_len);
// -EINVAL: they are none. `ret` is empty before, and stays so on failure.
int nb_ranges_restore(const void *data, size_t len, struct nb_ranges *ret);
