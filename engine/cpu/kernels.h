// The CPU's kernels: one table of function pointers for each ISA level, every entry bit-identical
// to the scalar one (docs/numerics.md). Kernels are single-threaded and re-entrant; the caller
// divides the work (row groups, tokens, heads) among threads. No kernel allocates.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/activation.h"
#include "engine/inputs.h"
#include "engine/kv.h"
#include "tensor/layout.h"

enum nb_isa { NB_ISA_SCALAR, NB_ISA_AVX2, NB_ISA_AVX512, NB_ISA_COUNT };

#define NB_ACT_BLOCK 32

// Quantized activations of `n` tokens by `k` inputs (k a multiple of 32; callers zero-pad). The
// float row is kept beside them because the float weight class needs it. All arrays are 64-byte
// aligned, token-major.
struct nb_act {
    uint32_t n, k;
    uint32_t terms; // 1 or 2; 1 where not every block has its own scale
    enum nb_input_scale scaled;
    float range;          // of NB_INPUT_FIXED: codes saturate there
    float *x;             // [n][k]
    int8_t *q1, *q2;      // [n][k]; q2 unused with one term
    float *s;             // [n][k/32]
    int16_t *sum1, *sum2; // [n][k/16] integer sums of 16
};

// The heads of a KV cache. In a block keys of a head are [dim][32 slots], values [32 slots][dim]:
// of F16 halves, of F32 floats, of Q8_0 bytes and after them halves, the scales, [dim / 32][32
// slots].
struct nb_kv_form {
    enum nb_kv_type type;
    uint32_t k_dim, v_dim;
};

// What attention's scores become and which positions a query sees. With `end` 0 attention is
// causal: a query at p sees positions 0..p, the last `window` of them where window is not 0. With
// another `end` it is bidirectional: every query sees positions [0, end), and window must be 0.
struct nb_attention {
    float scale, softcap; // softcap 0 = none
    uint32_t window, end;
    // NULL, or for each query head a logit that joins the softmax without a value (gpt-oss).
    const float *sinks;
};

// Bytes of the arrays of nb_act for n tokens by k inputs, and laying them in `mem` (64-byte
// aligned).
size_t nb_act_bytes(uint32_t n, uint32_t k);
void nb_act_init(struct nb_act *ret, void *mem, uint32_t n, uint32_t k, uint32_t terms);

struct nb_kernels {
    const char *name;

    // x[k] of token t of `a` is set: fill q1, q2, s, sums for tokens [t0, t1). Blocks of a row, or
    // of all rows, may have one scale (`scaled`): s has it once for each block nevertheless, so
    // that products know nothing of it.
    void (*quantize)(struct nb_act *a, uint32_t t0, uint32_t t1);

    // out[i] = x[i] * (1 / sqrt(mean(x^2) + eps)) * weight[i]. `weight` may be NULL (ones); in and
    // out may be the same.
    void (*rmsnorm)(const float *x, const float *weight, float eps, uint32_t n, float *out);

    // out[i] = (x[i] - mean(x)) * (1 / sqrt(mean((x - mean)^2) + eps)) * weight[i] + bias[i].
    // `weight` and `bias` may be NULL (ones, zeros); in and out may be the same.
    void (*layernorm)(const float *x, const float *weight, const float *bias, float eps, uint32_t n,
                      float *out);

    // y[t * ldy + row] for row groups [g0, g1) of w and every token t of a; ldy in floats. With
    // `accumulate`, adds the finished sum to what y holds (the residual). `bias` may be NULL; added
    // after the sum. `scratch`: at least gemm_scratch(w, a->n) bytes, 64-byte aligned, one for each
    // thread.
    void (*gemm)(const struct nb_packed *w, const struct nb_act *a, uint32_t g0, uint32_t g1,
                 const float *bias, bool accumulate, float *y, size_t ldy, void *scratch);
    size_t (*gemm_scratch)(const struct nb_packed *w, uint32_t n);

    // out[i] = act(gate[i]) * up[i], or act(gate[i]) where `up` is NULL. out may be gate.
    void (*activate)(enum nb_activation kind, const float *gate, const float *up, uint32_t n,
                     float *out);

    // y[i] += scale * x[i], by fma.
    void (*add)(float *y, const float *x, float scale, uint32_t n);

    // x[i] becomes x[i] * scale, and where cap > 0 that softly capped: cap * tanh(that / cap).
    void (*cap)(float *x, float scale, float cap, uint32_t n);

    // Rotates n_heads heads of head_dim in place. cos_sin: rot_dim/2 cosines, then as many sines.
    // neox: pairs (i, i + rot_dim/2); else (2i, 2i + 1).
    void (*rope)(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t rot_dim,
                 const float *cos_sin, bool neox);

    // Writes one token's K and V (f32, n_kv_heads * head_dim each) into position `slot` (0..31) of
    // a KV block, whose keys and values begin at k_block and v_block.
    void (*kv_write)(const struct nb_kv_form *form, uint8_t *k_block, uint8_t *v_block,
                     const float *k, const float *v, uint32_t n_kv_heads, uint32_t slot);

    // Attention of `n_q` consecutive query tokens of one sequence, the first at absolute position
    // `pos0`, for KV head `kv_head` and the `group` query heads that share it. blocks[b] is the KV
    // block (K part, see kv_write) of positions [32 b, 32 b + 32); v_offset is where V lies in it,
    // in bytes. q: token-major, q[t * ldq + (kv_head * group + h) * k_dim + d], unscaled; out the
    // same with v_dim and ldo. p->sinks[kv_head * group + h]. scratch: attn_scratch() bytes.
    void (*attention)(const struct nb_kv_form *form, const float *q, size_t ldq,
                      const uint8_t *const *blocks, size_t v_offset, uint32_t n_q, uint32_t pos0,
                      uint32_t kv_head, uint32_t group, const struct nb_attention *p, float *out,
                      size_t ldo, void *scratch);
    size_t (*attn_scratch)(const struct nb_kv_form *form, uint32_t n_q, uint32_t group);

    // Row `row` of a packed matrix to floats (the embedding).
    void (*decode_row)(const struct nb_packed *w, uint32_t row, float *out);
};

// The table of a level, NULL when this build or machine lacks it. nb_kernels_best honours
// NIBBLE_ISA (scalar, avx2, avx512), by which a test forces a level, and is NULL when the level
// named there is unknown or missing.
const struct nb_kernels *nb_kernels_of(enum nb_isa isa);
const struct nb_kernels *nb_kernels_best(void);
