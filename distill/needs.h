// How much a model needs each of its layers, heads, inner rows and channels, seen on text: what is
// cut away first is what it needs least.
//
// A layer: 1 - cosine of what goes into it and what comes out, the mean of all tokens (block
// influence: Men and others, ShortGPT, arXiv 2403.03853). The others by what reads them, columns of
// matrices W with inputs x:
//     by gradient:   (sum of W dL/dW)^2, summed over windows: how much the loss of labels changes
//                    without them, to first order (Molchanov and others, arXiv 1906.10771);
//     by activation: |x|^2 |W|^2, how much of what W computes comes of them (as Wanda: Sun and
//                    others, arXiv 2306.11695).
#pragma once

#include <stdint.h>

#include "distill/cut.h"
#include "engine/cpu/threads.h"
#include "engine/plan.h"
#include "quant/windows.h"
#include "tensor/fail.h"

enum nb_needs_by { NB_NEEDS_BY_GRADIENT, NB_NEEDS_BY_ACTIVATION, NB_NEEDS_OF_LAYERS }; // alone

struct nb_needs {
    uint32_t layers;
    uint32_t n[NB_CUTS]; // of each layer; of the width in all
    double *layer;       // [layers]
    double *of[NB_CUTS]; // [layers][n]; of the width [n]; of layers alone zero
};

// On all windows, by gradient of a model that is made for logits; of lines only what needs no
// gradient. Blocks; on the team, whose caller is thread 0. The same
// bits whatever its size. Memory: one window's rows between layers, and by gradient 4 bytes for
// each weight that reads what can be cut. -EINVAL: windows that do not fit the model; -ENOTSUP: the
// gradient of a model for vectors; -ENOMEM; -EDOM: its loss is not finite; with its line.
int nb_needs_measure(const struct nb_plan *plan, struct nb_team *team,
                     const struct nb_windows *windows, enum nb_needs_by by, struct nb_needs *ret,
                     struct nb_error *ret_error);
void nb_needs_finish(struct nb_needs *m); // all zero is fine

// The n most needed of `all`, ascending; of equal ones those that come first. ret: [n].
// -ENOMEM.
int nb_needs_most(const double *need, uint32_t all, uint32_t n, uint32_t *ret);
