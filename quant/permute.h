// An order in which channels of alike size lie in one block, whose scale then serves all of them:
// by the weights' size, the inputs' size, or their product, whichever leaves the outputs the least
// error.
#pragma once

#include "quant/trial.h"

// size_w, size_x: [n], the roots of the mean squares of each channel. scale: what goes before the
// order, or NULL. ret_order: [n], written where it is taken, as of nb_trial_search; the exponent of
// *ret is 0. 0 or -ENOMEM.
int nb_permute_search(struct nb_trial *t, const float *scale, const float *size_w,
                      const float *size_x, uint32_t n, uint32_t *ret_order, struct nb_gain *ret);
