// What a compression makes of each tensor, as JSON: for `nibble compress`, and for whoever wants to
// know what is in the file.
#pragma once

#include <jansson.h>

#include "quant/allocation.h"
#include "quant/fold.h"
#include "quant/gain.h"
#include "quant/ranges.h"
#include "quant/recipe.h"
#include "tensor/source.h"

struct nb_tuned {
    struct nb_gain gain; // not kept: nothing has changed
    uint32_t steps;
};

struct nb_report {
    const struct nb_source *source;
    const struct nb_recipe *recipe;
    const struct nb_choice *choices; // one for each tensor
    uint32_t type;                   // of most weights
    const char *text;                // what it has learnt from, in a word; NULL: from nothing
    const struct nb_gain *feedback;  // by method auto, of error feedback over search; or NULL
    const struct nb_tuned *tuned;    // or NULL
    const struct nb_ranges *ranges;  // of static activations, or NULL
    const struct nb_fold *fold;      // what was folded before, or NULL
    const uint64_t *zeros;           // of a sparse recipe: of each tensor, in the file; or NULL
    // Where an allocation has chosen: what it found, and the result's divergence; else NULL.
    const struct nb_allocated *allocated;
    const struct nb_divergence *divergence;
};

// What was learnt from: `text` as above. The caller owns it; NULL without memory.
json_t *nb_report_calibration(const struct nb_recipe *recipe, const char *text);

// Writes to `fd`, from its start: the type, bits a weight and bytes of each tensor and of all, and
// what the user is to be warned of. -errno.
int nb_report_write(const struct nb_report *report, int fd);
