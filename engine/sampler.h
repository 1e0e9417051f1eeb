// Choosing a token from logits: penalties, temperature, top-k, top-p, min-p, and a counter-based
// generator keyed by (seed, position), so that a choice depends on nothing but the log, the
// parameters and the seed.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/candidate.h"

#define NB_REPEAT_WINDOW_MAX 4096

struct nb_sampling {
    float temperature;      // 0: greedy
    uint32_t top_k;         // 0: off
    float top_p;            // 1: off
    float min_p;            // 0: off
    float repeat_penalty;   // 1: off
    uint32_t repeat_window; // last tokens that the penalty looks at
    uint64_t seed;
    bool logprobs; // compute the chosen token's log-probability (of the unmodified distribution)
};

#define NB_SAMPLING_GREEDY ((struct nb_sampling){.top_p = 1, .repeat_penalty = 1})

bool nb_logits_are_finite(const float *logits, uint32_t n);
// 0, or -EINVAL for values out of range (NaN, negative temperature, top_p outside 0..1 ...).
int nb_sampling_check(const struct nb_sampling *s);
// Chooses the token for `position` (the index it will have in the log). `logits` is scratch:
// changed. Ties go to the lower id. -EBADMSG when a logit is not finite; -EDOM when the penalty
// leaves none that is.
int nb_sample(const struct nb_sampling *s, float *logits, uint32_t vocab, const int32_t *log,
              uint32_t log_len, uint32_t position, int32_t *ret_token, float *ret_logprob);
// How many of the best candidates the choice depends on, NB_CANDIDATES_MAX at most; 0: it takes the
// logits.
uint32_t nb_sampling_suffices(const struct nb_sampling *s);
// The same choice as nb_sample's, from the best `n` candidates in their order: as many as suffice,
// or the whole vocabulary where that is less. They are scratch. -EBADMSG as above.
int nb_sample_best(const struct nb_sampling *s, struct nb_candidate *best, uint32_t n,
                   uint32_t position, int32_t *ret_token);
// The generator itself: 64 random bits for (seed, counter).
uint64_t nb_random(uint64_t seed, uint64_t counter);
