// A model's plan: the list of ops that a step runs, each with its weights and the precision of its
// inputs, fixed when the model is loaded. A device interprets it (CPU) or has it recorded (Vulkan);
// one layer alone is a range of ops.
#pragma once

#include "engine/arch.h"
#include "engine/engine.h"
#include "tensor/layout.h"

struct nb_matrix {
    const struct nb_packed *w; // NULL where the op has no such matrix
    const float *bias;         // or NULL
};

struct nb_op {
    enum nb_op_kind kind;
    uint32_t layer; // 0 for embed and head
    uint32_t terms; // of the matrices' input: 1 or 2
    const float *norm;
    struct nb_matrix m[3]; // q, k, v; o; gate, up; down; head or embedding
};

struct nb_plan {
    struct nb_hparams hp;
    uint32_t n_ops;
    struct nb_op *ops; // embed, then QKV .. DOWN of each layer, then head
};

// -EINVAL for missing or misshapen tensors, or what nb_hparams_read returns. The image must outlive
// the plan.
int nb_plan_create(const struct nb_image *image, enum nb_precision precision, struct nb_plan **ret,
                   char *ret_error, size_t error_size);
void nb_plan_destroy(struct nb_plan *plan);
