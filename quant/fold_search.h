// Finds a fold's scales, orders and rotations: the float model is run once over some windows of
// text, layer by layer, and each joint is searched on rows of its readers' inputs. What was chosen
// for a joint does not change the float model, so joints are searched one by one.
#pragma once

#include "grad/grad.h"
#include "quant/fold.h"
#include "tensor/fail.h"

enum {
    NB_FOLD_AWQ = 1,
    NB_FOLD_SMOOTH = 2,  // not together with AWQ
    NB_FOLD_PERMUTE = 4, // of the feed-forward's inner channels
    // Rotated channels have no scales and no order of their own.
    NB_FOLD_ROTATE_VALUES = 8,
    NB_FOLD_ROTATE_STREAM = 16, // and refused where it cannot be
};

// Of "awq", "smooth", "permute", "rotate" (of both), "rotate-values"; 0: another word.
uint32_t nb_fold_methods(const char *name);

#define NB_FOLD_TOKENS 2048 // that the model is run over, or one window where that is longer

struct nb_fold_search {
    const struct nb_plan *plan; // the fold's
    struct nb_grad *grad; // of that plan; it gets another batch, and shows its inputs to nobody
                          // afterwards
    struct nb_team *team;
    const int32_t *tokens;    // [windows][length]
    uint32_t windows, length; // as many windows as NB_FOLD_TOKENS allows are taken, evenly
    uint32_t methods;         // some of the bits above
    uint64_t seed;            // of rotations
    uint32_t (*type_of)(void *user, struct nb_str name); // that a matrix will have
    // Layers, the head counted as one. A negative return ends the work.
    int (*progress)(void *user, uint32_t done, uint32_t total);
    void *user;
};

// Sets `f`, which changes nothing yet. Blocks; on
// the team, whose caller is thread 0. The result does not depend on its size. -ENOTSUP with the
// reason where nothing can be folded; -errno of the engine, with its line.
int nb_fold_search(struct nb_fold *f, const struct nb_fold_search *how, struct nb_error *ret_error);
