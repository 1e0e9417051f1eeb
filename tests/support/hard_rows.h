// Rows of logits that a choice could get wrong: ties, zeros of both signs, NaN, infinities,
// subnormals, and the best ones side by side or a stripe apart; and their order, by sorting all:
// those that are not finite first.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "engine/candidate.h"
#include "engine/sampler.h"

#define HARD_ROWS 13 // kinds

static inline float hard_logit(uint32_t kind, uint64_t r, uint32_t i, uint32_t n)
{
    static const float odd[] = {NAN,  -NAN,   -INFINITY, -1e-40f, -0.0f,
                                0.0f, 1e-40f, 2e-40f,    -3e38f,  1};
    switch (kind) {
    case 0: // any
        return (float)(r % 1000003) / 1000 - 500;
    case 1: // many ties
        return (float)(r % 8);
    case 2:
        return 3.5f;
    case 3:
        return NAN;
    case 4: // few numbers
        return r % 50 ? NAN : (float)(r >> 40);
    case 5:
        return r % 90 ? -INFINITY : (float)(r % 5);
    case 6:
        return r % 2 ? 0.0f : -0.0f;
    case 7:
        return odd[r % 10];
    case 8: // up
        return (float)i;
    case 9: // down
        return -(float)i;
    case 10: // all the best in one stripe of texels
        return i / 4 % 512 == 5 ? 1000 + (float)(r % 32) : (float)(r % 32);
    case 11: // one of them is infinite
        return i == n / 2 ? INFINITY : (float)(r % 32);
    default: // subnormals, zeros, and the largest
        return odd[3 + r % 7];
    }
}

static inline void hard_row(uint32_t kind, uint64_t seed, float *logits, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        logits[i] = hard_logit(kind, nb_random(seed, i), i, n);
}

static inline int hard_order(const void *a, const void *b)
{
    const struct nb_candidate *x = a, *y = b;
    if (isfinite(x->logit) != isfinite(y->logit))
        return isfinite(x->logit) ? 1 : -1;
    if (isfinite(x->logit) && x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

static inline void hard_sort(const float *logits, uint32_t n, struct nb_candidate *ret)
{
    for (uint32_t i = 0; i < n; i++)
        ret[i] = (struct nb_candidate){logits[i], (int32_t)i};
    qsort(ret, n, sizeof(*ret), hard_order);
}
