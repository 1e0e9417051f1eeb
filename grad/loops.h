// The inner loops of the float engine: one table for each ISA level, the same source compiled with
// other flags (loops_tmpl.h). Loops are single-threaded and re-entrant. Unlike the kernels of
// engine/cpu the levels may differ in rounding: docs/numerics.md binds results, not gradients.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/activation.h"
#include "engine/op.h"
#include "grad/adam.h"
#include "grad/loss.h"

// One head of one sequence: keys and values [n][..] at their strides, queries of those from `first`
// on.
struct nb_attend_head {
    const float *q, *k, *v;
    float *out, *sum; // sum: the logarithm of the softmax's sum, for each query
    size_t ldq, ldk, ldv, ldo, lds;
    uint32_t n, first, k_dim, v_dim;
    float scale, softcap; // 0: none
    uint32_t window;      // 0: none
    bool causal;
};

// Gradients of the result, and of what it was made of, which are added to; NULL: not wanted.
struct nb_attend_gradients {
    const float *out;
    float *q, *k, *v;
};

#define NB_QUERY_TILE 64
#define NB_KEY_TILE   64

struct nb_loops {
    // The mean that a norm of n numbers takes off (0 of RMS's), and the factor that follows.
    void (*norm_stat)(enum nb_norm_kind kind, const float *x, float eps, uint32_t n,
                      float ret_stat[2]);
    // dx += the gradient of x of that norm; dy: of the result. weight may be NULL.
    void (*norm_back)(enum nb_norm_kind kind, const float *x, const float *weight,
                      const float stat[2], uint32_t n, const float *dy, float *dx);
    // sum[i] += dy[i] * (x[i] - stat[0]) * stat[1]
    void (*norm_weight)(const float *x, const float *dy, const float stat[2], uint32_t n,
                        float *sum);
    // d_gate and d_up += the gradients of act(gate) * up, of act(gate) where `up` is NULL; those
    // may be NULL.
    void (*activate_back)(enum nb_activation kind, const float *gate, const float *up, uint32_t n,
                          const float *dy, float *d_gate, float *d_up);
    // dy becomes the gradient of x, where y = cap * tanh(x * scale / cap), or x * scale.
    void (*cap_back)(const float *y, float scale, float cap, uint32_t n, float *dy);
    float (*dot)(const float *a, const float *b, uint32_t n);
    void (*narrow)(const float *x, uint16_t *ret, uint32_t n); // to bf16, to nearest even
    // What int8 codes of x stand for under one scale, as the devices quantize; most: what the
    // largest code stands for, 0: the largest magnitude of x.
    void (*round_codes)(const float *x, float most, float *ret, uint32_t n);
    // KL(softmax(reference) || softmax(logits)); logits becomes its gradient times `weight`.
    float (*divergence)(const float *reference, float *logits, uint32_t n, float weight);
    // A row of grad/loss.h's nb_grad_distil; reference may be NULL, label below 0.
    void (*distil)(const struct nb_distil_loss *how, const float *reference, int32_t label,
                   float *logits, uint32_t n, float *ret_soft, float *ret_hard);
    // Of nb_grad_distil_kept.
    void (*distil_kept)(const struct nb_distil_loss *how, const struct nb_kept *reference,
                        int32_t label, float *logits, uint32_t n, float *ret_soft, float *ret_hard);
    // A step of nb_adam on n numbers.
    void (*adam)(const struct nb_adam *how, const float *gradient, float *x, float *first,
                 float *second, uint32_t n);
    // Of nb_adam_step_coded on the n numbers of one block; at: of its first.
    void (*adam_coded)(const struct nb_adam *how, uint64_t at, const float *gradient, float *x,
                       struct nb_adam_block *block, uint32_t n);
    // Queries [q0, q0 + n) with n <= NB_QUERY_TILE. scratch: nb_attend_floats.
    void (*attend)(const struct nb_attend_head *a, uint32_t q0, uint32_t n, float *scratch);
    // All queries of the head; `first` is 0.
    void (*attend_back)(const struct nb_attend_head *a, const struct nb_attend_gradients *d,
                        float *scratch);
};

extern const struct nb_loops nb_loops_scalar, nb_loops_avx2, nb_loops_avx512;

// Those for the processor's best kernels (engine/cpu/kernels.h), which NIBBLE_ISA may name.
const struct nb_loops *nb_loops_best(void); // loops_x86.c, loops_other.c

static inline size_t nb_attend_floats(uint32_t k_dim, uint32_t v_dim)
{
    const size_t tiles = 2 * (size_t)NB_QUERY_TILE * NB_KEY_TILE;
    return tiles + ((size_t)k_dim + v_dim) * NB_KEY_TILE + (size_t)NB_QUERY_TILE * (v_dim + 4);
}
