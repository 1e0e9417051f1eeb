// Pruning: which parts of a model a student has, as a recipe asks for them. What is cut away is
// what the model needs least on the text that the student learns from (needs.h).
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "distill/needs.h"
#include "distill/student.h"
#include "distill/train_recipe.h"
#include "tensor/fail.h"

struct nb_pruned {
    struct nb_student_kept kept; // borrows what follows
    uint32_t *layer, *of[NB_CUTS];
};

// Whether a plan of the model and windows are needed to choose.
bool nb_prune_measures(const struct nb_train_recipe *r);

// `plan`: of the whole `model`, and `windows` to measure on; NULL both, where nothing is measured.
// Blocks, on the team. Errors as of nb_needs_measure; -EINVAL: the model has fewer layers,
// heads, rows or channels, or no part of it is as small as that; -ENOTSUP: inner rows of experts;
// with its line.
int nb_prune_choose(const struct nb_train_recipe *r, const struct nb_source *model,
                    const struct nb_plan *plan, struct nb_team *team,
                    const struct nb_windows *windows, struct nb_pruned *ret,
                    struct nb_error *ret_error);
void nb_pruned_finish(struct nb_pruned *p); // all zero is fine
