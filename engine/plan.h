// A model's plan: the list of ops that a step runs, each with its weights and the precision of its
// inputs, fixed when the model is loaded. A device interprets it (CPU) or has it recorded (Vulkan);
// one layer alone, or some of them on a device of their own, is a range of ops.
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
    struct nb_hparams hp; // of the whole model
    enum nb_kv_type kv_type;
    uint32_t first_layer, n_layers; // that the plan runs
    uint32_t n_ops;
    struct nb_op *ops; // embed, then QKV .. DOWN of each layer, then head
};

// -EINVAL for missing or misshapen tensors, -ENOTSUP for heads that such a KV cache cannot keep, or
// what nb_hparams_read returns. The image must outlive the plan.
int nb_plan_create(const struct nb_image *image, enum nb_precision precision,
                   enum nb_kv_type kv_type, struct nb_plan **ret, char *ret_error,
                   size_t error_size);
void nb_plan_destroy(struct nb_plan *plan);

// A plan of the layers [first, end) alone, with the embedding before them and the head behind them
// where asked for. It borrows from `plan`, and is not destroyed. A step of a plan without embedding
// begins with the hidden states of struct nb_rows, one without head ends there.
struct nb_plan nb_plan_part(const struct nb_plan *plan, uint32_t first, uint32_t end, bool embed,
                            bool head);

// Of all its matrices, packed; one that serves twice counts once.
uint64_t nb_plan_weight_bytes(const struct nb_plan *plan);

// Of one KV block, in one layer.
static inline size_t nb_plan_kv_bytes(const struct nb_plan *plan)
{
    return ((size_t)plan->hp.dim[NB_DIM_K] + plan->hp.dim[NB_DIM_V]) * nb_kv_bytes(plan->kv_type);
}

// Whether the plan has its embedding, its head.
static inline bool nb_plan_has(const struct nb_plan *plan, enum nb_op_kind end)
{
    return plan->ops[end == NB_OP_EMBED ? 0 : plan->n_ops - 1].kind == end;
}
