// A LoRA adapter (Hu and others, arXiv 2106.09685) that some of a model's sequences have: y = W x +
// by * B (A x) for their rows, with the model's own matrices beside those of all others. Its image
// is packed like a model's. adapter.c checks it against the plan once; devices index it.
#pragma once

#include "engine/plan.h"

#define NB_ADAPTER_RANK 512 // at most

struct nb_model;

struct nb_adapter_pair {
    struct nb_packed a, b; // [rank][cols], [rows][rank], both of the float class
    float by;              // scale * alpha / rank
};

struct nb_adapter {
    struct nb_model *model;
    struct nb_image *image;
    uint32_t rank;                  // the largest of its pairs
    struct nb_adapter_pair pairs[]; // by the plan's matrices; `a` has no rows: that one is as it is
};

// What an adapter adds to the matrix of an op, or NULL; so it is for an adapter that is NULL.
static inline const struct nb_adapter_pair *nb_adapter_pair(const struct nb_adapter *adapter,
                                                            const struct nb_plan *plan,
                                                            const struct nb_op *op)
{
    const struct nb_adapter_pair *p = adapter ? &adapter->pairs[op->w - plan->matrices] : NULL;
    return p && p->a.rows ? p : NULL;
}
