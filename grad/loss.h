// Losses that several kinds of training have.
#pragma once

#include "grad/grad.h"

// How far next-token probabilities are from a reference's, in nats, of each of n rows:
//     KL = sum of p (log p - log q),  p = softmax(reference), q = softmax(logits)
// (the loss of Hinton and others, Distilling the Knowledge in a Neural Network, arXiv 1503.02531,
// at temperature 1). reference, logits: [n][vocab]; logits becomes the gradient of `weight` times
// the sum of all rows' KL. ret: [n]. Not finite where a logit is not.
void nb_grad_divergence(struct nb_grad *g, uint32_t n, const float *reference, float *logits,
                        float weight, float *ret);
