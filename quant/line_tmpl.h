// The free scale and minimum of one group: many starts, each scored after one least-squares step,
// then codes and least squares in turns from the best. A template, see group_tmpl.h.
//
// The starts place an end of the codes at, short of or past the extreme weight in tenths of a step,
// as llama.cpp's encoders do, for both signs of the scale; and at multiples of the weighted
// deviation, for groups whose extreme is better clipped.
#pragma once

#include "quant/group_tmpl.h"

#define TENTHS 9  // of a step, short and past
#define TURNS  16 // of codes and least squares; they end by themselves earlier
#define LEAST  1e-30f

struct stored {
    uint16_t d, m; // fp16
    float error;
};

static inline bool is_finite_half(uint16_t h)
{
    return (h & 0x7fff) <= 0x7bff;
}

static inline bool try_stored(const struct span *s, struct stored *best, uint16_t d, uint16_t m)
{
    if (!is_finite_half(d) || !is_finite_half(m))
        return false;
    float error = error_of(s, nb_f16_to_f32(d), nb_f16_to_f32(m));
    if (!(error < best->error))
        return false;
    *best = (struct stored){d, m, error};
    return true;
}

struct finder {
    const struct span *s;
    struct stored *stored; // of a simple type: every fit is also tried as it would be stored
    float error;           // of the best fit so far
    struct line line;
};

static inline bool offer(struct finder *f, struct line line, float error)
{
    if (f->stored)
        try_stored(f->s, f->stored, nb_f32_to_f16(line.d), nb_f32_to_f16(line.m));
    if (!(error < f->error))
        return false;
    f->error = error;
    f->line = line;
    return true;
}

static inline bool try_symmetric(struct finder *f, float id)
{
    struct sums t = sums_of(f->s, 0, id);
    return t.vv > 0 && offer(f, (struct line){t.vy / t.vv, 0}, -(t.vy * t.vy / t.vv));
}

// The codes' end at the extreme weight or near it, or another outer code there, or the end at where
// weights are clipped.
static inline void find_symmetric(struct finder *f, float end, struct extent e, float rms)
{
    const float extreme = extreme_of(e), opposite = e.least + e.most - extreme;
    static const float clips[] = {0.75f, 1, 1.4f, 2, 3};
    float tenth = f->s->shape->table ? nb_shape_unit(f->s->shape) : 0.1f;
    for (int k = -TENTHS; k <= TENTHS; k++)
        try_symmetric(f, (end + tenth * (float)k) / extreme);
    for (int k = -TENTHS; fabsf(opposite) > 0.5f * fabsf(extreme) && k <= TENTHS; k += 3)
        try_symmetric(f, (end + tenth * (float)k) / opposite);
    for (unsigned i = 0; codes_of(f->s->shape) <= 32 && i < codes_of(f->s->shape); i++) {
        float v = value_of(f->s->shape, i);
        if (v * end > 0.4f * end * end && v != end)
            try_symmetric(f, v / extreme);
    }
    for (unsigned k = 0; k < sizeof(clips) / sizeof(clips[0]); k++)
        if (clips[k] * rms > LEAST && clips[k] * rms < fabsf(extreme))
            try_symmetric(f, end / copysignf(clips[k] * rms, extreme));
    for (unsigned i = 0; i < TURNS && try_symmetric(f, inverse(f->line.d)); i++)
        ;
}

// The best line with the lowest code at the extreme weight, and the best with the highest there.
static inline void fit_symmetric(const struct span *s, struct stored *stored, struct line ret[2])
{
    struct extent e = extent_of(s->x, s->n);
    struct moments all = moments_of(s, 0);
    struct finder low = {.s = s, .stored = stored}, high = low;
    if (fabsf(extreme_of(e)) > LEAST) {
        find_symmetric(&low, s->shape->low, e, sqrtf(all.yy / all.w));
        find_symmetric(&high, s->shape->high, e, sqrtf(all.yy / all.w));
    }
    ret[0] = low.line;
    ret[1] = high.line;
}

// Least squares for the codes that y * id has, y = x - base. A super-block's minimum is at most 0.
static inline bool try_affine(struct finder *f, float base, float id)
{
    struct sums t = sums_of(f->s, base, id);
    struct moments all = moments_of(f->s, base);
    float det = all.w * t.vv - t.v * t.v;
    if (!(det > 0))
        return false;
    float d = (all.w * t.vy - all.y * t.v) / det, m = (t.vv * all.y - t.v * t.vy) / det;
    if (f->s->shape->super && base + m > 0) {
        m = -base;
        d = (t.vy - m * t.v) / t.vv;
    }
    float error =
        all.yy + d * (d * t.vv - 2 * t.vy) + m * (m * all.w - 2 * all.y) + 2 * d * m * t.v;
    return d > 0 && offer(f, (struct line){d, base + m}, error);
}

static inline void turn_affine(struct finder *f)
{
    for (unsigned i = 0; i < TURNS && try_affine(f, f->line.m, inverse(f->line.d)); i++)
        ;
}

static inline void find_spans(struct finder *f, struct extent e)
{
    float range = e.most - e.least;
    if (!(range > LEAST))
        return;
    for (int k = -2 * TENTHS; k <= 2 * TENTHS; k++)
        try_affine(f, e.least, (f->s->shape->high + 0.05f * (float)k) / range);
    // Once more from the minimum that least squares prefer, which moves on with each better fit.
    for (int k = -2 * TENTHS; k <= 2 * TENTHS; k++)
        if (e.most - f->line.m > LEAST)
            try_affine(f, f->line.m, (f->s->shape->high + 0.05f * (float)k) / (e.most - f->line.m));
    turn_affine(f);
}

// Ends inside the range or outside: by parts of it, and by the weighted deviation.
static inline void find_clips(struct finder *f, struct extent e)
{
    static const float cuts[] = {-0.18f, -0.08f, 0, 0.1f, 0.25f}, clips[] = {0.75f, 1, 1.4f, 2, 3};
    float range = e.most - e.least, high = f->s->shape->high;
    for (unsigned low = 0; range > LEAST && low < 5; low++)
        for (unsigned top = 0; top < 5; top++)
            try_affine(f, e.least + cuts[low] * range,
                       high / (range * (1 - cuts[low] - cuts[top])));
    struct moments all = moments_of(f->s, e.least);
    float mean = all.y / all.w, deviation = sqrtf(fabsf(all.yy / all.w - mean * mean));
    for (unsigned k = 0; k < sizeof(clips) / sizeof(clips[0]); k++) {
        float reach = clips[k] * deviation, base = e.least + mean - reach, width = 2 * reach;
        if (f->s->shape->super && base > 0) {
            width += base;
            base = 0;
        }
        if (width > LEAST)
            try_affine(f, base, high / width);
    }
    turn_affine(f);
}

// The best line that spans the weights, and the best that clips them; the better one first.
static inline void fit_affine(const struct span *s, struct stored *stored, struct line ret[2])
{
    struct extent e = extent_of(s->x, s->n), from_zero = e;
    from_zero.least = e.least > 0 ? 0 : e.least;
    if (s->shape->super)
        e = from_zero;
    struct finder spans = {.s = s, .stored = stored, .error = INFINITY, .line = {0, e.least}};
    struct finder clips = spans;
    find_spans(&spans, e);
    if (e.least > from_zero.least)
        find_spans(&spans, from_zero);
    find_clips(&clips, e);
    ret[clips.error < spans.error] = spans.line;
    ret[!(clips.error < spans.error)] = clips.line;
}

static inline void fit_lines(const struct span *s, struct stored *stored, struct line ret[2])
{
    if (s->shape->has_min)
        fit_affine(s, stored, ret);
    else
        fit_symmetric(s, stored, ret);
}
