// A recipe from the inside: recipe.c reads it, recipe_choose.c chooses by it. Nobody else includes
// this.
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <pcre2.h>

#include "quant/recipe.h"

struct nb_recipe_rule {
    pcre2_code *code;
    const char *text; // in the JSON
    const struct nb_scheme *to;
    bool used;
};

struct nb_recipe {
    json_t *json;
    const struct nb_scheme *to, *embedding, *output, *otherwise; // NULL: not said
    struct nb_sampling_plan calibration;
    struct nb_feedback_plan feedback;
    bool automatic;
    struct nb_tuning_plan tuning;
    struct nb_recipe_target target;
    uint32_t folds;
    struct nb_activations activations;
    struct nb_recipe_rule rules[NB_RECIPE_RULES];
    uint32_t n_rules;
    pcre2_match_context *context;
    pcre2_match_data *match;
};
