// Tuning from the inside: tune.c makes what the steps need, tune_tensors.c the tensors, tune_step.c
// runs steps of the whole model, tune_layer.c those of one layer, tune_state.c stores them. Nobody
// else includes it.
#pragma once

#include "grad/grad.h"
#include "quant/latent.h"
#include "quant/tune.h"

#define NB_TUNE_SLICE 512 // rows of the head at once

// A matrix of the quantized model.
struct nb_tuned_matrix {
    struct nb_grad_tensor *tensor;
    uint32_t type;
    struct nb_latent *latent; // NULL: fixed,
    uint8_t *encoded;         // with these bytes
    size_t floats, bytes;
    // Of a layer, and then in the memory that all layers share; or outside (NB_TUNE_OUTSIDE), and
    // then in memory of its own.
    uint32_t layer;
    float *values, *gradient;
};
#define NB_TUNE_OUTSIDE UINT32_MAX

struct nb_tuned_vector {
    struct nb_grad_tensor *tensor;
    float *x, *first, *second, *gradient; // [floats]
    size_t floats;
    uint32_t layer; // as of a matrix
    float unit;     // what a rate of 1 moves it by
};

struct nb_tune {
    const struct nb_plan *plan;
    struct nb_team *team;
    struct nb_grad *grad;
    const struct nb_windows *windows;
    struct nb_tune_options options;
    struct nb_tuned_matrix *matrices;
    struct nb_tuned_vector *vectors;
    uint32_t n_matrices, n_vectors, done;
    uint64_t key;  // a hash of all arguments
    uint32_t rows; // of a batch
    float *layer_values, *layer_gradient;
    size_t layer_floats;
    struct nb_tape **tapes; // [layers]; NULL: none
    float *x;               // [layers + 1][rows][embedding]: the quantized model's
    float *reference;       // [2][rows][embedding]: the float model's; at last x_L in the first
    float *kept;            // [windows->n][length][embedding]: the same of all windows, or NULL
    bool *is_kept;          // [windows->n]
    float *d;               // [rows][embedding]
    float *logits, *reference_logits; // [slice][vocab]
    float *row_loss;                  // [rows]
    uint32_t slice;
    uint32_t *order;                   // [windows->n]: of the epoch
    struct nb_grad_sequence *sequence; // [rows / the shortest window]
    bool to_begin;                     // something before the layers is tuned
    // Of steps of one layer, for all windows: [windows->n][length][embedding].
    float *inputs;    // of the layer, in the quantized model
    float *targets;   // its results in the float model
    uint32_t entered; // the layer; NB_TUNE_OUTSIDE: none
};

// Steps of single layers come first, then those of the whole model.
static inline uint32_t nb_tune_layer_steps(const struct nb_tune *t)
{
    return t->plan->n_layers * t->options.layer_steps;
}

// tune_tensors.c. The engine is open; destroyed half-made, too.
int nb_tune_tensors_create(struct nb_tune *t, const struct nb_tune_matrix *matrices, uint32_t n,
                           struct nb_error *e);
void nb_tune_tensors_destroy(struct nb_tune *t);

// tune_step.c. The plan's tensors as the quantized model has them, or as the float one.
void nb_tune_point(struct nb_tune *t, bool quantized);
// The matrices of a layer, or those outside, to where the engine reads them.
void nb_tune_decode(struct nb_tune *t, uint32_t layer);
// The windows of a step, from `order`, which is shuffled by epoch.
int nb_tune_take_batch(struct nb_tune *t, uint32_t step, uint32_t *ret_first, struct nb_error *e);
// A layer backward from `d`, and what is tuned in it moves.
int nb_tune_layer_back(struct nb_tune *t, uint32_t layer, const struct nb_descent *how,
                       bool to_input);
// Adam's numbers in step `at` of `n`, at such rates.
struct nb_descent nb_tune_descent(uint32_t at, uint32_t n, float code_rate, float scale_rate,
                                  float vector_rate);

// tune_layer.c: step number t->done, of one layer. ret_loss: the mean of rows' squared errors,
// each relative to the square of the target.
int nb_tune_layer_step(struct nb_tune *t, double *ret_loss, struct nb_error *e);
