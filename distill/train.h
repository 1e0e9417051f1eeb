// Training: all tensors of a model are moved, in fp32, so that it predicts a text's next tokens
// better (hard labels), or as a teacher does (soft labels), or both; a model that is made for
// vectors (engine/arch.h: for_vectors) so that a text's vector is its teacher's, by the cosine of
// the two and by the cosines among the texts of a batch. Or only an adapter is trained: two
// thin factors beside each of some matrices, whose model stays as it is in whatever type (LoRA: Hu
// and others, arXiv 2106.09685; of a quantized model, QLoRA: Dettmers and others, arXiv
// 2305.14314).
//
// A step runs a number of batches of windows through teacher and student, adds up the gradients of
// the mean loss of a token (grad/loss.h), clips their norm and takes one step of AdamW
// (grad/adam.h). The rate rises over the first steps and falls along its schedule. Methods:
// knowledge distillation (Hinton and others, arXiv 1503.02531), with the cosine of the last hidden
// states beside it (DistilBERT: Sanh and others, arXiv 1910.01108), those of a student of another
// width through a projection that is trained beside it (TinyBERT: Jiao and others, arXiv
// 1909.10351); of vectors, relations among texts (distill/cosine.h).
//
// Deterministic: bits depend on the arguments and the processor's ISA level, or the device and its
// driver, never on the threads, nor on where the work was stored and restored. Memory: 16 bytes for
// each weight that is moved, with coded moments 10; of both models one layer's matrices (or the
// head's) as floats, twice; a batch's rows between the student's layers; and the memory that
// options allow. All calls block and use the team, whose thread 0 is the caller; one call at a
// time.
#pragma once

#include <stdint.h>

#include "distill/lessons.h"
#include "engine/cpu/threads.h"
#include "engine/plan.h"
#include "quant/encode.h"
#include "quant/state.h"
#include "quant/windows.h"
#include "tensor/fail.h"

struct nb_train;

enum nb_schedule { NB_SCHEDULE_COSINE, NB_SCHEDULE_LINEAR, NB_SCHEDULE_CONSTANT };

// Of each chosen matrix W [rows][cols], alpha / rank B A is added to it, where A is [rank][cols]
// and begins as uniform numbers, and B [rows][rank] and begins as zeros.
#define NB_ADAPTER_ROLES 32
#define NB_ADAPTER_ROLE  64 // bytes, with the NUL
struct nb_adapter_choice {
    uint32_t rank; // 0: there is no adapter, and all tensors are moved
    float alpha;
    uint32_t n_roles;                              // 0: all matrices of the layers
    char roles[NB_ADAPTER_ROLES][NB_ADAPTER_ROLE]; // "attn_q": blk.0.attn_q.weight, and so on
};

// Processes that train one model together: each computes some of a step's batches, and all move by
// the sum. Every call is made by all of them in the same order, blocks until all have made it, and
// leaves the same bits in each. -errno.
struct nb_train_share {
    uint32_t rank, ranks;
    void *user;
    int (*sum_floats)(void *user, float *x, size_t n);   // over the ranks, number by number
    int (*sum_doubles)(void *user, double *x, size_t n); // likewise
    int (*copy)(void *user, void *data, size_t bytes);   // rank 0's, to all
};

struct nb_device;

struct nb_train_options {
    uint32_t batch;       // windows that run at once
    uint32_t accumulate;  // batches of a step
    uint32_t steps, warm; // of which so many rise
    enum nb_schedule schedule;
    float rate, decay;  // decay: of matrices alone
    float clip;         // the largest norm of a step's gradient; 0: any
    float temperature;  // T
    float mix;          // 0 to 1: which divergence from the teacher (grad/loss.h)
    float own;          // 0 to 1: the share of windows whose text the student writes itself
    float hard;         // 0 to 1: the share of labels, the rest is the teacher's
    float cosine;       // of vectors, in the place of the three above: weight of 1 - cosine,
    float relation;     // and of the relations' differences
    float hidden;       // weight of 1 - cosine of the last hidden states; 0: none
    float attention;    // weight of the relations among tokens in the last layers (relations.h)
    uint64_t seed;      // of the windows' order, and of random weights
    bool random;        // the student's matrices begin as random numbers
    bool bf16;          // products of both models take bf16 operands (nb_grad_narrow)
    bool coded_moments; // of 8 bits (grad/adam.h), but for codes that learn
    uint64_t memory;    // bytes of tapes of the student's layers, so that less is computed again
    struct nb_adapter_choice adapter;
    // What a teacher has said of the windows, in the place of the teacher; NULL: nothing. It
    // outlives the training.
    const struct nb_lessons *lessons;
    const struct nb_train_share *share; // outlives the training; NULL: it is alone
    struct nb_device *device; // passes of both models run on it (nb_grad_open_on); NULL: on the CPU
    // Which of the teacher's channels each of the student's is, [the student's width], until
    // nb_train_create returns: where their projection begins. NULL: it begins with random numbers.
    const uint32_t *channel;
};
#define NB_TRAIN_STEPS (1u << 24)

// Plans (at `exact`), team and windows must outlive it. teacher: NULL, where `hard` is 1 or
// there are lessons, and `hidden` and `attention` are 0; never of vectors. -EINVAL: models whose
// vocabularies or, with `cosine`, widths differ; windows that are fewer than a batch or longer than
// a context; tokens outside the vocabulary; numbers out of range; losses that a student of its kind
// does not have; an adapter of matrices that are not there or smaller than its rank; -ENOTSUP: a
// teacher without logits, an adapter of experts or of a model for vectors, what a device lacks;
// -ENOMEM; with a device what nb_grad_open_on returns. With its line. Of a shared training -EINVAL
// too: a step of fewer batches than there are ranks.
int nb_train_create(const struct nb_plan *student, const struct nb_plan *teacher,
                    struct nb_team *team, const struct nb_windows *windows,
                    const struct nb_train_options *options, struct nb_train **ret,
                    struct nb_error *ret_error);
void nb_train_destroy(struct nb_train *t); // NULL is fine

// From now on the model computes with what this tensor is when it is encoded so, and its gradient
// goes to the numbers behind that: quantization-aware training. `how` has no importance, and its
// scheme stays as long as the trainer; of one scale for a whole tensor what it spans is looked up
// before each step. Before the first step and before nb_train_restore. -EINVAL: it is none of the
// model's tensors, or does not move; -ENOMEM; with its line.
int nb_train_round(struct nb_train *t, struct nb_str name, const struct nb_encode *how,
                   struct nb_error *ret_error);
// Or from now on codes and scales of a type are what moves in the tensor's place: gradients go to
// the codes straight through their rounding, to scales and minima as they are (quant/latent.h).
// All of them move weights by `rate`, on the tensor's average at first; there is no decay. encoded:
// [rows] of the type, the start, read during the call, as the tensor itself is. When as above.
// -EINVAL: it is none of the model's tensors, or does not move; -ENOTSUP and -EDOM as of
// nb_latent_create; -ENOMEM; with its line.
int nb_train_learn_codes(struct nb_train *t, struct nb_str name, uint32_t type, const void *encoded,
                         struct nb_error *ret_error);
// Such a tensor as it is now: [rows] of its type, or NULL, to ask alone. false: it is none.
bool nb_train_encode(const struct nb_train *t, struct nb_str name, void *ret);
// And its inputs as the int8 codes that a device will make of them under such a scale; gradients
// pass straight through. `range`: of NB_INPUT_FIXED. When and errors as above; -ENOTSUP: a device
// does not round inputs.
int nb_train_round_inputs(struct nb_train *t, struct nb_str name, enum nb_input_scale scale,
                          float range, struct nb_error *ret_error);

// The means of what was compared; what is not learnt is 0.
struct nb_train_loss {
    double hard, soft;       // of a token, in nats: of labels, and of the teacher (times T^2)
    double hidden;           // of a token: 1 - cosine of hidden states
    double attention;        // of a token: of queries, keys and values together (relations.h)
    double cosine, relation; // of a text: 1 - cosine of vectors, and within its batch (cosine.h)
    double norm;             // of the gradient, before it is clipped
};

// One step. ret: the means of its tokens, before it. -EALREADY after the last step; -EDOM: a loss
// or gradient is not finite, and nothing has moved; -ECANCELED: another rank has failed; -ENOMEM;
// the errors of a device. With its line.
int nb_train_step(struct nb_train *t, struct nb_train_loss *ret, struct nb_error *ret_error);
uint32_t nb_train_done(const struct nb_train *t); // steps
// As it is now on other windows, which are no longer than a batch of its own; as many as fit are
// one batch. ret: [windows->n], means of each at temperature 1. Nothing moves.
int nb_train_measure(struct nb_train *t, const struct nb_windows *windows,
                     struct nb_train_loss *ret, struct nb_error *ret_error);

// The tensor of this name, [experts][rows][cols], valid and steady until the next step; where codes
// move, what they were at in the last pass. NULL: there is none that is moved. An adapter's are
// NAME.lora_a and NAME.lora_b.
const float *nb_train_tensor(const struct nb_train *t, struct nb_str name, uint64_t *ret_n);
// All that are moved, by number, but for the projection: it serves training alone.
struct nb_train_moved {
    const char *name;
    uint32_t rows, cols; // rows: of all experts
};
uint32_t nb_train_count(const struct nb_train *t);
struct nb_train_moved nb_train_moved(const struct nb_train *t, uint32_t i);

// The state between two steps. One that was created from the same arguments goes on from it to the
// same bytes. Errors as of nb_state_write and nb_state_read; after a failure only nb_train_restore
// and destroying make sense.
int nb_train_store(const struct nb_train *t, nb_state_io write, void *user);
int nb_train_restore(struct nb_train *t, nb_state_io read, void *user);
// Of a shared training: everyone has from now on what rank 0 has. -errno of its calls.
int nb_train_align(struct nb_train *t);
uint64_t nb_train_weights(const struct nb_train *t);     // that are moved, by number
uint64_t nb_train_state_bytes(const struct nb_train *t); // of what is stored
