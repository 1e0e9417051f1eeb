// AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101):
//     x -= rate * (first / (1 - b1^t) / (sqrt(second / (1 - b2^t)) + floor) + decay * x)
#pragma once

#include <stddef.h>

#include "engine/cpu/threads.h"

struct nb_adam {
    float rate;
    float decay;
    float scale;               // of the gradient, before all else: what clips it
    float first, second;       // how much of the moments stays
    float first_by, second_by; // what makes young moments unbiased: 1 / (1 - first^t)
    float floor;               // is added to the root of the second moment
};

// One step of n numbers. On the team, whose caller is thread 0; the same bits whatever its size.
void nb_adam_step(struct nb_team *team, const struct nb_adam *how, const float *gradient, size_t n,
                  float *x, float *first, float *second);
// The sum of the squares, in an order that the threads do not change. -ENOMEM.
int nb_adam_squares(struct nb_team *team, const float *gradient, size_t n, double *ret);
