// A model's answers to the items of a task, as numbers. tasks.c reads the items and says what the
// answers are worth.
#pragma once

#include "tools/cli/eval/eval.h"

struct kind;

struct item {
    size_t line;
    json_t *object; // checked
};

struct eval_task {
    const char *file;
    const struct kind *kind;
    struct item *items;
    size_t n;
};

// [2][items]. choice: 1 where the right choice has the highest summed log-probability, and where it
// has the highest per byte; else 0. cloze: 1 where every token of the last words is the likeliest,
// and their log-probability. similarity: the cosine.
struct eval_answers {
    double *number[2];
};

// Exit statuses, after one sentence with file and line.
int answer_choice(const struct eval_task *t, struct eval_model *m, struct eval_answers *a);
int answer_cloze(const struct eval_task *t, struct eval_model *m, struct eval_answers *a);
int answer_similarity(const struct eval_task *t, struct eval_model *m, struct eval_answers *a);
