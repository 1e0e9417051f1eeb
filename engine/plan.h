// A model's plan: the list of ops that a step runs, each with its weights and the precision of its
// inputs, fixed when the model is loaded. A device interprets it (CPU) or has it recorded (Vulkan);
// some layers on a device of their own are a range of ops.
#pragma once

#include "engine/arch.h"
#include "engine/engine.h"
#include "engine/inputs.h"
#include "tensor/fail.h"
#include "tensor/gguf.h"
#include "tensor/layout.h"

// A matrix of the model, or one for each expert. Ops hold it by this handle: what it is may be
// replaced between steps (nb_plan_replace).
struct nb_matrix {
    struct nb_str name;
    struct nb_packed packed; // the first one
    uint32_t n;              // experts; 1: no experts
    uint32_t replaced;       // how often
    size_t apart;            // bytes from one to the next
};

// A part of each row of a value: `width` numbers from `at` on, rows `stride` numbers apart.
struct nb_slice {
    enum nb_value value;
    uint32_t at, width, stride;
};

struct nb_op {
    enum nb_op_kind kind;
    enum nb_section section;
    uint32_t layer;             // 0 outside the layers
    uint32_t terms;             // of a matrix's quantized input: 1 or 2
    enum nb_input_scale scaled; // what of that input stands under one scale,
    float range;                // and of a fixed one the largest magnitude that has a code
    struct nb_slice in, other, out;
    struct nb_matrix *w;
    const float *weight; // NORM's, or NULL: ones
    const float *bias;   // of `w` (for each expert one, one after the other) or of a norm; or NULL
    struct nb_str weight_name, bias_name; // of these two, in the file
    bool add;
    float scale, cap;
    enum nb_lookup lookup;
    // NORM and ROPE: so many heads of `dim` numbers; a norm of the whole row has one. With `each`
    // every head has its own weights.
    uint32_t heads, dim;
    bool each;
    uint32_t rope;   // ROPE: which of the model's
    uint32_t window; // ATTENTION
};

struct nb_plan_vector {
    struct nb_plan_vector *next;
    float x[];
};

struct nb_plan {
    struct nb_hparams hp; // of the whole model
    enum nb_kv_type kv_type;
    uint32_t first_layer, n_layers; // that the plan runs
    uint32_t n_ops;
    struct nb_op *ops;   // what comes before the layers, the layers, what comes after them
    uint32_t *layer_ops; // [n_layers + 1] of the model: where a layer begins in the whole list
    bool begins, ends;   // it has what comes before the layers, what comes after them
    // From this op on only the rows matter whose result is wanted: every row's keys and values are
    // in memory then. n_ops: never.
    uint32_t tail;
    uint32_t result;            // whose vector a text gets: the op whose output it is
    uint32_t width[NB_VALUES];  // the widest row of each value; 0: no op has it
    struct nb_matrix *matrices; // all of the model's
    uint32_t n_matrices;
    struct nb_plan_vector *vectors; // that the image has as something else than a row of floats
};

struct nb_plan_options {
    enum nb_precision precision;
    enum nb_kv_type kv_type;
    uint32_t max_context; // 0: the model's own
};

// -EINVAL for missing or misshapen tensors, -ENOTSUP for heads that such a KV cache cannot keep, or
// what nb_hparams_read returns. The image must outlive the plan.
int nb_plan_create(const struct nb_image *image, const struct nb_plan_options *options,
                   struct nb_plan **ret, struct nb_error *ret_error);
void nb_plan_destroy(struct nb_plan *plan);

// A plan of the layers [first, end) alone, with what comes before the first and after the last of
// them where asked for. It borrows from `plan`, and is not destroyed. A step of a plan that does
// not begin the model starts with the hidden states of struct nb_rows, one that does not end it
// ends there.
struct nb_plan nb_plan_part(const struct nb_plan *plan, uint32_t first, uint32_t end, bool begins,
                            bool ends);

// Has the ops compute with another matrix in place of `name`, from the next step on, on a device
// that reads the plan's matrices where they lie (the CPU does). Its shape is the same, its type may
// be another; its data must stay as long as the plan, and of experts lie `apart` bytes from one to
// the next. -ENOENT: no op has such a matrix; -EINVAL: it has another shape.
int nb_plan_replace(struct nb_plan *plan, struct nb_str name, const struct nb_packed *w,
                    size_t apart);

// Of all its matrices, packed; one that serves twice counts once.
uint64_t nb_plan_weight_bytes(const struct nb_plan *plan);
// Whether one of its ops has the matrix at this address.
bool nb_plan_has_matrix(const struct nb_plan *plan, const struct nb_packed *w);
// The plan's matrices, each once, in the order of `matrices`; n_matrices is room enough.
uint32_t nb_plan_list_matrices(const struct nb_plan *plan, const struct nb_matrix **ret);

// Whether an op from `op` on reads what a value holds before it.
bool nb_plan_is_read(const struct nb_plan *plan, uint32_t op, enum nb_value v);
// The values that ops from the tail on read as the ops before have left them, but for queries: a
// bit for each.
uint32_t nb_plan_tail_values(const struct nb_plan *plan);

static inline bool nb_same_slice(const struct nb_slice *a, const struct nb_slice *b)
{
    return a->value == b->value && a->at == b->at && a->width == b->width;
}

// Whether what quantizes the input of one matrix gives the other's as well.
static inline bool nb_same_codes(const struct nb_op *a, const struct nb_op *b)
{
    return a->terms == b->terms && a->scaled == b->scaled && a->range == b->range;
}

// The rows of the value that an op reads or writes, for so many tokens.
static inline uint32_t nb_plan_rows(const struct nb_plan *plan, enum nb_value v, uint32_t tokens)
{
    return nb_value_is_of_experts(v) ? tokens * plan->hp.n_chosen : tokens;
}

// Of one KV block, in one layer.
static inline size_t nb_plan_kv_bytes(const struct nb_plan *plan)
{
    return ((size_t)plan->hp.dim[NB_DIM_K] + plan->hp.dim[NB_DIM_V]) * nb_kv_bytes(plan->kv_type);
}

static inline struct nb_packed nb_matrix_of_expert(const struct nb_matrix *m, uint32_t expert)
{
    struct nb_packed p = m->packed;
    p.data += expert * m->apart;
    return p;
}

static inline uint64_t nb_matrix_bytes(const struct nb_matrix *m)
{
    return m->n > 1 ? m->n * (uint64_t)m->apart : nb_packed_bytes(&m->packed);
}
