// Blocks with one fp16 scale, and perhaps one fp16 minimum. A template, see group_tmpl.h.
#pragma once

#include "quant/line_tmpl.h"

#define POLISHES 16

// Least squares for the codes of what is stored, in fp16.
static inline bool refit_stored(const struct span *s, struct stored *best)
{
    float before = best->error, d = nb_f16_to_f32(best->d), m = nb_f16_to_f32(best->m);
    struct finder f = {.s = s, .stored = best, .error = INFINITY};
    if (s->shape->has_min)
        try_affine(&f, m, inverse(d));
    else
        try_symmetric(&f, inverse(d));
    return best->error < before;
}

// The neighbours in fp16: where scales are subnormal, or codes many, an fp16 step is coarse.
static inline bool nudge_stored(const struct span *s, struct stored *best)
{
    const struct stored from = *best;
    bool better = false;
    int far = s->shape->has_min ? 1 : 4, min_far = s->shape->has_min ? 1 : 0;
    for (int i = -far; i <= far; i++)
        for (int j = -min_far; j <= min_far; j++)
            better |= try_stored(s, best, (uint16_t)(from.d + i), (uint16_t)(from.m + j));
    return better;
}

// Out of a local optimum: the codes of a scale or a minimum some part of a step away.
static inline bool shake_stored(const struct span *s, struct stored *best)
{
    static const float parts[] = {-1, -0.5f, -0.25f, -0.12f, 0.12f, 0.25f, 0.5f, 1};
    const float before = best->error, d = nb_f16_to_f32(best->d), m = nb_f16_to_f32(best->m);
    struct finder f = {.s = s, .stored = best, .error = INFINITY};
    for (unsigned i = 0; d != 0 && i < sizeof(parts) / sizeof(parts[0]); i++) {
        float scaled = d * (1 + parts[i] * nb_shape_unit(s->shape) / s->shape->high);
        if (s->shape->has_min) {
            try_affine(&f, m + parts[i] * d, inverse(d));
            try_affine(&f, m, inverse(scaled));
            try_affine(&f, m + parts[i] * d, inverse(scaled));
        } else {
            try_symmetric(&f, inverse(scaled));
            try_symmetric(&f, -inverse(scaled));
        }
    }
    return best->error < before;
}

static inline void put_simple(const struct nb_shape *shape, const float *x, uint16_t d, uint16_t m,
                              struct nb_block *ret)
{
    ret->scale = d;
    ret->min = m;
    put_codes(shape, x, nb_f16_to_f32(d), nb_f16_to_f32(m), ret->code);
}

static inline void reference_simple(const struct nb_shape *shape, const float *x,
                                    struct nb_block *ret)
{
    struct line l = span_of(shape, x);
    put_simple(shape, x, nb_f32_to_f16(l.d), nb_f32_to_f16(l.m), ret);
}

// Scales that give the extreme weight one of the outer codes exactly, as near as fp16 has it: the
// best there is where a group is one number.
static inline void try_exact(const struct span *s, struct stored *best)
{
    struct extent e = extent_of(s->x, s->n);
    if (s->shape->has_min) {
        uint16_t m = nb_f32_to_f16(e.least);
        for (int i = -1; i <= 1; i++) {
            uint16_t near = (uint16_t)(m + i);
            float left = e.most - nb_f16_to_f32(near);
            try_stored(s, best, nb_f32_to_f16(left / s->shape->high), near);
        }
        return;
    }
    float extreme = extreme_of(e);
    for (unsigned i = 0; i < codes_of(s->shape); i++) {
        float v = value_of(s->shape, i);
        if (fabsf(v) > 0.45f * s->shape->high)
            try_stored(s, best, nb_f32_to_f16(extreme / v), 0);
    }
}

// What a group's scale and minimum are stored as, for the least error.
static inline struct stored find_stored(const struct span *s)
{
    struct line l = span_of(s->shape, s->x), free[2];
    struct stored best = {0, 0, INFINITY};
    try_stored(s, &best, 0, 0);
    try_stored(s, &best, nb_f32_to_f16(l.d), nb_f32_to_f16(l.m));
    if (s->n <= NB_BLOCK_MAX)
        try_exact(s, &best);
    fit_lines(s, &best, free);
    for (unsigned i = 0; i < POLISHES; i++)
        if (!refit_stored(s, &best) && !nudge_stored(s, &best) && !shake_stored(s, &best))
            break;
    return best;
}

static inline void search_simple(const struct span *s, struct nb_block *ret)
{
    const struct stored best = find_stored(s);
    put_simple(s->shape, s->x, best.d, best.m, ret);
}
