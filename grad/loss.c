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

struct distilled {
    const struct nb_loops *loops;
    const struct nb_distil_loss *how;
    const float *reference;
    const struct nb_kept *kept;
    const int32_t *label;
    float *logits, *ret_soft, *ret_hard;
    uint32_t vocab;
};

static void distil(void *arg, uint32_t row, uint32_t thread)
{
    const struct distilled *d = arg;
    const size_t at = (size_t)row * d->vocab;
    d->loops->distil(d->how, d->reference ? d->reference + at : NULL, d->label[row], d->logits + at,
                     d->vocab, &d->ret_soft[row], &d->ret_hard[row]);
}

void nb_grad_distil(struct nb_grad *g, uint32_t n, const struct nb_distil_loss *how,
                    const float *reference, const int32_t *label,
                    float *logits,                    // NOLINT(*non-const-parameter)
                    float *ret_soft, float *ret_hard) // NOLINT(*non-const-parameter)
{
    struct distilled d = {g->loops, how,      reference,        NULL, label, logits,
                          ret_soft, ret_hard, g->plan->hp.vocab};
    nb_each(g->team, n, distil, &d);
}

static void distil_kept(void *arg, uint32_t row, uint32_t thread)
{
    const struct distilled *d = arg;
    d->loops->distil_kept(d->how, &d->kept[row], d->label[row], d->logits + (size_t)row * d->vocab,
                          d->vocab, &d->ret_soft[row], &d->ret_hard[row]);
}

void nb_grad_distil_kept(struct nb_grad *g, uint32_t n, const struct nb_distil_loss *how,
                         const struct nb_kept *reference, const int32_t *label,
                         float *logits,                    // NOLINT(*non-const-parameter)
                         float *ret_soft, float *ret_hard) // NOLINT(*non-const-parameter)
{
    struct distilled d = {g->loops, how,      NULL,     reference,        label,
                          logits,   ret_soft, ret_hard, g->plan->hp.vocab};
    nb_each(g->team, n, distil_kept, &d);
}
