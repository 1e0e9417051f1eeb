// The best candidates of a row, from the best logit of each of its stripes (shaders/top.comp) and
// the few stripes that can hold others: for tiers whose logits lie where the host reads them well.
#include "engine/vulkan/model.h"

#define TEXEL  4 // logits; stripes are made of such
#define STRIPE (TEXEL * STRIPES)

struct best {
    struct nb_candidate *c; // in their order
    uint32_t n, most;
};

static void offer(struct best *best, struct nb_candidate c)
{
    if (best->n == best->most && !nb_candidate_before(c, best->c[best->n - 1]))
        return;
    uint32_t i = best->n < best->most ? best->n++ : best->n - 1;
    for (; i > 0 && nb_candidate_before(c, best->c[i - 1]); i--)
        best->c[i] = best->c[i - 1];
    best->c[i] = c;
}

static void offer_stripe(struct best *best, const float *logits, uint32_t vocab, uint32_t known)
{
    for (uint32_t t = known / TEXEL * TEXEL % STRIPE; t < vocab; t += STRIPE)
        for (uint32_t i = t; i < t + TEXEL && i < vocab; i++)
            if (i != known)
                offer(best, nb_candidate_of(logits, i));
}

void nb_vulkan_top(const float *logits, uint32_t vocab, const uint32_t *stripes,
                   struct nb_candidate *ret, uint32_t n)
{
    struct best best = {.c = ret, .most = n};
    int32_t first[NB_CANDIDATES_MAX];
    for (uint32_t i = 0; i < STRIPES; i++)
        if (stripes[i] != NONE)
            offer(&best, nb_candidate_of(logits, stripes[i]));
    // A stripe whose best is not among these has no other that is: n precede it.
    uint32_t n_first = n > 1 ? best.n : 0;
    for (uint32_t i = 0; i < n_first; i++)
        first[i] = best.c[i].id;
    for (uint32_t i = 0; i < n_first; i++)
        offer_stripe(&best, logits, vocab, (uint32_t)first[i]);
}
