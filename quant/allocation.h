// Each tensor's type for a recipe's target: sensitivity and the errors of rounding give costs, and
// a search with measurements on held-out text chooses (sensitivity.h, costs.h, search.h, judge.h).
//
// What takes time is told as records to whoever keeps them, and a later process that gives them
// back goes on behind them: to the same types, because all that lies between two records is
// deterministic.
#pragma once

#include "engine/cpu/threads.h"
#include "quant/importance.h"
#include "quant/judge.h"
#include "quant/recipe.h"
#include "quant/windows.h"
#include "tensor/source.h"

#define NB_ALLOCATION_ALIGN UINT64_C(32) // of tensors in a file: what they take is rounded up

struct nb_allocation;

enum nb_allocation_record { // kinds, in the order in which they come
    NB_ALLOCATION_BATCH,    // of the sensitivity
    NB_ALLOCATION_TENSOR,   // its errors of rounding
    NB_ALLOCATION_MEASUREMENT,
    NB_ALLOCATION_RESULT,
    NB_ALLOCATION_RECORDS,
};

// What an allocation has found.
struct nb_allocated {
    double predicted;        // divergence, by the costs alone
    double first, measured;  // of the costs' own choice, and of this one, by the encoder's search
    uint64_t bytes;          // what the target bounds: of the file, the tensors, or of serving
    uint32_t n_measurements; // 0: nothing was to be chosen
};

// Both are borrowed. -ENOMEM.
int nb_allocation_create(const struct nb_source *source, const struct nb_recipe *recipe,
                         struct nb_allocation **ret);
void nb_allocation_destroy(struct nb_allocation *a); // NULL is fine

// A record, in their order. 1: it does not fit what was given before, and counts as none.
int nb_allocation_restore(struct nb_allocation *a, enum nb_allocation_record kind, const void *data,
                          uint32_t bytes);

struct nb_allocation_run {
    const struct nb_choice *choices; // the recipe's, of each tensor: those that are fixed stay
    uint64_t other;                  // bytes of the file that are no tensors'
    const struct nb_importance *importance;
    const struct nb_windows *windows; // of the calibration
    struct nb_judging judging;        // by others, of the same source
    // Keeps a record. A negative return ends the work.
    int (*keep)(void *user, enum nb_allocation_record kind, const void *data, uint32_t bytes);
    // Of nb_allocation_tokens, so many. A negative return ends the work.
    int (*progress)(void *user, const char *what, uint64_t done);
    void *user;
};
// Blocks. -errno with its line: the target is not to be
// met, the model only embeds.
int nb_allocation_run(struct nb_allocation *a, const struct nb_allocation_run *run,
                      struct nb_error *ret_error);
// About how many tokens a run computes, forward passes counted once.
uint64_t nb_allocation_tokens(const struct nb_recipe *recipe);

// NULL before the run, or the result's record.
const uint32_t *nb_allocation_types(const struct nb_allocation *a);
const struct nb_allocated *nb_allocation_result(const struct nb_allocation *a);
