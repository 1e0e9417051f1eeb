// Perplexity on texts, and how far a model's distribution is from a reference's.
#pragma once

#include "tools/cli/eval/eval.h"

// Evaluates every text of e and sets the members of `result`: those of all texts together, and
// "texts", a row each. reference may be NULL. An exit status.
int eval_texts(const struct eval *e, struct eval_model *m, struct eval_model *reference,
               json_t *result);
