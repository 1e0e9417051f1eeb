// What a model costs: time, memory, bytes, energy, money.
#pragma once

#include "tools/cli/eval/eval.h"

// Sets "cost" of `result`. Requests of e->prompt and e->gen tokens run alone, one after the other;
// of a model that only embeds, texts of e->prompt tokens in batches of 1 and 32. An exit status.
int eval_cost(const struct eval *e, struct eval_model *m, json_t *result);
