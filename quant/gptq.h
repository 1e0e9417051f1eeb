// Error feedback: encodes a matrix so that its outputs on the calibration's inputs change least,
// instead of its weights. The result is an ordinary GGUF tensor.
//
// Scales are searched on the weights under the Hessian's diagonal (quant/encode.h) and stored
// before any column is rounded, so every rounding is against what a reader will decode. Then GPTQ's
// columns in order (factor.h). Then passes of refinement: for each group other scales, of either
// sign, with codes found by coordinate descent and a least-squares refit, all under the whole
// Hessian; super- scales likewise; coordinate descent over all codes. A pass never raises the
// damped error.
//
// A sparse matrix is SparseGPT's (Frantar and Alistarh, arXiv 2301.00774): zeros are chosen where
// they cost least, block by block of columns, or pattern by pattern along a row, when the columns
// before are done; a zero's error is fed forward as a rounded weight's is. What stays is rounded at
// once, and refinement leaves zeros as they are. A float type has no scales and no refinement.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/cpu/threads.h"
#include "quant/factor.h"
#include "quant/sparse.h"

struct nb_gptq {
    uint32_t type; // enum nb_type, quantized; of a sparse one floats too
    const struct nb_factor *factor;
    bool by_size;    // of the search for scales: struct nb_encode
    uint32_t passes; // of refinement; 0: GPTQ alone
    // Zeros, whatever `by` says; the type has a zero (nb_scheme_has_zero). A pattern wants a factor
    // of columns in their own order. All zero: dense.
    struct nb_sparsity sparse;
    // The factor's Hessian is of the inputs X that the quantized model gives. The target is what
    // the float model's inputs F give, plus the difference R that earlier layers have left in the
    // residual stream: W F + R, of which `mismatch` is corrected. Both may be NULL. Sums are
    // nb_cross_add's.
    const double *cross;    // [cols][cols]: (F - X) X^T
    const double *residual; // [rows][cols]: R X^T
    float mismatch;         // 0 to 1
};

// tr((rounded - target) H (rounded - target)^T) over all rows, H without damping.
struct nb_gptq_report {
    double nearest; // the searched scales, every weight rounded to nearest
    double columns; // after GPTQ's columns
    double refined; // after the last pass
};

// w: [rows][cols]; dst: nb_encoded_bytes(). Runs on the team, whose caller is thread 0; the bytes
// do not depend on its size. -EINVAL, -EDOM, -ERANGE as nb_encode_rows; -EINVAL too for a float
// type that is to be dense, for zeros that the type has not, or when cols is not the factor's;
// -ENOMEM. `ret` may be NULL. A share's zeros are chosen among all rows, which takes some
// 36 bytes a weight.
int nb_gptq_encode(const struct nb_gptq *how, struct nb_team *team, const float *w, uint64_t rows,
                   uint32_t cols, void *dst, struct nb_gptq_report *ret);
