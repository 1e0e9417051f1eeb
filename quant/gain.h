// Whether a change of a model has gained anything, on windows of text that nothing was tuned on.
#pragma once

#include <stdint.h>

struct nb_gain {
    double before, after; // mean divergence of a token
    double error; // the standard error of their difference, a pair of windows an observation
    uint64_t
        kept; // there is a gain: Student's t of the pairs is above 2; a whole word, as it is stored
};

// Of n windows, each without and with the change. Of one window nothing is known.
struct nb_gain nb_gain_of(const double *before, const double *after, uint32_t n);
