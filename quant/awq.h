// Scales that spare the channels whose inputs are large: size^exponent, the exponent by the
// outputs' error. Method: AWQ (Lin and others, Activation-aware Weight Quantization, 2023), with
// the error of each reader's own outputs, on rows that the search has not seen.
#pragma once

#include "quant/trial.h"

// size: [n], the mean of |x| of each channel. A channel counts as at least a hundredth of the mean,
// so that one which slept in the calibration keeps some of its bits. As of nb_trial_search.
int nb_awq_search(struct nb_trial *t, const float *size, uint32_t n, float *ret_scale,
                  struct nb_gain *ret);
