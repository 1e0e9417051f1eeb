// An allocation's inside. Private to quant/.
#pragma once

#include "quant/allocation.h"
#include "quant/allocate.h"
#include "quant/sensitivity.h"
#include "quant/variant.h"

// How much is done for an effort.
struct nb_allocation_effort {
    uint32_t batches; // of the sensitivity
    uint32_t depths;  // parts of the layers whose groups are told apart
    uint32_t rounds, swaps;
};

struct nb_measurement {
    uint64_t hash; // of the choice
    double divergence;
};

struct nb_allocation {
    const struct nb_source *source;
    const struct nb_allocation_run *run;
    struct nb_recipe_target target;
    struct nb_allocation_effort effort;
    // What the records say
    double *sums; // [n_matrices] of the sensitivity
    uint32_t n_matrices, batches;
    uint64_t tokens;
    double (*errors)[NB_RECIPE_TYPES]; // [n_tensors]: of each of the target's types
    uint32_t n_errors;                 // tensors, from the first on
    struct nb_measurement *measurements;
    uint32_t n_measurements, n_used; // n_used: by this run
    uint32_t *types;                 // [n_tensors], of the result; NULL: there is none
    struct nb_allocated result;
    // Of a run
    struct nb_judge *judge;
    struct nb_sensitivity sensitivity;
    struct nb_variant *variant;
    uint32_t n_items, n_groups;
    struct nb_item *items;
    uint32_t *tensor, *group;  // of each item
    struct nb_option *options; // [n_items][NB_RECIPE_TYPES]
    uint32_t *type;            // likewise
    uint64_t fixed;            // bytes of which nothing is to be chosen
    uint64_t progress;         // tokens
    struct nb_error *error;
};

// allocation_items.c: the items, from what was measured. -errno with its line.
int nb_allocation_make_items(struct nb_allocation *a);
// What the target allows them; 0: no number of bytes. -ENOSPC with its line.
int nb_allocation_budget(const struct nb_allocation *a, uint64_t *ret);
