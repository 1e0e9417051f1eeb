// Error feedback in bulk: sums of products, and the columns in order. A template over the words of
// engine/cpu/simd_avx2.h.
#pragma once

#include "quant/feed.h"
#include "quant/group_tmpl.h"
#include "quant/sparse.h"

#define PANEL 64 // columns between two bulk updates

// Eight doubles; a lane each, whatever registers there are.
typedef double eight __attribute__((vector_size(64), aligned(8)));

FORCED vf lanes(const float *array, uint32_t i)
{
    return f_load(array + (size_t)i * NB_LANES);
}

FORCED void put_lanes(float *array, uint32_t i, vf x)
{
    f_store(array + (size_t)i * NB_LANES, x);
}

// By a pointer: an argument of 64 bytes has no calling convention without AVX-512.
static double fold8(const eight *p)
{
    const double *x = (const double *)(const void *)p;
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

static void subtract(double *dst, const double *a, const double *b, uint32_t stride, uint32_t n)
{
    eight sum[4][4] = {{{0}}};
    for (uint32_t k = 0; k < n; k += 8)
        for (unsigned i = 0; i < 4; i++) {
            eight x = *(const eight *)(const void *)(a + (size_t)i * stride + k);
            for (unsigned j = 0; j < 4; j++)
                sum[i][j] += x * *(const eight *)(const void *)(b + (size_t)j * stride + k);
        }
    for (unsigned i = 0; i < 4; i++)
        for (unsigned j = 0; j < 4; j++)
            dst[(size_t)i * stride + j] -= fold8(&sum[i][j]);
}

static void accumulate(float *dst, uint32_t cols, const float *by, uint32_t stride, const float *e,
                       uint32_t n)
{
    for (uint32_t c = 0; c < cols; c += 8, by += 8 * (size_t)stride) {
        vf sum[8];
        for (unsigned i = 0; i < 8; i++)
            sum[i] = lanes(dst, c + i);
        for (uint32_t j = 0; j < n; j++) {
            vf y = lanes(e, j);
            for (unsigned i = 0; i < 8; i++)
                sum[i] = f_fma(f_set1(by[i * (size_t)stride + j]), y, sum[i]);
        }
        for (unsigned i = 0; i < 8; i++)
            put_lanes(dst, c + i, sum[i]);
    }
}

static inline uint32_t panel_at(const struct nb_unit *u, uint32_t first)
{
    uint32_t left = u->factor->cols - first;
    return left < PANEL ? left : PANEL;
}

// The nearest that the unit's scales of column c decode to.
FORCED vf round_lanes(const struct nb_unit *u, uint32_t c, vf x, vf *ret_v)
{
    if (u->bare)
        return *ret_v = x;
    uint32_t g = c / u->shape->group;
    vf d = lanes(u->d, g), m = lanes(u->m, g);
    *ret_v = nearest(u->shape, f_mul(f_sub(x, m), lanes(u->by, g)));
    return f_add(f_mul(*ret_v, d), m);
}

// x, or 0 where column c is to be a zero; never -0, which is another number in a file of floats.
FORCED vf kept(const struct nb_unit *u, uint32_t c, vf x)
{
    return u->keep ? f_add(f_mul(x, lanes(u->keep, c)), f_zero()) : x;
}

// The error that grows when one of the columns [first + from, first + from + n), which come next,
// becomes a zero: x^2 / (H^-1)_kk of those that are left, by the factor x^2 D. t has what is fed
// into the block from `first` on. If nothing more were rounded, each column would take up all that
// is fed into it, and feed as much on.
static void foresee(const struct nb_unit *u, uint32_t first, uint32_t from, uint32_t n, float *ret)
{
    const struct nb_factor *f = u->factor;
    float t[NB_FEED_SPARSE * NB_LANES];
    memcpy(t, u->t + (size_t)from * NB_LANES, n * NB_LANES * sizeof(*t));
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t p = first + from + i;
        const vf moved = lanes(t, i), x = f_add(lanes(u->w, f->order[p]), moved);
        const vf root = f_mul(x, f_set1(f->root[(size_t)p * f->cols + p]));
        put_lanes(ret, i, f_mul(root, root));
        for (uint32_t k = i + 1; k < n; k++) {
            const float by = f->feedback[(size_t)(first + from + k) * f->cols + p];
            put_lanes(t, k, f_fma(f_set1(-by), moved, lanes(t, k)));
        }
    }
}

// Of the next columns, the pattern's, those that cost least become zeros; of equal ones the first.
// Lane by lane. Columns are in their own order.
static void choose_pattern(struct nb_unit *u, uint32_t first, uint32_t from)
{
    float scores[NB_SPARSE_OF * NB_LANES];
    const vf go = f_set1((float)(u->of - u->stay) - 0.5f), one = f_set1(1);
    foresee(u, first, from, u->of, scores);
    for (uint32_t i = 0; i < u->of; i++) {
        vf less = f_zero(); // than this one
        for (uint32_t j = 0; j < u->of; j++) {
            const vf x = lanes(scores, i), y = lanes(scores, j);
            if (j < i)
                less = f_add(less, f_select(m_sign(f_sub(x, y)), f_zero(), one));
            if (j > i)
                less = f_add(less, f_select(m_sign(f_sub(y, x)), one, f_zero()));
        }
        put_lanes(u->keep, first + from + i, f_select(m_sign(f_sub(less, go)), f_zero(), one));
    }
}

// One panel's columns in order; t has what the columns before the panel feed into it.
static void columns_of(struct nb_unit *u, uint32_t first, uint32_t n)
{
    const struct nb_factor *f = u->factor;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t p = first + i, c = f->order[p];
        if (u->of && p % u->of == 0)
            choose_pattern(u, first, i);
        vf v, w = lanes(u->w, c);
        vf q = round_lanes(u, c, kept(u, c, f_add(w, lanes(u->t, i))), &v);
        vf e = f_sub(w, q);
        put_lanes(u->q, c, q);
        put_lanes(u->v, c, v);
        put_lanes(u->e, p, e);
        for (uint32_t k = i + 1; k < n; k++)
            put_lanes(
                u->t, k,
                f_fma(f_set1(f->feedback[(size_t)(first + k) * f->cols + p]), e, lanes(u->t, k)));
    }
}

// t takes what all columns before feed into [first, first + n).
static void feed_into(struct nb_unit *u, uint32_t first, uint32_t n)
{
    const struct nb_factor *f = u->factor;
    memset(u->t, 0, n * NB_LANES * sizeof(float));
    accumulate(u->t, n, f->feedback + (size_t)first * f->cols, f->cols, u->e, first);
}

static void score(struct nb_unit *u, uint32_t first, uint32_t n, float *ret)
{
    feed_into(u, first, n);
    foresee(u, first, 0, n, ret);
}

static void columns(struct nb_unit *u)
{
    for (uint32_t first = 0; first < u->factor->cols; first += PANEL) {
        uint32_t n = panel_at(u, first);
        feed_into(u, first, n);
        columns_of(u, first, n);
    }
}

static void gradient(struct nb_unit *u)
{
    const struct nb_factor *f = u->factor;
    for (uint32_t c = 0; c < f->cols; c++)
        put_lanes(u->e, c, f_sub(lanes(u->q, c), lanes(u->w, c)));
    memset(u->g, 0, (size_t)f->cols * NB_LANES * sizeof(float));
    accumulate(u->g, f->cols, f->h, f->cols, u->e, f->cols);
}

// R R^T y = x in order: R is upper, so first from the last column back (z = R^-1 x by columns),
// then from the first on (y = R^-T z by rows). One row of R is read for each column.
static void solve(struct nb_unit *u)
{
    const struct nb_factor *f = u->factor;
    const uint32_t n = f->cols;
    float *z = u->e;
    for (uint32_t p = 0; p < n; p++)
        put_lanes(z, p, lanes(u->t, f->order[p]));
    for (uint32_t p = n; p-- > 0;) {
        const float *row = f->root + (size_t)p * n;
        vf sum = lanes(z, p), other = f_zero();
        uint32_t k = p + 1;
        for (; k + 1 < n; k += 2) {
            sum = f_fma(f_set1(-row[k]), lanes(z, k), sum);
            other = f_fma(f_set1(-row[k + 1]), lanes(z, k + 1), other);
        }
        if (k < n)
            sum = f_fma(f_set1(-row[k]), lanes(z, k), sum);
        put_lanes(z, p, f_div(f_add(sum, other), f_set1(row[p])));
    }
    for (uint32_t p = 0; p < n; p++) {
        const float *row = f->root + (size_t)p * n;
        vf y = f_div(lanes(z, p), f_set1(row[p]));
        uint32_t c = f->order[p];
        put_lanes(u->w, c, f_add(lanes(u->w, c), y));
        for (uint32_t k = p + 1; k < n; k++)
            put_lanes(z, k, f_fma(f_set1(-row[k]), y, lanes(z, k)));
    }
}
