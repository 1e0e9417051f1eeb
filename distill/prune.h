// Pruning: which parts of a model a student has, as a recipe asks for them. What is cut away is
// what the model needs least on the text that the student learns from (needs.h).
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "distill/needs.h"
#include "distill/student.h"
#include "distill/train_recipe.h"
#include "quant/recipe.h"
#include "tensor/fail.h"

struct nb_pruned {
    struct nb_student_kept kept; // borrows what follows
    uint32_t *layer, *of[NB_CUTS];
};

// Whether a plan of the model and windows are needed to choose.
bool nb_prune_measures(const struct nb_train_recipe *r);

struct nb_pruning {
    const struct nb_train_recipe *recipe;
    struct nb_recipe *types; // of the student's file
    const struct nb_source *model;
    const struct nb_plan *plan;       // of the whole model; NULL where nothing is measured
    const struct nb_windows *windows; // to measure on
    struct nb_team *team;
};

// Blocks, on the team. Errors as of nb_needs_measure; -EINVAL: the model has fewer layers,
// heads, rows or channels, or no part of it is as small as that; -ENOTSUP: inner rows of experts;
// with its line.
int nb_prune_choose(const struct nb_pruning *how, struct nb_pruned *ret,
                    struct nb_error *ret_error);
void nb_pruned_finish(struct nb_pruned *p); // all zero is fine
