// Tasks from JSON lines: multiple choice, cloze, similarity. docs/evaluation.md has the format.
#pragma once

#include "tools/cli/eval/eval.h"

struct eval_answers;

// Reads and checks a file; NULL after saying which line is wrong.
struct eval_task *eval_task_read(const char *file);
void eval_task_destroy(struct eval_task *t);
// What the model makes of a task; NULL after saying why it cannot.
struct eval_answers *eval_task_run(const struct eval_task *t, struct eval_model *m);
void eval_answers_destroy(struct eval_answers *a);
// The task's row of the report; `reference` may be NULL.
json_t *eval_task_describe(const struct eval_task *t, const struct eval_answers *answers,
                           const struct eval_answers *reference, uint64_t seed);
