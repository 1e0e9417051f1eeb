// Losses that several kinds of training have.
#pragma once

#include "grad/grad.h"
#include "tensor/lessons.h"

// How far next-token probabilities are from a reference's, in nats, of each of n rows:
//     KL = sum of p (log p - log q),  p = softmax(reference), q = softmax(logits)
// (the loss of Hinton and others, Distilling the Knowledge in a Neural Network, arXiv 1503.02531,
// at temperature 1). reference, logits: [n][vocab]; logits becomes the gradient of `weight` times
// the sum of all rows' KL. ret: [n]. Not finite where a logit is not.
void nb_grad_divergence(struct nb_grad *g, uint32_t n, const float *reference, float *logits,
                        float weight, float *ret);

// Training against a teacher and against labels (Hinton and others, as above; the soft part times
// T^2, so that its gradients keep their size whatever the temperature):
//     soft * T^2 D(p || q) + hard * -log softmax(logits)[label]
//     p = softmax(reference / T), q = softmax(logits / T)
// D is KL(p || q) with a `mix` b of 0, KL(q || p) with 1, and between them the generalised
// Jensen-Shannon divergence b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q (Agarwal and
// others, On-Policy Distillation of Language Models, arXiv 2306.13649).
enum { NB_NO_LABEL = -1, NB_LEFT_OUT = -2 };
struct nb_distil_loss {
    float temperature; // T
    float soft, hard;  // weights of a row
    float mix;         // b
};
// reference: [n][vocab], or NULL: there is no soft part. label: [n]; NB_NO_LABEL: this row has
// none; NB_LEFT_OUT: and no soft part either. logits become the gradient of the sum over all rows.
// ret_soft, ret_hard: [n], without weights. Not finite where a logit is not.
void nb_grad_distil(struct nb_grad *g, uint32_t n, const struct nb_distil_loss *how,
                    const float *reference, const int32_t *label, float *logits, float *ret_soft,
                    float *ret_hard);

// What is left of a reference: its likeliest tokens' logits, and log_sum, the logarithm of the sum
// of exp(logit / T) over all.
struct nb_kept {
    const struct nb_kept_logit *logit; // [n], ids ascending
    uint32_t n;                        // NB_LESSONS_KEPT at most
    float log_sum;
};
// As nb_grad_distil with a `mix` of 0, where all tokens that are not kept are one: D is the KL
// divergence of the kept ones' probabilities and of what is left over for the others together,
// which is the whole divergence but for how these differ among each other. reference: [n].
void nb_grad_distil_kept(struct nb_grad *g, uint32_t n, const struct nb_distil_loss *how,
                         const struct nb_kept *reference, const int32_t *label, float *logits,
                         float *ret_soft, float *ret_hard);
