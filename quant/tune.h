// End-to-end tuning: the codes, scales and minima of quantized matrices, and the norms beside them,
// are moved so that the model's next-token probabilities come nearer to those of the float model
// that it was made from. The bytes keep their types.
//
// A step runs a batch of windows through the float model (the plan as it is) and through the
// quantized one (the plan with what the encoded bytes decode to), and takes the gradients of the
// mean KL divergence of a token (grad/loss.h) back through the quantized one: to the codes straight
// through their rounding, to scales and norms as they are (quant/latent.h). Adam, its rates
// rising over the first steps and falling along a cosine to 0. Methods: knowledge distillation
// (Hinton and others, arXiv 1503.02531), LSQ's learned steps (Esser and others, arXiv 1902.08153),
// EfficientQAT's end-to-end phase (Chen and others, arXiv 2407.11062).
//
// Deterministic: bits depend on the arguments and the processor's ISA level, never on the threads,
// nor on where the work was stored and restored. Memory: 12 bytes for each tuned weight and their
// bytes; one layer's matrices three times; those outside of layers three times; the batch's rows
// between layers; the memory that options allow; and with layer_steps all windows' rows of one
// layer, twice. All calls block and use the team, whose thread
// 0 is the caller; one call at a time.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/cpu/threads.h"
#include "engine/plan.h"
#include "quant/state.h"
#include "quant/windows.h"
#include "tensor/fail.h"

struct nb_tune;

// A matrix that the quantized model has otherwise than the plan. Those that are not named are the
// plan's in both models.
struct nb_tune_matrix {
    const char *name;
    uint32_t type;       // any that tensor/type.h lists
    const void *encoded; // [experts][rows] of it: the start
    // [experts][rows][cols]: what the codes stand for, and what decides which of them are near to
    // flipping; NULL: the plan's. Not what `encoded` decodes to: then no code is near to.
    const float *weights;
    bool fixed; // computed with as it is; so is a matrix of a type without codes and scales
};

struct nb_tune_options {
    uint32_t batch; // windows of a step
    uint32_t steps; // of the whole model
    // As of nb_descent. vector_rate is relative to the root of the mean square of a norm's weights,
    // or of a bias.
    float code_rate, scale_rate, vector_rate;
    // Of each layer by itself before, one layer after the other, on its results' squared error: a
    // step costs about the share of a layer. 0: none.
    uint32_t layer_steps;
    float layer_code_rate, layer_scale_rate, layer_vector_rate;
    uint64_t seed; // of the windows' order
    // Bytes that may be taken so that less is computed again: the float model's results, where
    // windows come more than once, then tapes of layers.
    uint64_t memory;
};
#define NB_TUNE_STEPS (1u << 20) // at most, of each kind

// Plan, team and windows must outlive it; all else is read during the call. The plan: a whole model
// that gives logits, at `exact`, of the float model's matrices. -EINVAL: a name that no op of the
// plan has or that is named twice, a type that its columns do not fit, windows that are fewer than
// a batch or longer than the context, tokens outside the vocabulary, a rate that is negative or not
// finite; -ENOTSUP: a model without logits; -EDOM: a scale or weight that is not finite; -ENOMEM.
int nb_tune_create(const struct nb_plan *plan, struct nb_team *team,
                   const struct nb_windows *windows, const struct nb_tune_matrix *matrices,
                   uint32_t n, const struct nb_tune_options *options, struct nb_tune **ret,
                   struct nb_error *ret_error);
void nb_tune_destroy(struct nb_tune *t); // NULL is fine

// What becomes of what was given: matrices that are tuned, and those that stay as they came.
struct nb_tune_report {
    uint32_t tuned, fixed, vectors;
    uint64_t weights; // of the tuned matrices
    uint32_t taped;   // layers of which nothing is computed again
};
void nb_tune_report(const struct nb_tune *t, struct nb_tune_report *ret);

// One step. ret_loss: the mean KL of a token of its batch, before it, in nats; may be NULL.
// -EALREADY after the last step; -EDOM: the loss is not finite, and nothing has moved; -ENOMEM.
int nb_tune_step(struct nb_tune *t, double *ret_loss, struct nb_error *ret_error);
uint32_t nb_tune_done(const struct nb_tune *t); // steps
// The quantized model as it is now on other windows, which are no longer than a batch of its own
// has tokens. ret: [windows->n], the mean KL of a token of each. Nothing moves.
int nb_tune_measure(struct nb_tune *t, const struct nb_windows *windows, double *ret,
                    struct nb_error *ret_error);

// The i-th matrix as it is now, in its type: the bytes that the last forward pass would decode.
void nb_tune_encode(const struct nb_tune *t, uint32_t i, void *ret);
// The i-th vector that is tuned (nb_tune_report): its name in the file and its numbers, which are
// valid until the next step. NULL past the last.
const float *nb_tune_vector(const struct nb_tune *t, uint32_t i, struct nb_str *ret_name,
                            uint32_t *ret_n);

// The state between two steps as bytes, in pieces. One that was created from the same arguments
// goes on from them to the same bytes. Errors as of nb_state_write and nb_state_read, or -ENOMEM;
// after a failure only nb_tune_restore, encoding and destroying make sense.
int nb_tune_store(const struct nb_tune *t, nb_state_io write, void *user);
int nb_tune_restore(struct nb_tune *t, nb_state_io read, void *user);
uint64_t nb_tune_stored_bytes(const struct nb_tune *t);
