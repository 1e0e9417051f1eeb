// A recipe from the inside: recipe.c and recipe_sparse.c read it, recipe_choose.c chooses by it.
// Nobody else includes this.
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <pcre2.h>

#include "quant/recipe.h"

struct nb_recipe_rule {
    pcre2_code *code;
    const char *text;           // in the JSON
    const struct nb_scheme *to; // NULL: not said
    bool sparse;                // it says how many zeros there are
    struct nb_sparsity sparsity;
    bool used;
};

struct nb_recipe {
    json_t *json;
    bool folder;                                                 // NF4 is a type
    const struct nb_scheme *to, *embedding, *output, *otherwise; // NULL: not said
    struct nb_sampling_plan calibration;
    struct nb_feedback_plan feedback;
    bool automatic;
    struct nb_tuning_plan tuning;
    struct nb_recipe_target target;
    uint32_t folds;
    struct nb_activations activations;
    bool sparse; // it says so; by what, is for the rules too
    struct nb_sparsity sparsity;
    struct nb_recipe_rule rules[NB_RECIPE_RULES];
    uint32_t n_rules;
    pcre2_match_context *context;
    pcre2_match_data *match;
};

// recipe_sparse.c: "sparse" of the recipe and of a rule, and what it goes with. -EINVAL with its
// line.
int nb_recipe_read_sparse(struct nb_recipe *r, const json_t *object, struct nb_error *ret_error);
int nb_recipe_read_zeros(struct nb_recipe_rule *rule, const json_t *value,
                         struct nb_error *ret_error);
int nb_recipe_check_sparse(const struct nb_recipe *r, struct nb_error *ret_error);
