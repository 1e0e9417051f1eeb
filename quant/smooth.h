// Scales that move a part of the inputs' outliers into the weights, so that both fit int8:
// most_x^exponent / most_w^(1 - exponent), the exponent by the outputs' error with both in int8.
// Method: SmoothQuant (Xiao and others, 2022), with an exponent for each joint.
#pragma once

#include "quant/trial.h"

// most_x, most_w: [n], the largest |x| and |w| of each channel. One that is 0 counts as a hundredth
// of the mean. As of nb_trial_search; the trial is of int8.
int nb_smooth_search(struct nb_trial *t, const float *most_x, const float *most_w, uint32_t n,
                     float *ret_scale, struct nb_gain *ret);
