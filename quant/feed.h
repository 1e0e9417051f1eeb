// What error feedback computes in bulk: the table that each ISA level fills (feed_tmpl.h). Rows lie
// in lanes, sixteen at once, so that everything of a row stays in its lane. Private to quant/.
#pragma once

#include "quant/factor.h"
#include "quant/shape.h"

#define NB_LANES 16

struct nb_factor {
    uint32_t cols, dead;
    float damping, ridge; // ridge: what was added to the diagonal
    float *h;             // [cols][cols], damped
    float *diagonal;      // [cols], undamped; 0 where a column is dead
    // [cols][cols]: row p has U of the p-th column in order, for all before it.
    float *feedback;
    float *root;     // [cols][cols]: R, H = R R^T in order, upper; for the target's correction
    uint32_t *order; // the column that is p-th
};

// Sixteen rows of a matrix. All arrays are [.][NB_LANES].
struct nb_unit {
    const struct nb_shape *shape;
    const struct nb_factor *factor;
    float *w, *q, *v;       // [cols]: target, decoded, what the code stands for
    float *g;               // [cols]: (q - w) H
    float *e, *t;           // [cols]: scratch
    float *d, *m, *by;      // [cols / group]: what stands behind a code, and 1 / d
    uint16_t *scale, *min;  // [cols / block], fp16
    int16_t *sub, *sub_min; // [cols / group]
    // [cols]: 1 where a weight stays, 0 where it is a zero. NULL: all stay.
    float *keep;
    uint32_t stay, of; // a pattern, which is chosen while columns are rounded; of: 0, none
    bool bare;         // of a float type: what is wanted is what is decoded
};

#define NB_FEED_SPARSE 128 // columns of a block whose zeros are chosen at once, as in SparseGPT

struct nb_feed {
    // dst[i][j] -= sum over k < n of a[i][k] * b[j][k], for four i and four j; n a multiple of 8.
    void (*subtract)(double *dst, const double *a, const double *b, uint32_t stride, uint32_t n);
    // dst[c] += sum over j < n of by[c * stride + j] * e[j], for `cols` columns c, a multiple of 8;
    // dst and e are lanes.
    void (*accumulate)(float *dst, uint32_t cols, const float *by, uint32_t stride, const float *e,
                       uint32_t n);
    // w += x (H + ridge)^-1, x in t.
    void (*solve)(struct nb_unit *u);
    void (*gradient)(struct nb_unit *u); // g from q and w
    void (*columns)(struct nb_unit *u);  // rounds all columns in order: v, q
    // The same in two steps, block by block of at most NB_FEED_SPARSE columns, a multiple of 8, in
    // order. First scores, [n] lanes: what it costs to make each a zero, when the columns after it
    // make good for it and none of the block is rounded yet. Then, with the block's keep, rounds.
    void (*score)(struct nb_unit *u, uint32_t first, uint32_t n, float *ret);
    void (*round)(struct nb_unit *u, uint32_t first, uint32_t n);
    void (*refine)(struct nb_unit *u); // one pass; g must be right
};
