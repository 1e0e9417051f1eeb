// Sums over the weights of one group, sixteen lanes at a time: what every search is made of. A
// template over the words of engine/cpu/simd_avx2.h.
#pragma once

#include <math.h>

#include "quant/shape.h"

// Weights of a group or a block with their factors; n is a multiple of 16.
struct span {
    const struct nb_shape *shape;
    const float *x, *w;
    unsigned n;
};

static inline struct span group_of(const struct span *block, unsigned g)
{
    unsigned n = block->shape->group;
    return (struct span){block->shape, block->x + g * n, block->w + g * n, n};
}

// The v of `shape` that is nearest to t. What is not a number gives the lowest.
FORCED vf nearest(const struct nb_shape *shape, vf t)
{
    t = f_min(f_max(t, f_set1(shape->low)), f_set1(shape->high));
    if (!shape->table)
        return f_rint(t);
    vf v = f_set1(shape->value[0]);
    for (unsigned k = 0; k < 15; k++) {
        vmask above = m_sign(f_sub(f_set1(shape->edge[k]), t));
        v = f_select(above, f_set1(shape->value[k + 1]), v);
    }
    return v;
}

static inline unsigned codes_of(const struct nb_shape *shape)
{
    return shape->table ? 16 : (unsigned)(shape->high - shape->low) + 1;
}

// What the i-th code stands for, from the lowest.
static inline float value_of(const struct nb_shape *shape, unsigned i)
{
    return shape->table ? shape->value[i] : shape->low + (float)i;
}

// 0 for a scale that is zero or whose inverse is not a number to multiply with.
static inline float inverse(float d)
{
    return fabsf(d) > 1e-30f ? 1 / d : 0;
}

// Over a span, with y = x - base and v the nearest to y * id: sums of w v, w v v and w v y.
struct sums {
    float v, vv, vy;
};

static inline struct sums sums_of(const struct span *s, float base, float id)
{
    vf v_sum = f_zero(), vv = f_zero(), vy = f_zero(), b = f_set1(base), by = f_set1(id);
    for (unsigned j = 0; j < s->n; j += 16) {
        vf y = f_sub(f_load(s->x + j), b);
        vf v = nearest(s->shape, f_mul(y, by)), wv = f_mul(f_load(s->w + j), v);
        v_sum = f_add(v_sum, wv);
        vv = f_add(vv, f_mul(wv, v));
        vy = f_add(vy, f_mul(wv, y));
    }
    return (struct sums){f_fold(v_sum), f_fold(vv), f_fold(vy)};
}

// Sums of w, w y and w y y.
struct moments {
    float w, y, yy;
};

static inline struct moments moments_of(const struct span *s, float base)
{
    vf w_sum = f_zero(), y_sum = f_zero(), yy = f_zero(), b = f_set1(base);
    for (unsigned j = 0; j < s->n; j += 16) {
        vf w = f_load(s->w + j), y = f_sub(f_load(s->x + j), b), wy = f_mul(w, y);
        w_sum = f_add(w_sum, w);
        y_sum = f_add(y_sum, wy);
        yy = f_add(yy, f_mul(wy, y));
    }
    return (struct moments){f_fold(w_sum), f_fold(y_sum), f_fold(yy)};
}

// The sum of w (x - (d v + m))^2, v the nearest.
static inline float error_of(const struct span *s, float d, float m)
{
    vf sum = f_zero(), scale = f_set1(d), min = f_set1(m), by = f_set1(inverse(d));
    for (unsigned j = 0; j < s->n; j += 16) {
        vf x = f_load(s->x + j), v = nearest(s->shape, f_mul(f_sub(x, min), by));
        vf r = f_sub(x, f_add(f_mul(v, scale), min));
        sum = f_add(sum, f_mul(f_load(s->w + j), f_mul(r, r)));
    }
    return f_fold(sum);
}

static inline void put_codes(const struct nb_shape *shape, const float *x, float d, float m,
                             uint8_t *code)
{
    vf min = f_set1(m), by = f_set1(inverse(d));
    for (unsigned j = 0; j < shape->group; j += 16) {
        float v[16];
        f_store(v, nearest(shape, f_mul(f_sub(f_load(x + j), min), by)));
        for (unsigned i = 0; i < 16; i++) {
            if (!shape->table) {
                code[j + i] = (uint8_t)((int)v[i] + (int)shape->layout->offset);
                continue;
            }
            unsigned c = 0;
            for (unsigned k = 0; k < 15; k++)
                c += v[i] > shape->edge[k];
            code[j + i] = (uint8_t)c;
        }
    }
}

struct extent {
    float least, most;
};

static inline struct extent extent_of(const float *x, unsigned n)
{
    float lanes[2][16];
    vf least = f_load(x), most = least;
    for (unsigned j = 16; j < n; j += 16) {
        least = f_min(least, f_load(x + j));
        most = f_max(most, f_load(x + j));
    }
    f_store(lanes[0], least);
    f_store(lanes[1], most);
    struct extent e = {lanes[0][0], lanes[1][0]};
    for (unsigned i = 1; i < 16; i++) {
        e.least = lanes[0][i] < e.least ? lanes[0][i] : e.least;
        e.most = lanes[1][i] > e.most ? lanes[1][i] : e.most;
    }
    return e;
}

// The weight of the largest magnitude, with its sign.
static inline float extreme_of(struct extent e)
{
    return -e.least > e.most ? e.least : e.most;
}

// A scale and a minimum in fp32: what one group would have if it were free.
struct line {
    float d, m;
};

static inline struct line span_symmetric(const struct nb_shape *shape, const float *x)
{
    float extreme = extreme_of(extent_of(x, shape->group));
    // Q2_0 has -1..2 and is rounded to -1..1, as its own encoder does.
    float end = shape->low == -1 ? 1 : shape->low;
    if (shape->high == -shape->low) // Q8_0: nothing to gain by a negative scale
        return (struct line){fabsf(extreme) / shape->high, 0};
    return (struct line){shape->low == -1 ? fabsf(extreme) : extreme / end, 0};
}

// Under a super-block a minimum is subtracted, so it is at most 0.
static inline struct line span_affine(const struct nb_shape *shape, const float *x)
{
    struct extent e = extent_of(x, shape->group);
    if (shape->super && e.least > 0)
        e.least = 0;
    return (struct line){(e.most - e.least) / shape->high, e.least};
}

static inline struct line span_of(const struct nb_shape *shape, const float *x)
{
    return shape->has_min ? span_affine(shape, x) : span_symmetric(shape, x);
}
