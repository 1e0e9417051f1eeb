// A token that may be chosen, and the order of candidates: docs/numerics.md ("Sampling"). Whoever
// picks the best ones, the sampler or a device, picks them by this order.
#pragma once

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#define NB_CANDIDATES_MAX 64 // that a step is asked for

struct nb_candidate {
    float logit;
    int32_t id;
};

static inline struct nb_candidate nb_candidate_of(const float *logits, uint32_t id)
{
    return (struct nb_candidate){logits[id], (int32_t)id};
}

// Higher logit first, then lower id; -0 is as high as +0. One that is not finite precedes all that
// are, so that whoever looks for the best of a row finds it.
static inline bool nb_candidate_before(struct nb_candidate a, struct nb_candidate b)
{
    const bool a_finite = isfinite(a.logit), b_finite = isfinite(b.logit);
    if (!a_finite || !b_finite)
        return a_finite == b_finite ? a.id < b.id : !a_finite;
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}
