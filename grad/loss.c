// See loss.h. A unit of work is a row.
#include "grad/loss.h"

#include "grad/room.h"

struct rows {
    const struct nb_loops *loops;
    const float *reference;
    float *logits, *ret;
    uint32_t vocab;
    float weight;
};

static void diverge(void *arg, uint32_t row, uint32_t thread)
{
    const struct rows *r = arg;
    const size_t at = (size_t)row * r->vocab;
    r->ret[row] = r->loops->divergence(r->reference + at, r->logits + at, r->vocab, r->weight);
}

void nb_grad_divergence(struct nb_grad *g, uint32_t n, const float *reference,
                        float *logits,            // NOLINT(*non-const-parameter)
                        float weight, float *ret) // NOLINT(*non-const-parameter)
{
    struct rows r = {g->loops, reference, logits, ret, g->plan->hp.vocab, weight};
    nb_each(g->team, n, diverge, &r);
}
