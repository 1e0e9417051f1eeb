// Refinement under the whole Hessian: coordinate descent over codes, and other scales for each
// group. Every step is taken lane by lane, only where it lowers that row's error. A template, see
// group_tmpl.h.
#pragma once

#include "quant/feed_tmpl.h"

#define GROUP_MAX 64
#define SWEEPS    2

// The diagonal's element of column c.
static inline float curvature(const struct nb_unit *u, uint32_t c)
{
    return u->factor->h[(size_t)c * u->factor->cols + c];
}

// Lanes in which x is below y.
FORCED vmask below(vf x, vf y)
{
    return m_sign(f_sub(x, y));
}

// Moves column c to its best code; returns by how much what is decoded moves.
FORCED vf descend_column(struct nb_unit *u, uint32_t c)
{
    vf h = f_set1(curvature(u, c)), q = lanes(u->q, c), g = lanes(u->g, c), v;
    vf next = round_lanes(u, c, kept(u, c, f_sub(q, f_div(g, h))), &v), move = f_sub(next, q);
    // The error changes by move * (2 g + h * move).
    vf change = f_mul(move, f_fma(h, move, f_add(g, g)));
    vmask better = m_sign(change);
    put_lanes(u->q, c, f_select(better, next, q));
    put_lanes(u->v, c, f_select(better, v, lanes(u->v, c)));
    return f_select(better, move, f_zero());
}

static inline bool any(vf x)
{
    float out[16], sum = 0;
    f_store(out, x);
    for (unsigned i = 0; i < 16; i++)
        sum += fabsf(out[i]);
    return sum != 0;
}

// g takes up the moves e[0..n) of the columns from `first` on, but inside the panel itself.
static void spread(struct nb_unit *u, uint32_t first, uint32_t n)
{
    const struct nb_factor *f = u->factor;
    accumulate(u->g, first, f->h + first, f->cols, u->e, n);
    uint32_t after = first + n;
    accumulate(u->g + (size_t)after * NB_LANES, f->cols - after,
               f->h + (size_t)after * f->cols + first, f->cols, u->e, n);
}

static void descend(struct nb_unit *u)
{
    const struct nb_factor *f = u->factor;
    for (uint32_t first = 0; first < f->cols; first += PANEL) {
        uint32_t n = panel_at(u, first);
        bool moved = false;
        for (uint32_t i = 0; i < n; i++) {
            vf move = descend_column(u, first + i);
            put_lanes(u->e, i, move);
            if (!any(move))
                continue;
            moved = true;
            const float *row = f->h + (size_t)(first + i) * f->cols + first;
            for (uint32_t k = 0; k < n; k++)
                put_lanes(u->g, first + k, f_fma(f_set1(row[k]), move, lanes(u->g, first + k)));
        }
        if (moved)
            spread(u, first, n);
    }
}

// A group's scale and minimum as they would be stored: fp16 bits, or a sub-scale and a sub-minimum.
struct knobs {
    float d[NB_LANES], m[NB_LANES];
    int a[NB_LANES], b[NB_LANES];
};

static inline int clamp_half(float v)
{
    uint16_t h = nb_f32_to_f16(v);
    return (h & 0x7fff) <= 0x7bff ? h : (h & 0x8000) | 0x7bff;
}

// The nearest to d and m that the type can store.
static void store_knobs(const struct nb_unit *u, uint32_t group, struct knobs *k)
{
    const struct nb_shape *s = u->shape;
    uint32_t block = group / s->groups;
    for (unsigned i = 0; i < NB_LANES; i++) {
        if (!s->super) {
            k->a[i] = clamp_half(k->d[i]);
            k->b[i] = clamp_half(k->m[i]);
            k->d[i] = nb_f16_to_f32((uint16_t)k->a[i]);
            k->m[i] = nb_f16_to_f32((uint16_t)k->b[i]);
            continue;
        }
        float d = nb_f16_to_f32(u->scale[block * NB_LANES + i]);
        float m = s->has_min ? nb_f16_to_f32(u->min[block * NB_LANES + i]) : 0;
        float a = k->d[i] * inverse(d), b = -k->m[i] * inverse(m);
        k->a[i] = a > (float)s->sub_low ? (int)lrintf(fminf(a, (float)s->sub_high)) : s->sub_low;
        k->b[i] = b > 0 ? (int)lrintf(fminf(b, (float)s->min_high)) : 0;
        k->d[i] = d * (float)k->a[i];
        k->m[i] = s->has_min ? -(m * (float)k->b[i]) : 0;
    }
}

// A group under trial: n columns with their codes and what they decode to, the part of g that comes
// from all other columns, and the error that depends on the group.
struct trial {
    uint32_t first, n;
    struct knobs knobs;
    float v[GROUP_MAX * NB_LANES], q[GROUP_MAX * NB_LANES], g[GROUP_MAX * NB_LANES];
    float error[NB_LANES];
};

static inline const float *h_at(const struct nb_unit *u, uint32_t row, uint32_t col)
{
    return u->factor->h + (size_t)row * u->factor->cols + col;
}

// g = others + (q - w) H, error = sum of (q - w) * (g + others), over the group.
static void weigh_trial(const struct nb_unit *u, const float *others, struct trial *t)
{
    float e[GROUP_MAX * NB_LANES];
    for (uint32_t k = 0; k < t->n; k++)
        put_lanes(e, k, f_sub(lanes(t->q, k), lanes(u->w, t->first + k)));
    memcpy(t->g, others, t->n * NB_LANES * sizeof(float));
    accumulate(t->g, t->n, h_at(u, t->first, t->first), u->factor->cols, e, t->n);
    vf error = f_zero();
    for (uint32_t k = 0; k < t->n; k++)
        error = f_fma(lanes(e, k), f_add(lanes(t->g, k), lanes(others, k)), error);
    f_store(t->error, error);
}

FORCED vf round_trial(const struct nb_unit *u, const struct trial *t, vf by, vf x, vf *ret_v)
{
    vf m = f_load(t->knobs.m);
    *ret_v = nearest(u->shape, f_mul(f_sub(x, m), by));
    return f_add(f_mul(*ret_v, f_load(t->knobs.d)), m);
}

static inline vf inverse_lanes(const float *d)
{
    float by[NB_LANES];
    for (unsigned i = 0; i < NB_LANES; i++)
        by[i] = inverse(d[i]);
    return f_load(by);
}

// Codes for the trial's knobs: what was decoded is rounded anew, then coordinate descent inside the
// group.
static void round_group(const struct nb_unit *u, const float *others, struct trial *t)
{
    vf by = inverse_lanes(t->knobs.d), v;
    for (uint32_t k = 0; k < t->n; k++) {
        put_lanes(t->q, k, round_trial(u, t, by, lanes(t->q, k), &v));
        put_lanes(t->v, k, v);
    }
    weigh_trial(u, others, t);
    for (unsigned sweep = 0; sweep < SWEEPS; sweep++)
        for (uint32_t k = 0; k < t->n; k++) {
            const float *row = h_at(u, t->first + k, t->first);
            vf h = f_set1(row[k]), q = lanes(t->q, k), g = lanes(t->g, k);
            vf x = kept(u, t->first + k, f_sub(q, f_div(g, h)));
            vf next = round_trial(u, t, by, x, &v), move = f_sub(next, q);
            vf change = f_mul(move, f_fma(h, move, f_add(g, g)));
            vmask better = m_sign(change);
            move = f_select(better, move, f_zero());
            if (!any(move))
                continue;
            put_lanes(t->q, k, f_select(better, next, q));
            put_lanes(t->v, k, f_select(better, v, lanes(t->v, k)));
            for (uint32_t j = 0; j < t->n; j++)
                put_lanes(t->g, j, f_fma(f_set1(row[j]), move, lanes(t->g, j)));
        }
    weigh_trial(u, others, t);
}

// Over a group's columns: v g, g, v H v, v H 1, 1 H 1; the last two for types with a minimum.
enum { VG, G1, VHV, VH1, H11, N_SUMS };

static void sum_trial(const struct nb_unit *u, const struct trial *t, float ret[N_SUMS][NB_LANES])
{
    float hv[GROUP_MAX * NB_LANES] = {0}, ones[GROUP_MAX * NB_LANES],
                         h1[GROUP_MAX * NB_LANES] = {0};
    const float *h = h_at(u, t->first, t->first);
    vf s[N_SUMS];
    for (unsigned i = 0; i < N_SUMS; i++)
        s[i] = f_zero();
    for (uint32_t k = 0; k < t->n; k++)
        put_lanes(ones, k, f_set1(1));
    accumulate(hv, t->n, h, u->factor->cols, t->v, t->n);
    if (u->shape->has_min)
        accumulate(h1, t->n, h, u->factor->cols, ones, t->n);
    for (uint32_t k = 0; k < t->n; k++) {
        vf v = lanes(t->v, k), g = lanes(t->g, k);
        s[VG] = f_fma(v, g, s[VG]);
        s[G1] = f_add(s[G1], g);
        s[VHV] = f_fma(v, lanes(hv, k), s[VHV]);
        s[VH1] = f_fma(v, lanes(h1, k), s[VH1]);
        s[H11] = f_add(s[H11], lanes(h1, k));
    }
    for (unsigned i = 0; i < N_SUMS; i++)
        f_store(ret[i], s[i]);
}

// The best scale, and minimum, for the trial's codes by least squares.
static void refit_trial(const struct nb_unit *u, struct trial *t)
{
    float s[N_SUMS][NB_LANES];
    sum_trial(u, t, s);
    for (unsigned i = 0; i < NB_LANES; i++) {
        float det = s[VHV][i] * s[H11][i] - s[VH1][i] * s[VH1][i];
        if (u->shape->has_min && det > 1e-6f * s[VHV][i] * s[H11][i]) {
            t->knobs.d[i] -= (s[VG][i] * s[H11][i] - s[G1][i] * s[VH1][i]) / det;
            t->knobs.m[i] -= (s[G1][i] * s[VHV][i] - s[VG][i] * s[VH1][i]) / det;
        } else if (s[VHV][i] > 0) {
            t->knobs.d[i] -= s[VG][i] / s[VHV][i];
        }
    }
}

// Lanes where `t` is better move over to `best`.
static void take_trial(struct trial *best, const struct trial *t)
{
    vmask better = below(f_load(t->error), f_load(best->error));
    f_store(best->knobs.d, f_select(better, f_load(t->knobs.d), f_load(best->knobs.d)));
    f_store(best->knobs.m, f_select(better, f_load(t->knobs.m), f_load(best->knobs.m)));
    for (unsigned i = 0; i < NB_LANES; i++)
        if (t->error[i] < best->error[i]) {
            best->knobs.a[i] = t->knobs.a[i];
            best->knobs.b[i] = t->knobs.b[i];
        }
    for (uint32_t k = 0; k < t->n; k++) {
        put_lanes(best->v, k, f_select(better, lanes(t->v, k), lanes(best->v, k)));
        put_lanes(best->q, k, f_select(better, lanes(t->q, k), lanes(best->q, k)));
        put_lanes(best->g, k, f_select(better, lanes(t->g, k), lanes(best->g, k)));
    }
    f_store(best->error, f_select(better, f_load(t->error), f_load(best->error)));
}

static void try_knobs(const struct nb_unit *u, const float *others, struct trial *best,
                      struct trial *t)
{
    store_knobs(u, t->first / u->shape->group, &t->knobs);
    round_group(u, others, t);
    take_trial(best, t);
    refit_trial(u, t);
    store_knobs(u, t->first / u->shape->group, &t->knobs);
    round_group(u, others, t);
    take_trial(best, t);
}

// What else a group's scale may be: factors of it where it is fp16, steps where it is an integer;
// of either sign where signs differ. The minimum moves so that the codes' middle stays.
static void try_scales(const struct nb_unit *u, const float *others, struct trial *best)
{
    static const float factors[] = {1,     0.86f, 0.92f, 0.96f,  1.04f,
                                    1.09f, 1.16f, -1,    -0.93f, -1.07f};
    static const float steps[] = {0, 1, -1, 2, -2};
    const struct nb_shape *s = u->shape;
    const float middle = 0.5f * s->high, *by = s->super ? steps : factors;
    unsigned n = s->super ? 5 : s->has_min ? 7 : 10;
    uint32_t block = best->first / s->block;
    const struct trial from = *best;
    for (unsigned i = 0; i < n; i++) {
        struct trial t = from;
        for (unsigned l = 0; l < NB_LANES; l++) {
            float d = from.knobs.d[l];
            float next =
                s->super ? d + by[i] * nb_f16_to_f32(u->scale[block * NB_LANES + l]) : d * by[i];
            t.knobs.d[l] = next;
            t.knobs.m[l] = s->has_min ? from.knobs.m[l] + (d - next) * middle : 0;
        }
        try_knobs(u, others, best, &t);
    }
}

// The group as the unit has it.
static void begin_trial(const struct nb_unit *u, uint32_t group, struct trial *t)
{
    const struct nb_shape *s = u->shape;
    size_t at = (size_t)group * NB_LANES, first = (size_t)group * s->group * NB_LANES;
    size_t bytes = s->group * NB_LANES * sizeof(float);
    t->first = group * s->group;
    t->n = s->group;
    memcpy(t->v, u->v + first, bytes);
    memcpy(t->q, u->q + first, bytes);
    memcpy(t->knobs.d, u->d + at, sizeof(t->knobs.d));
    memcpy(t->knobs.m, u->m + at, sizeof(t->knobs.m));
    for (unsigned i = 0; i < NB_LANES; i++) {
        t->knobs.a[i] = s->super ? u->sub[at + i] : u->scale[at + i];
        t->knobs.b[i] = s->super ? u->sub_min[at + i] : u->min[at + i];
    }
}

// The unit takes the group as the trial has it; g follows everywhere.
static void end_trial(struct nb_unit *u, uint32_t group, const struct trial *t)
{
    const struct nb_shape *s = u->shape;
    size_t at = (size_t)group * NB_LANES, first = (size_t)t->first * NB_LANES;
    size_t bytes = t->n * NB_LANES * sizeof(float);
    bool moved = false;
    for (uint32_t k = 0; k < t->n; k++) {
        vf move = f_sub(lanes(t->q, k), lanes(u->q, t->first + k));
        put_lanes(u->e, k, move);
        moved |= any(move);
    }
    memcpy(u->v + first, t->v, bytes);
    memcpy(u->q + first, t->q, bytes);
    memcpy(u->g + first, t->g, bytes);
    memcpy(u->d + at, t->knobs.d, sizeof(t->knobs.d));
    memcpy(u->m + at, t->knobs.m, sizeof(t->knobs.m));
    put_lanes(u->by, group, inverse_lanes(t->knobs.d));
    for (unsigned i = 0; i < NB_LANES; i++) {
        if (s->super) {
            u->sub[at + i] = (int16_t)t->knobs.a[i];
            u->sub_min[at + i] = (int16_t)t->knobs.b[i];
        } else {
            u->scale[at + i] = (uint16_t)t->knobs.a[i];
            u->min[at + i] = (uint16_t)t->knobs.b[i];
        }
    }
    if (moved)
        spread(u, t->first, t->n);
}

static void refine_group(struct nb_unit *u, uint32_t group)
{
    struct trial best;
    float others[GROUP_MAX * NB_LANES], back[GROUP_MAX * NB_LANES];
    begin_trial(u, group, &best);
    for (uint32_t k = 0; k < best.n; k++) {
        put_lanes(others, k, lanes(u->g, best.first + k));
        put_lanes(back, k, f_sub(lanes(u->w, best.first + k), lanes(u->q, best.first + k)));
    }
    accumulate(others, best.n, h_at(u, best.first, best.first), u->factor->cols, back, best.n);
    weigh_trial(u, others, &best);
    try_scales(u, others, &best);
    end_trial(u, group, &best);
}

// Both super-scales of a block, by least squares for all codes and integers: q = D a + M b with a =
// sub-scale * v and b = -sub-minimum.
struct super_fit {
    float a[NB_BLOCK_MAX * NB_LANES], b[NB_BLOCK_MAX * NB_LANES];
    float ha[NB_BLOCK_MAX * NB_LANES], hb[NB_BLOCK_MAX * NB_LANES];
    float d[NB_LANES], m[NB_LANES]; // as stored
};

static void solve_super(const struct nb_unit *u, uint32_t block, struct super_fit *f)
{
    const uint32_t n = u->shape->block, first = block * n;
    vf s[5] = {f_zero(), f_zero(), f_zero(), f_zero(), f_zero()};
    memset(f->ha, 0, sizeof(f->ha));
    memset(f->hb, 0, sizeof(f->hb));
    accumulate(f->ha, n, h_at(u, first, first), u->factor->cols, f->a, n);
    if (u->shape->has_min)
        accumulate(f->hb, n, h_at(u, first, first), u->factor->cols, f->b, n);
    for (uint32_t k = 0; k < n; k++) {
        vf a = lanes(f->a, k), b = lanes(f->b, k), g = lanes(u->g, first + k);
        s[0] = f_fma(a, g, s[0]);
        s[1] = f_fma(b, g, s[1]);
        s[2] = f_fma(a, lanes(f->ha, k), s[2]);
        s[3] = f_fma(a, lanes(f->hb, k), s[3]);
        s[4] = f_fma(b, lanes(f->hb, k), s[4]);
    }
    float sum[5][NB_LANES];
    for (unsigned i = 0; i < 5; i++)
        f_store(sum[i], s[i]);
    for (unsigned i = 0; i < NB_LANES; i++) {
        float ag = sum[0][i], bg = sum[1][i], aa = sum[2][i], ab = sum[3][i], bb = sum[4][i];
        float det = aa * bb - ab * ab;
        if (det > 1e-6f * aa * bb) {
            f->d[i] -= (ag * bb - bg * ab) / det;
            f->m[i] -= (bg * aa - ag * ab) / det;
        } else if (aa > 0) {
            f->d[i] -= ag / aa;
        }
        f->m[i] = f->m[i] > 0 ? f->m[i] : 0;
        f->d[i] = nb_f16_to_f32((uint16_t)clamp_half(f->d[i]));
        f->m[i] = nb_f16_to_f32((uint16_t)clamp_half(f->m[i]));
    }
}

static void set_super(struct nb_unit *u, uint32_t block, unsigned lane, float d, float m)
{
    const struct nb_shape *s = u->shape;
    u->scale[block * NB_LANES + lane] = nb_f32_to_f16(d);
    u->min[block * NB_LANES + lane] = s->has_min ? nb_f32_to_f16(m) : 0;
    for (uint32_t g = block * s->groups; g < (block + 1) * s->groups; g++) {
        size_t at = (size_t)g * NB_LANES + lane;
        u->d[at] = d * (float)u->sub[at];
        u->m[at] = s->has_min ? -(m * (float)u->sub_min[at]) : 0;
        u->by[at] = inverse(u->d[at]);
    }
}

// The lanes of a block whose error falls take the new super-scales; e gets the moves.
static void take_super(struct nb_unit *u, uint32_t block, struct super_fit *f)
{
    const struct nb_shape *s = u->shape;
    const uint32_t n = s->block, first = block * n;
    vf d = f_load(f->d), m = f_load(f->m), change = f_zero();
    for (uint32_t k = 0; k < n; k++) {
        vf sub = lanes(f->hb, k), q = f_mul(lanes(u->v, first + k), f_mul(d, sub));
        q = f_add(q, f_mul(m, lanes(f->b, k)));
        put_lanes(f->a, k, q);
        put_lanes(u->e, k, f_sub(q, lanes(u->q, first + k)));
    }
    memset(f->ha, 0, sizeof(f->ha));
    accumulate(f->ha, n, h_at(u, first, first), u->factor->cols, u->e, n);
    for (uint32_t k = 0; k < n; k++) {
        vf g = lanes(u->g, first + k);
        change = f_fma(lanes(u->e, k), f_add(f_add(g, g), lanes(f->ha, k)), change);
    }
    vmask better = m_sign(change);
    for (uint32_t k = 0; k < n; k++) {
        vf g = lanes(u->g, first + k);
        put_lanes(u->q, first + k, f_select(better, lanes(f->a, k), lanes(u->q, first + k)));
        put_lanes(u->g, first + k, f_select(better, f_add(g, lanes(f->ha, k)), g));
        put_lanes(u->e, k, f_select(better, lanes(u->e, k), f_zero()));
    }
    float gain[NB_LANES];
    f_store(gain, change);
    for (unsigned i = 0; i < NB_LANES; i++)
        if (signbit(gain[i]))
            set_super(u, block, i, f->d[i], f->m[i]);
    spread(u, first, n);
}

static void refine_super(struct nb_unit *u, uint32_t block)
{
    const struct nb_shape *s = u->shape;
    struct super_fit f;
    for (unsigned i = 0; i < NB_LANES; i++) {
        f.d[i] = nb_f16_to_f32(u->scale[block * NB_LANES + i]);
        f.m[i] = s->has_min ? nb_f16_to_f32(u->min[block * NB_LANES + i]) : 0;
    }
    float sub[NB_BLOCK_MAX * NB_LANES] = {0};
    for (uint32_t k = 0; k < s->block; k++)
        for (unsigned i = 0; i < NB_LANES; i++) {
            size_t at = k * NB_LANES + i;
            size_t group = (size_t)(block * s->groups + k / s->group) * NB_LANES + i;
            sub[at] = (float)u->sub[group];
            f.a[at] = sub[at] * u->v[(size_t)block * s->block * NB_LANES + at];
            f.b[at] = -(float)u->sub_min[group];
        }
    solve_super(u, block, &f);
    memcpy(f.hb, sub, sizeof(f.hb));
    take_super(u, block, &f);
}

static void refine(struct nb_unit *u)
{
    const struct nb_shape *s = u->shape;
    uint32_t blocks = u->factor->cols / s->block;
    for (uint32_t b = 0; b < blocks; b++) {
        for (uint32_t g = 0; g < s->groups; g++)
            refine_group(u, b * s->groups + g);
        if (s->super)
            refine_super(u, b);
    }
    descend(u);
    descend(u);
}
