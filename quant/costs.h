// What rounding a tensor to each type loses, as a part of what the tensor is: the error's square
// beside the weights' own, both weighed by the importance of the columns. Of some rows, spread
// evenly over all, because a search of every row in every type would take minutes.
#pragma once

#include "engine/cpu/threads.h"
#include "quant/sensitivity.h"
#include "tensor/source.h"

// importance: [experts][cols] as of nb_importance_weights; NULL: columns are all alike.

// Fills the weights of the tensor's rows. -errno of reading, with its line.
int nb_costs_weigh(const struct nb_source *s, const struct nb_source_tensor *t,
                   const float *importance, struct nb_sensitive *ret, struct nb_error *ret_error);

// ret: [n], of each type, by the encoder's search; INFINITY where a weight is too large for it; 0
// where the tensor has that type already. Columns are whole blocks of all types. Blocks. The same
// numbers on any number of threads. -errno with its line.
int nb_costs_errors(const struct nb_source *s, const struct nb_source_tensor *t,
                    const float *importance, struct nb_team *team, const uint32_t *types,
                    uint32_t n, double *ret, struct nb_error *ret_error);
