// What of a model can be cut away beside whole layers: key-value heads with the queries that share
// them, inner rows of the feed-forward, channels of the residual stream. Which rows and columns of
// which tensors that takes follows from the family's rows of ops (engine/arch.h).
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/arch.h"

enum nb_cut { NB_CUT_HEADS, NB_CUT_FEED_FORWARD, NB_CUT_WIDTH, NB_CUTS };
extern const char *const nb_cut_names[NB_CUTS]; // as a recipe has them

// How many of each a model has: in a layer, or of the width in all.
uint32_t nb_cut_all(const struct nb_hparams *hp, enum nb_cut cut);

// How the rows or columns of a tensor are made up of what can be cut: parts one behind the other,
// each of which has `unit` rows for each head, inner row or channel.
struct nb_axis {
    enum nb_cut cut;
    uint32_t parts, unit[3];
};
// False: nothing of this dimension can be cut.
bool nb_axis_of(const struct nb_hparams *hp, enum nb_dim dim, struct nb_axis *ret);
uint32_t nb_axis_units(const struct nb_axis *axis); // of all parts together
