// How close a model's vectors of passages are to a reference's.
#pragma once

#include "tools/cli/eval/eval.h"

// Sets "vectors" of `result`: the cosine of the two vectors of each passage (where both have as
// many numbers), and which of the reference's ten nearest passages are the model's too. Passages
// longer than a model takes are cut. An exit status.
int eval_vectors(const struct eval *e, struct eval_model *m, struct eval_model *reference,
                 json_t *result);
