// Training from the inside: train_tensors.c makes what moves, train.c what else the steps need,
// train_step.c runs them, train_loss.c says what they lower. Nobody else includes it.
#pragma once

#include "distill/train.h"
#include "grad/adam.h"
#include "grad/grad.h"
#include "quant/encode.h"
#include "quant/latent.h"
#include "tensor/source.h"

#define NB_TRAIN_SLICE 256 // rows of the heads at once

// A tensor that moves: one of the model's, or a factor of an adapter.
struct nb_trained {
    char name[NB_SOURCE_NAME];
    uint32_t rows, cols; // rows: of all experts
    bool decays;
    struct nb_grad_tensor *tensor; // the model's; NULL of a factor
    size_t floats;
    float *x;                      // [floats], and its moments behind it; NULL where codes move
    float *first, *second;         // [floats],
    struct nb_adam_block *moments; // or these; NULL: the other
    size_t state_floats;           // of x and its moments
    float *gradient;               // [floats]
    // Of what is computed with as it will be in the file:
    float *rounded;           // [floats]; NULL: it is not
    struct nb_encode how;     // how x is rounded,
    struct nb_latent *latent; // or codes and scales, which move in the place of x; NULL: x is
    float gap, size;          // at first: between two codes, and of a weight, on the average
};

// All that descent moves of it, with its moments.
static inline float *nb_trained_state(const struct nb_trained *w, size_t *ret_floats)
{
    if (w->latent)
        return nb_latent_state(w->latent, ret_floats);
    *ret_floats = w->state_floats;
    return w->x;
}

// Rows that have a label, and that are not left out.
struct nb_train_counts {
    uint32_t labels, counted;
};

struct nb_train {
    const struct nb_plan *plan, *teacher_plan; // NULL: there is no teacher
    struct nb_team *team;
    struct nb_grad *grad, *teacher;
    const struct nb_windows *windows;
    struct nb_train_options options;
    bool vectors; // are learnt, not logits
    struct nb_trained *tensors;
    uint32_t n_tensors, done;
    struct nb_trained *projection;   // the last of them: [the teacher's width][the student's], of
                                     // hidden states; NULL: they are equally wide, or not compared
    bool stale;                      // what is rounded is not what has moved since
    struct nb_grad_factors *factors; // of an adapter; NULL: all tensors move
    uint64_t key;                    // a hash of all arguments, but for weights that do not move
    uint32_t rows;                   // of a batch, at most
    struct nb_tape **tapes;          // [layers]; NULL: none
    float *x;                        // [layers + 1][rows][embedding]
    float *d;                        // [rows][embedding]: the gradient in x_L, and back
    float *taught;                   // [2][rows][the teacher's embedding]: at last x_L in the first
    float *projected; // [2][rows][the teacher's embedding]: x_L, and the gradient in it
    float *logits, *teacher_logits; // [slice][vocab]
    struct nb_lesson *sums;         // [rows]: of the present batch, what its lessons say;
    struct nb_kept_logit *kept;     // [rows][kept]; NULL: there are none
    float *vector, *teacher_vector; // [rows][embedding] of each: of texts
    float *d_vector;                // [rows][embedding]
    float *d_slice;                 // [slice][embedding]: in what vectors are made of
    float *soft, *hard, *hidden;    // [rows]
    float *attention;               // [rows]; 0 where it is not learnt
    // Queries, keys and values of the last layers, [rows][heads * dimension] each, with the
    // gradient in the student's; NULL: they are not compared.
    float *attended[3], *attended_teacher[3], *d_attended[3];
    float *relating;             // what comparing them needs
    float *cosine, *relation;    // [rows]: of texts
    uint32_t *order;             // [windows->n]: of the epoch
    int32_t *own;                // [batch][length]: windows that the student has written,
    uint32_t n_own;              // the first of the present batch; NULL, 0: none
    struct nb_grad_cache *cache; // of these; NULL: none, or on a device
    uint32_t *chosen;            // [batch]: the windows of the present one, behind the order
    // The present batch.
    uint32_t n_rows, n_windows;
    struct nb_train_counts of_batch, of_step; // of_step: of all batches of the step under way
    struct nb_grad_sequence *sequence;        // [rows]
    uint32_t *end;                            // [rows]: where a window's rows end
    int32_t *label;                           // [rows], as nb_grad_distil takes them
};

// Numbers of a row of queries (0), keys (1) or values (2), all heads.
static inline uint32_t nb_train_attended(const struct nb_hparams *hp, uint32_t of)
{
    static const enum nb_dim dims[] = {NB_DIM_Q, NB_DIM_K, NB_DIM_V};
    return hp->dim[dims[of]];
}

// x_i of the present batch.
static inline float *nb_train_rows(const struct nb_train *t, uint32_t layer)
{
    return t->x + (size_t)layer * t->rows * t->plan->hp.embedding;
}

// train_loss.c: the losses of the present batch's rows and texts, whose x_L both models have
// computed. With `back` also the gradient in x_L of the step's mean loss, to t->d, and those in
// what is computed behind it; without, at temperature 1. -ENOMEM.
int nb_train_losses(struct nb_train *t, bool back);
// The means of n windows of it.
struct nb_train_loss nb_train_mean(const struct nb_train *t, uint32_t first, uint32_t n);

// train_own.c: how many of this batch's windows the student writes, the first of them; and to write
// them. -EDOM: its logits are not finite; -ENOMEM; with its line.
uint32_t nb_train_own(const struct nb_train *t, uint32_t number);
int nb_train_write_own(struct nb_train *t, uint32_t number, struct nb_error *e);

// train_share.c: a step's sums over all ranks, after its own batches, which ended with rc. Errors
// as of nb_train_step.
int nb_train_join(struct nb_train *t, int rc, struct nb_train_loss *loss);

// train_tensors.c: everything that moves, with the memory for it. -EINVAL, -ENOTSUP, -ENOMEM; with
// its line.
int nb_train_add_tensors(struct nb_train *t, struct nb_error *e);
// NULL: none of this name moves.
struct nb_trained *nb_train_find(const struct nb_train *t, struct nb_str name);
// train_round.c: before anything is computed. -EDOM: a number that the type cannot hold; -ENOMEM.
int nb_train_refresh(struct nb_train *t);
