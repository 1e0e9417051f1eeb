// AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101):
//     x -= rate * (first / (1 - b1^t) / (sqrt(second / (1 - b2^t)) + floor) + decay * x)
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine/cpu/threads.h"

struct nb_adam {
    float rate;
    float decay;
    float scale;               // of the gradient, before all else: what clips it
    float first, second;       // how much of the moments stays
    float first_by, second_by; // what makes young moments unbiased: 1 / (1 - first^t)
    float floor;               // is added to the root of the second moment
    uint32_t draw;             // what coded moments are rounded by: another in each step
};

// The moments of NB_ADAM_BLOCK numbers in 8 bits each, a quarter of what floats take (blocks with a
// scale of their own: Dettmers and others, 8-bit Optimizers via Block-wise Quantization, arXiv
// 2110.02861). Code c stands for (c / c_most)^8 of the block's largest: the distance of two codes
// is a thirtieth there, and a third where moments are a hundred millionth of it. Rounding is by
// chance, and right on the average: what a step adds is often less than that distance, and would be
// lost otherwise. A second moment is never rounded to zero. Zeros are the beginning.
#define NB_ADAM_BLOCK 256
struct nb_adam_block {
    float first_most, second_most; // magnitudes
    int8_t first[NB_ADAM_BLOCK];   // c_most: 127
    uint8_t second[NB_ADAM_BLOCK]; // 255
};

// One step of n numbers. On the team, whose caller is thread 0; the same bits whatever its size.
void nb_adam_step(struct nb_team *team, const struct nb_adam *how, const float *gradient, size_t n,
                  float *x, float *first, float *second);
// The same with coded moments: blocks of numbers from the first on, the last one of those left.
// What is rounded are the moments that stay for the next step.
void nb_adam_step_coded(struct nb_team *team, const struct nb_adam *how, const float *gradient,
                        size_t n, float *x, struct nb_adam_block *blocks);
// The sum of the squares, in an order that the threads do not change. -ENOMEM.
int nb_adam_squares(struct nb_team *team, const float *gradient, size_t n, double *ret);
