// What a joint's scales or order would cost: the error of its readers' outputs on rows of their
// inputs, with weights in the types that they will have. For the searches of awq.h, smooth.h and
// permute.h.
//
//     error = mean over the readers of |X W^T - X' decoded(W')^T|^2 / |X W^T|^2
//
// A trial's rows come in two parts: what is searched looks at the first, and whether it is taken is
// decided by the second.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/cpu/threads.h"
#include "quant/fold.h"

struct nb_trial_reader {
    const float *w; // [rows][cols]: all of a matrix's rows, or some
    uint32_t rows;
    uint32_t type; // enum nb_type; F32: it is left out
};

struct nb_trial_options {
    const struct nb_joint *joint; // whose channels the columns have
    uint32_t cols;
    const struct nb_trial_reader *readers;
    uint32_t n_readers;
    const float *x;      // [rows + held][cols]
    uint32_t rows, held; // both at least 1
    const float *mean;   // [cols]: of the squares of all rows, for the encoder
    bool int8;           // weights in int8 by row and inputs in int8 by row, in place of the types
};

struct nb_trial_error {
    double searched, held;
};

struct nb_trial;

// What options point to must outlive it. -ENOMEM.
int nb_trial_create(const struct nb_trial_options *options, struct nb_team *team,
                    struct nb_trial **ret);
void nb_trial_destroy(struct nb_trial *t); // NULL is fine

// scale: [n] of the joint's channels; order: [n]; both may be NULL. Blocks. Infinite where a weight
// is too large for its type. 0 or -ENOMEM.
int nb_trial_run(struct nb_trial *t, const float *scale, const uint32_t *order,
                 struct nb_trial_error *ret);

// What a search found.
struct nb_gain {
    bool taken;
    float exponent;
    double before, after; // errors on the rows that were held out
};

// Scales by an exponent between 0 and 1: `fill` makes those of one, [n]. Tenths, then the
// twentieths beside the best. ret_scale: [n], written where it is taken: where both parts' errors
// are lower than without. 0 or -ENOMEM.
typedef void nb_trial_fill(void *user, float exponent, float *ret_scale);
int nb_trial_search(struct nb_trial *t, nb_trial_fill *fill, void *user, float *ret_scale,
                    struct nb_gain *ret);
// Divides scales by the root of the product of their least and greatest.
void nb_trial_centre(float *scale, uint32_t n);
