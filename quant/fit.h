// One block of a quantized type from its weights: the table of functions that each ISA level fills
// (fit_tmpl.h), and who chooses among them. Every level gives the same bytes. Private to quant/.
#pragma once

#include "engine/cpu/kernels.h"
#include "quant/feed.h"
#include "quant/latent_room.h"

struct nb_fit {
    const char *name;
    // x: shape->block finite weights. Rounds to nearest under scales that span the weights of each
    // group.
    void (*reference)(const struct nb_shape *shape, const float *x, struct nb_block *ret);
    // The same under the scales that a search finds, for the least sum of w * (x - decoded)^2. w:
    // as many factors as weights, all positive.
    void (*search)(const struct nb_shape *shape, const float *x, const float *w,
                   struct nb_block *ret);
    // Of a type without sub-scales: the scale, and the minimum where it has one, of n weights (a
    // multiple of 16) that share them, in fp16. w NULL: they span the weights; else the search's.
    void (*scale)(const struct nb_shape *shape, const float *x, const float *w, unsigned n,
                  uint16_t *ret_scale, uint16_t *ret_min);
    // One block's nearest codes under them.
    void (*codes)(const struct nb_shape *shape, const float *x, uint16_t scale, uint16_t min,
                  struct nb_block *ret);
    const struct nb_feed *feed;
    const struct nb_latent_loops *latent;
};

extern const struct nb_fit nb_fit_plain, nb_fit_avx2, nb_fit_avx512;

// By ISA level; NULL where this architecture has none (fits_x86.c, fits_other.c).
extern const struct nb_fit *const nb_fits[NB_ISA_COUNT];

// The level that the engine's kernels have on this processor, NIBBLE_ISA included.
const struct nb_fit *nb_fit_best(void);
