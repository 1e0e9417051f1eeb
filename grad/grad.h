// The float engine: what a model computes, and the loss's gradients, in fp32, layer by layer, from
// the same list of ops that the devices read (engine/plan.h). Calibration, tuning and training
// stand on this header.
//
//     batch ─ begin ─▶ x0 ─ layer 0 ─▶ x1 ─ … ─ layer L-1 ─▶ xL ─ head ─▶ logits
//                     d0 ◀─ layer 0 ── d1 ◀─ … ◀─ layer L-1 ── dL ◀─ head ── d loss / d logits
//
// x_i is [rows][embedding], where a batch's sequences lie one behind the other; d_i is the loss's
// gradient with respect to x_i. The loss is the caller's. Who wants to go back keeps each x_i: a
// layer's inside is computed again in its backward pass (Chen and others, Training Deep Nets with
// Sublinear Memory Cost, arXiv 1604.06174), unless the caller keeps that too, on a tape.
//
// Deterministic: bits depend on the calls and the processor's ISA level, never on the threads, nor
// on what was kept. Memory: one layer's matrices (or the head's) as floats, and what one layer
// makes of a batch, twice. All calls block and use the team, whose thread 0 is the caller; one call
// at a time. Pointers are read or written during the call alone, but for those in struct
// nb_grad_tensor.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/cpu/threads.h"
#include "engine/plan.h"
#include "tensor/fail.h"

struct nb_grad;
struct nb_tape;

// What is added to a matrix of [rows][cols] without experts: scale B A (LoRA: Hu and others, arXiv
// 2106.09685). Neither it nor the gradient of the matrix is ever formed. All is the caller's.
struct nb_grad_factors {
    uint32_t rank;
    float scale;
    const float *a, *b; // [rank][cols], [rows][rank]
    float *d_a, *d_b;   // backward passes add the loss's gradients here
};

// A matrix or vector that ops compute with. The caller may set `values`, `gradient` and `factors`
// between calls; the first two are [experts][rows][cols], and all stay his.
struct nb_grad_tensor {
    struct nb_str name;           // in the file
    uint32_t experts, rows, cols; // 1 where there are no experts, or it is a vector
    const float *values;          // in place of the plan's; NULL: the plan's
    // Backward passes add the loss's gradient here; NULL: it is not wanted, and what it alone needs
    // is not computed.
    float *gradient;
    const struct nb_grad_factors *factors; // of a matrix that rows are multiplied with; NULL: none
    // Products take the rows that a matrix is multiplied with as the int8 codes that a device would
    // make of them (engine/inputs.h): of NB_INPUT_ROW each row has its scale, of NB_INPUT_FIXED the
    // largest code of all stands for `range`. NB_INPUT_BLOCK: they are not rounded. Gradients pass
    // straight through.
    enum nb_input_scale inputs;
    float range;
    const struct nb_matrix *matrix; // the plan's: a matrix,
    const float *vector;            // or a vector; the other is NULL
};

struct nb_grad_sequence {
    const int32_t *token;
    uint32_t n;
    uint32_t position; // of the first token
};

// Plan and team must outlive it. A matrix that nb_plan_replace replaces is seen by the next call.
// -EINVAL for a part of a plan, -ENOMEM.
int nb_grad_open(const struct nb_plan *plan, struct nb_team *team, struct nb_grad **ret,
                 struct nb_error *ret_error);
// The same on a Vulkan device (engine/device.h), which must outlive it and is the caller's thread's
// alone meanwhile; NULL: on the CPU. Results are within 1e-5 of the CPU's, of the largest, and have
// the same bits whenever the device and its driver are the same. All tensors lie there as floats,
// with what one span makes of a batch and its gradients. A device has no tapes, factors, rounded
// inputs, stages, nb_grad_narrow, nb_grad_see or nb_grad_tap: passes with one of them return
// -ENOTSUP. Passes also return -E2BIG, of a head whose rows a shader cannot see, and -EIO, -ENODEV
// or -ETIMEDOUT, after which the device is lost (nb_device_ops.fault says why). -ENOTSUP: no Vulkan
// device, or a model with experts; -E2BIG: a part of the model is larger than what a shader sees;
// the errors of a device; with its line.
struct nb_device;
int nb_grad_open_on(const struct nb_plan *plan, struct nb_team *team, struct nb_device *device,
                    struct nb_grad **ret, struct nb_error *ret_error);
// Says that floats of some `values` are others than in the last pass: a device has a copy of them.
void nb_grad_changed(struct nb_grad *g);
void nb_grad_close(struct nb_grad *g); // NULL is fine

// All tensors, each once, also one that serves twice; NULL: there is none of this name. A router's
// bias, which chooses and has no gradient, is none of them.
struct nb_grad_tensor *nb_grad_tensors(struct nb_grad *g, uint32_t *ret_n);
struct nb_grad_tensor *nb_grad_find(struct nb_grad *g, const char *name);
// [experts][rows][cols]: what it is without `values`, as floats.
void nb_grad_dequantize(struct nb_grad *g, const struct nb_grad_tensor *t, float *ret);

// From now on `fn` is called, by the caller's thread, with the inputs of each matrix that a forward
// pass multiplies: `n` rows of w->cols floats, `stride` floats apart; of experts, those of one
// expert after the other. It may not call the engine. NULL: no more.
typedef void nb_grad_see_fn(void *user, const struct nb_grad_tensor *w, uint32_t expert,
                            const float *x, size_t stride, uint32_t n);
void nb_grad_see(struct nb_grad *g, nb_grad_see_fn *fn, void *user);

// From now on forward passes of `layer` also write its attention's queries, keys and values, as it
// multiplies them (behind norms and RoPE), to ret[0 ... 2], each [rows][heads * dimension]; and
// backward passes add d[0 ... 2], the gradient that begins there, to what reaches them. The caller
// keeps these. NULL, or one of them: not wanted. A model has one such layer at a time.
void nb_grad_tap(struct nb_grad *g, uint32_t layer, float *const *ret, const float *const *d);

// Whether products of rows and matrices, forward and back, take both operands rounded to bf16, and
// sum in fp32 as before; at first they do not. It is faster on processors with AVX512-BF16, where
// denormals count as zeros, and the same on others. Factors and attention stay in fp32.
void nb_grad_narrow(struct nb_grad *g, bool bf16);

// The batch that begin and layers compute from now on; tokens are copied. -EINVAL: a sequence
// without tokens, a token outside the vocabulary, a position outside the context; -E2BIG: over
// NB_GRAD_ROWS rows; -ENOMEM.
#define NB_GRAD_ROWS (1u << 20)
int nb_grad_batch(struct nb_grad *g, const struct nb_grad_sequence *sequence, uint32_t n,
                  struct nb_error *ret_error);

// Keys and values of so many sequences of so many tokens, for who writes a text token by token: the
// passes of a batch need not compute what earlier ones have. -ENOTSUP: a device, or a model whose
// tokens see those behind them; -ENOMEM.
struct nb_grad_cache;
int nb_grad_cache_create(const struct nb_grad *g, uint32_t sequences, uint32_t length,
                         struct nb_grad_cache **ret);
void nb_grad_cache_destroy(struct nb_grad_cache *c); // NULL is fine
// From now on forward passes put the keys and values of sequence i of a batch into sequence i of
// the cache, at its positions, and attend to all that is there before them too: of each layer, what
// earlier batches have put there. nb_grad_batch returns -EINVAL where a batch does not fit. Nothing
// goes back through such passes. NULL: to the batch alone.
void nb_grad_continue(struct nb_grad *g, struct nb_grad_cache *c);

// Forward passes. x, ret_x: [rows][embedding] of the batch, which may not overlap; layer: below the
// model's n_layers. All return 0, or -ENOMEM with nothing written.
int nb_grad_begin(struct nb_grad *g, float *ret_x);
// `keep`: a tape of this layer for batches of so many rows or more (-EINVAL: it is not), or NULL.
int nb_grad_layer(struct nb_grad *g, uint32_t layer, const float *x, struct nb_tape *keep,
                  float *ret_x);
// All layers, for who keeps nothing between them. x: two places of the batch's [rows][embedding],
// one `apart` floats behind the other; x_L is in the first at last.
int nb_grad_forward(struct nb_grad *g, float *x, size_t apart);
// Of n rows of x_L, from whatever batch. ret_logits: [n][vocab], NULL with a model that only
// embeds; ret_vectors: [n][embedding], what a text's vector is made of. NULL: not wanted.
int nb_grad_head(struct nb_grad *g, uint32_t n, const float *x, float *ret_vectors,
                 float *ret_logits);

// A layer in stages, for who replaces its matrices one after the other and wants to see what the
// replaced ones make of the inputs of the next: no op runs twice. A site is where matrices read the
// same rows.
//
//     x ─ stage 0 ─▶ state at site 0 ─ stage 1 ─▶ ... state at site n-1 ─ stage n ─▶ x of layer + 1
//
// A state is what the rest of the layer reads, of the present batch. As `layer` the model's number
// of layers is the head, whose last stage gives logits.
uint32_t nb_grad_sites(const struct nb_grad *g, uint32_t layer);
size_t nb_grad_state_floats(const struct nb_grad *g, uint32_t layer, uint32_t site);
// stage: from 0 to nb_grad_sites. `ret` may be `from`. 0 or -ENOMEM.
int nb_grad_stage(struct nb_grad *g, uint32_t layer, uint32_t stage, const float *from, float *ret);

#define NB_GRAD_SITE 16 // matrices of a site at most
// In the order in which they multiply; how many.
uint32_t nb_grad_site_matrices(const struct nb_grad *g, uint32_t layer, uint32_t site,
                               struct nb_grad_tensor **ret);
// n rows, `stride` floats apart, in a state.
struct nb_grad_rows {
    const float *x;
    size_t stride;
    uint32_t n;
};
// What a site's matrices read; of a site of experts, what one expert reads.
struct nb_grad_rows nb_grad_site_input(const struct nb_grad *g, uint32_t layer, uint32_t site,
                                       uint32_t expert, const float *state);
// What the product of one of its matrices is added to (the residual stream); without rows: it is
// not added to anything.
struct nb_grad_rows nb_grad_site_stream(const struct nb_grad *g, uint32_t layer, uint32_t site,
                                        const struct nb_grad_tensor *w, const float *state);

// Backward passes, in reverse: they take the same x as the forward pass and may follow any number
// of other calls, but for nb_grad_batch with another batch. `d`: the gradient with respect
// to the result, which becomes that with respect to x. 0 or -ENOMEM.
//
// d_logits, d_vectors as nb_grad_head's results, NULL: zero; d_logits is overwritten. d:
// [n][embedding], written.
int nb_grad_head_back(struct nb_grad *g, uint32_t n, const float *x, const float *d_vectors,
                      float *d_logits, float *ret_d);
// `kept`: what the forward pass of this x filled, or NULL. Without `to_input` d is of no use
// afterwards, and what it alone would need is not computed.
int nb_grad_layer_back(struct nb_grad *g, uint32_t layer, const float *x,
                       const struct nb_tape *kept, float *d, bool to_input);
// d is of no use afterwards.
int nb_grad_begin_back(struct nb_grad *g, float *d);

// Memory for rows, which free() takes; NULL: there is none.
float *nb_grad_floats(size_t n);

// What a forward pass of a layer has made of a batch of no more rows than the present one, for the
// backward pass. 0 or -ENOMEM. nb_tape_bytes: what one takes.
int nb_tape_create(const struct nb_grad *g, uint32_t layer, struct nb_tape **ret);
void nb_tape_destroy(struct nb_tape *tape); // NULL is fine
// One for each layer until so many bytes are used up: a layer that gets none is computed again.
// ret: [layers], NULL before. 0 or -ENOMEM.
int nb_tapes_create(const struct nb_grad *g, uint64_t bytes, struct nb_tape **ret);
uint64_t nb_tape_bytes(const struct nb_grad *g, uint32_t layer);
