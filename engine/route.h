// Mixtures of experts: which experts a token takes, and how much of each.
#pragma once

#include "engine/arch.h"

// scores: n_experts of them, the router's; bias: added for the choice alone, or NULL. ret_expert,
// ret_weight: n_chosen, best first; of equals the one that comes first.
void nb_route(const struct nb_hparams *hp, const float *bias, const float *scores,
              uint16_t *ret_expert, float *ret_weight);

// What the chosen experts' weights, of this sum, are divided by, where they are to sum to 1.
// Sigmoids of very negative scores may all be 0: the bound, the smallest normal number of fp16, is
// llama.cpp's.
float nb_route_divisor(float sum);
