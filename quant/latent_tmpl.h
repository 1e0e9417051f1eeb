// The inner loops of a matrix under training. A template over the words of
// engine/cpu/simd_avx2.h, with one order of sums: every ISA level gives the same bits.
#pragma once

#include "quant/group_tmpl.h"
#include "quant/latent_room.h"

#define F16_MOST 65504.0f

// What a block's fp16 numbers decode to now.
static inline struct line latent_stored(const struct nb_latent *l, size_t block)
{
    return (struct line){l->scale.stored[block], l->shape.has_min ? l->min.stored[block] : 0};
}

// The effective scale and minimum of a group, as nb_block_dequantize has them.
static inline struct line latent_line(const struct nb_latent *l, struct line block, size_t group)
{
    if (!l->sub)
        return block;
    return (struct line){block.d * l->sub[group],
                         l->shape.has_min ? -(block.m * l->sub_min[group]) : 0};
}

static void latent_decode(const struct nb_latent *l, size_t first, size_t n, float *ret)
{
    const struct nb_shape shape = l->shape;
    const float *u = l->code.x + first * shape.block;
    for (size_t b = first; b < first + n; b++) {
        const struct line block = latent_stored(l, b);
        for (uint32_t g = 0; g < shape.groups; g++) {
            const struct line line = latent_line(l, block, b * shape.groups + g);
            const vf ws = f_set1(line.d), wm = f_set1(line.m);
            for (uint32_t j = 0; j < shape.group; j += 16, u += 16, ret += 16) {
                // Codes are integers: they know no -0.
                const vf w = f_mul(ws, f_add(nearest(&shape, f_load(u)), f_zero()));
                f_store(ret, shape.has_min ? f_add(w, wm) : w);
            }
        }
    }
}

// --- Descent

// How far a parameter moves, before its rate.
FORCED vf step_lanes(const struct nb_descent *how, vf gradient, float *first, float *second)
{
    const vf a = f_set1(how->first), b = f_set1(how->second), one = f_set1(1);
    const vf m = f_fma(a, f_load(first), f_mul(f_sub(one, a), gradient));
    const vf v = f_fma(b, f_load(second), f_mul(f_sub(one, b), f_mul(gradient, gradient)));
    f_store(first, m);
    f_store(second, v);
    return f_div(f_mul(f_set1(how->first_by), m),
                 f_add(f_sqrt(f_mul(f_set1(how->second_by), v)), f_set1(how->floor)));
}

static inline void move_scale(const struct nb_descent *how, const struct nb_scales *s, size_t at,
                              float gradient)
{
    const struct nb_moving *p = &s->moving;
    const float g = gradient * s->unit[at];
    const float m = how->first * p->first[at] + (1 - how->first) * g;
    const float v = how->second * p->second[at] + (1 - how->second) * (g * g);
    const float step = how->first_by * m / (sqrtf(how->second_by * v) + how->floor);
    const float x = p->x[at] - how->scale_rate * s->unit[at] * step;
    p->first[at] = m;
    p->second[at] = v;
    p->x[at] = x > F16_MOST ? F16_MOST : x < -F16_MOST ? -F16_MOST : x;
    s->stored[at] = nb_f16_to_f32(nb_f32_to_f16(p->x[at]));
}

// Over a group: sums of G q and of G.
struct pulls {
    float gq, g;
};

FORCED struct pulls descend_group(const struct nb_shape *shape, const struct nb_moving *code,
                                  size_t at, float ws, const float *gradient,
                                  const struct nb_descent *how)
{
    const float gap = nb_shape_gap(shape), sign = ws > 0 ? 1.0f : ws < 0 ? -1.0f : 0.0f;
    const vf rate = f_set1(how->code_rate * gap), by = f_set1(sign), all = f_set1(how->scale);
    const vf least = f_set1(shape->low - 0.5f * gap), most = f_set1(shape->high + 0.5f * gap);
    vf gq = f_zero(), sum = f_zero();
    for (uint32_t j = 0; j < shape->group; j += 16) {
        const vf g = f_mul(all, f_load(gradient + j)), u = f_load(code->x + at + j);
        gq = f_fma(g, nearest(shape, u), gq);
        sum = f_add(sum, g);
        const vf step = step_lanes(how, f_mul(by, g), code->first + at + j, code->second + at + j);
        f_store(code->x + at + j, f_min(f_max(f_sub(u, f_mul(rate, step)), least), most));
    }
    return (struct pulls){f_fold(gq), f_fold(sum)};
}

static void latent_descend(const struct nb_latent *l, size_t first, size_t n, const float *gradient,
                           const struct nb_descent *how)
{
    const struct nb_shape shape = l->shape;
    const struct nb_moving code = l->code;
    for (size_t b = first; b < first + n; b++) {
        const struct line block = latent_stored(l, b);
        float of_scale = 0, of_min = 0;
        for (uint32_t g = 0; g < shape.groups; g++, gradient += shape.group) {
            const size_t group = b * shape.groups + g;
            const struct line line = latent_line(l, block, group);
            const struct pulls p =
                descend_group(&shape, &code, group * shape.group, line.d, gradient, how);
            of_scale += l->sub ? l->sub[group] * p.gq : p.gq;
            of_min += l->sub ? -l->sub_min[group] * p.g : p.g;
        }
        move_scale(how, &l->scale, b, of_scale);
        if (shape.has_min)
            move_scale(how, &l->min, b, of_min);
    }
}

static void latent_codes(const struct nb_latent *l, size_t block, float *ret)
{
    const struct nb_shape shape = l->shape;
    for (uint32_t j = 0; j < shape.block; j += 16)
        f_store(ret + j, nearest(&shape, f_load(l->code.x + block * shape.block + j)));
}

static const struct nb_latent_loops latent = {latent_decode, latent_descend, latent_codes};
