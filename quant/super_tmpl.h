// Super-blocks: an fp16 scale (and minimum) over integer sub-scales (and sub-minima) of groups. A
// template, see group_tmpl.h.
//
// The search: every group's free line; then, for several super-scales, the integers that come
// nearest, and from there the best neighbours by their own error under what is stored; then least
// squares of both super-scales in turns with all groups' neighbours, until nothing improves.
#pragma once

#include "quant/simple_tmpl.h"

#define GROUPS_MAX 16
#define CLIMBS     4

struct super {
    const struct span *block;
    uint16_t d, m;                        // fp16
    int sub[GROUPS_MAX], min[GROUPS_MAX]; // of each group
    float error[GROUPS_MAX];
    double sum;
};

static inline struct line line_of(const struct super *p, unsigned g)
{
    return (struct line){nb_f16_to_f32(p->d) * (float)p->sub[g],
                         -(nb_f16_to_f32(p->m) * (float)p->min[g])};
}

static inline int within(float v, int low, int high)
{
    return v >= (float)high ? high : v > (float)low ? (int)lrintf(v) : low;
}

// The integers that come nearest to each group's line.
static inline void place_groups(struct super *p, const struct nb_shape *shape,
                                const struct line *lines)
{
    float id = inverse(nb_f16_to_f32(p->d)), im = inverse(nb_f16_to_f32(p->m));
    for (unsigned g = 0; g < shape->groups; g++) {
        p->sub[g] = within(lines[g].d * id, shape->sub_low, shape->sub_high);
        p->min[g] = shape->has_min ? within(-lines[g].m * im, 0, shape->min_high) : 0;
    }
}

static inline void measure(struct super *p)
{
    p->sum = 0;
    for (unsigned g = 0; g < p->block->shape->groups; g++) {
        struct span s = group_of(p->block, g);
        struct line l = line_of(p, g);
        p->error[g] = error_of(&s, l.d, l.m);
        p->sum += (double)p->error[g];
    }
}

static inline bool try_group(struct super *p, const struct span *s, unsigned g, int sub, int min)
{
    const struct nb_shape *shape = s->shape;
    if (sub < shape->sub_low || sub > shape->sub_high || min < 0 || min > shape->min_high)
        return false;
    float error =
        error_of(s, nb_f16_to_f32(p->d) * (float)sub, -(nb_f16_to_f32(p->m) * (float)min));
    if (!(error < p->error[g]))
        return false;
    p->sub[g] = sub;
    p->min[g] = min;
    p->error[g] = error;
    return true;
}

// To the best neighbour of one group, until none is better. A larger scale with a larger minimum
// keeps the middle of the group where it is; a scale of the other sign is no neighbour, and tried
// once.
static inline void climb_group(struct super *p, unsigned g)
{
    static const int8_t moves[][2] = {{1, 0},  {-1, 0}, {2, 0},   {-2, 0}, {0, 1},
                                      {0, -1}, {1, 1},  {-1, -1}, {1, 2},  {-1, -2}};
    struct span s = group_of(p->block, g);
    unsigned n = s.shape->has_min ? 10 : 4;
    if (s.shape->sub_low < 0)
        try_group(p, &s, g, -p->sub[g], 0);
    for (bool better = true; better;) {
        int sub = p->sub[g], min = p->min[g];
        better = false;
        for (unsigned i = 0; i < n; i++)
            better |= try_group(p, &s, g, sub + moves[i][0], min + moves[i][1]);
    }
}

static inline void climb(struct super *p)
{
    measure(p);
    p->sum = 0;
    for (unsigned g = 0; g < p->block->shape->groups; g++) {
        climb_group(p, g);
        p->sum += (double)p->error[g];
    }
}

// fp16, and the least that is not zero where it would vanish.
static inline uint16_t half_of(float v)
{
    uint16_t h = nb_f32_to_f16(v);
    return v != 0 && !(h & 0x7fff) ? h | 1 : h;
}

// Of a block's lines, by magnitude: the rank-th largest scale with its sign, and the rank-th
// largest -minimum.
struct ends {
    float d, m;
};

static inline float ranked(const float *v, unsigned n, unsigned rank)
{
    unsigned left = 0;
    bool taken[GROUPS_MAX] = {false};
    for (unsigned r = 0; r <= rank; r++) {
        for (left = 0; taken[left]; left++)
            ;
        for (unsigned i = left + 1; i < n; i++)
            if (!taken[i] && fabsf(v[i]) > fabsf(v[left]))
                left = i;
        taken[left] = true;
    }
    return v[left];
}

static inline struct ends ends_of(const struct nb_shape *shape, const struct line *lines,
                                  unsigned rank)
{
    float d[GROUPS_MAX] = {0}, m[GROUPS_MAX] = {0};
    for (unsigned g = 0; g < shape->groups; g++) {
        d[g] = lines[g].d;
        m[g] = lines[g].m < 0 ? -lines[g].m : 0;
    }
    return (struct ends){ranked(d, shape->groups, rank), ranked(m, shape->groups, rank)};
}

static inline void span_groups(const struct nb_shape *shape, const float *x, struct line *ret)
{
    for (unsigned g = 0; g < shape->groups; g++)
        ret[g] = span_of(shape, x + g * shape->group);
}

// Signed sub-scales reach one further below zero.
static inline float sub_end(const struct nb_shape *shape)
{
    return (float)(shape->sub_low < 0 ? shape->sub_low : shape->sub_high);
}

static inline void start_reference(struct super *p, const struct nb_shape *shape, const float *x)
{
    struct line lines[GROUPS_MAX];
    span_groups(shape, x, lines);
    struct ends e = ends_of(shape, lines, 0);
    p->d = nb_f32_to_f16(e.d / sub_end(shape));
    p->m = shape->has_min ? nb_f32_to_f16(e.m / (float)shape->min_high) : 0;
    place_groups(p, shape, lines);
}

static inline void put_super(const struct super *p, const struct nb_shape *shape, const float *x,
                             struct nb_block *ret)
{
    ret->scale = p->d;
    ret->min = p->m;
    for (unsigned g = 0; g < shape->groups; g++) {
        struct line l = line_of(p, g);
        nb_block_set_sub(shape->layout->sub, ret->sub, g, p->sub[g], p->min[g]);
        put_codes(shape, x + g * shape->group, l.d, l.m, ret->code + g * shape->group);
    }
}

static inline void reference_super(const struct nb_shape *shape, const float *x,
                                   struct nb_block *ret)
{
    struct super p;
    start_reference(&p, shape, x);
    put_super(&p, shape, x, ret);
}

static inline void take_better(struct super *best, struct super *p)
{
    if (is_finite_half(p->d) && is_finite_half(p->m) && p->sum < best->sum)
        *best = *p;
}

// Least squares of both super-scales for all codes and integers; false when there is nothing to
// solve.
static inline bool refit_super(const struct super *from, struct super *p)
{
    const struct nb_shape *shape = from->block->shape;
    double ss = 0, sm = 0, mm = 0, sx = 0, mx = 0;
    for (unsigned g = 0; g < shape->groups; g++) {
        struct span s = group_of(from->block, g);
        struct line l = line_of(from, g);
        struct sums f = sums_of(&s, l.m, inverse(l.d));
        struct moments t = moments_of(&s, l.m);
        double sub = from->sub[g], min = from->min[g], base = (double)l.m;
        ss += sub * sub * (double)f.vv;
        sm += sub * min * (double)f.v;
        mm += min * min * (double)t.w;
        sx += sub * ((double)f.vy + base * (double)f.v);
        mx += min * ((double)t.y + base * (double)t.w);
    }
    // x is about d (sub v) - m min.
    double det = ss * mm - sm * sm, d = 0, m = 0;
    if (det > 1e-12 * ss * mm && det > 0) {
        d = (sx * mm - mx * sm) / det;
        m = -(mx * ss - sx * sm) / det;
    }
    if (!(m > 0) && ss > 0) {
        m = 0;
        d = sx / ss;
    }
    *p = *from;
    p->d = half_of((float)d);
    p->m = shape->has_min ? half_of((float)m) : 0;
    return d != 0;
}

static inline bool improve_super(struct super *best)
{
    struct super p;
    double before = best->sum;
    if (refit_super(best, &p)) {
        climb(&p);
        take_better(best, &p);
    }
    if (best->sum < before)
        return true;
    for (int i = -1; i <= 1; i += 2) {
        p = *best;
        p.d = (uint16_t)(p.d + i);
        climb(&p);
        take_better(best, &p);
    }
    return best->sum < before;
}

// The best starts so far, in order; only these climb.
struct starts {
    struct super best[CLIMBS];
};

static inline void keep(struct starts *starts, const struct super *p)
{
    struct super moving = *p;
    if (!is_finite_half(p->d) || !is_finite_half(p->m))
        return;
    for (unsigned i = 0; i < CLIMBS; i++)
        if (moving.sum < starts->best[i].sum) {
            struct super worse = starts->best[i];
            starts->best[i] = moving;
            moving = worse;
        }
}

// Two lines for each group: it takes the one that is better as stored.
struct lines {
    struct line first[GROUPS_MAX], second[GROUPS_MAX];
};

static inline void start_with(struct starts *starts, const struct span *block,
                              const struct lines *lines, float d, float m)
{
    const struct nb_shape *shape = block->shape;
    struct super p = {.block = block, .d = half_of(d), .m = half_of(m)}, other = p;
    place_groups(&p, shape, lines->first);
    place_groups(&other, shape, lines->second);
    measure(&p);
    for (unsigned g = 0; g < shape->groups; g++) {
        struct span s = group_of(block, g);
        float before = p.error[g];
        if (try_group(&p, &s, g, other.sub[g], other.min[g]))
            p.sum += (double)p.error[g] - (double)before;
    }
    keep(starts, &p);
}

static inline void start_at(struct starts *starts, const struct span *block,
                            const struct lines *lines, struct ends e, float part)
{
    const struct nb_shape *shape = block->shape;
    start_with(starts, block, lines, e.d / (sub_end(shape) * part),
               shape->has_min ? e.m / ((float)shape->min_high * part) : 0);
}

// The scale that fits all groups' scales (or minima) best by least squares, each with the sum of
// its weights' factors; starts as in fit_symmetric.
static inline float common_scale(const float *v, const float *w, unsigned n, int low, int high)
{
    float extreme = ranked(v, n, 0), best = 0, scale = 0;
    for (int k = -TENTHS; fabsf(extreme) > LEAST && k <= TENTHS; k++) {
        float id = ((float)(low < 0 ? low : high) + 0.1f * (float)k) / extreme, vl = 0, ll = 0;
        for (unsigned g = 0; g < n; g++) {
            float l = (float)within(v[g] * id, low, high);
            vl += w[g] * v[g] * l;
            ll += w[g] * l * l;
        }
        if (ll > 0 && vl * vl > best * ll) {
            best = vl * vl / ll;
            scale = vl / ll;
        }
    }
    return scale;
}

static inline void start_common(struct starts *starts, const struct span *block,
                                const struct lines *lines, const struct line *own)
{
    const struct nb_shape *shape = block->shape;
    float d[GROUPS_MAX] = {0}, m[GROUPS_MAX] = {0}, w[GROUPS_MAX] = {0};
    for (unsigned g = 0; g < shape->groups; g++) {
        struct span s = group_of(block, g);
        d[g] = own[g].d;
        m[g] = own[g].m < 0 ? -own[g].m : 0;
        w[g] = moments_of(&s, 0).w;
    }
    start_with(starts, block, lines,
               common_scale(d, w, shape->groups, shape->sub_low, shape->sub_high),
               shape->has_min ? common_scale(m, w, shape->groups, 0, shape->min_high) : 0);
}

// Super-scales that place the largest group's scale at the integers' end, short of it, or past it;
// and those that place a smaller group's there, where the larger ones matter less.
static inline void start_free(struct starts *starts, const struct span *block,
                              const struct lines *lines)
{
    static const float parts[] = {1,    31 / 32.0f, 30 / 32.0f, 29 / 32.0f, 0.88f,
                                  0.8f, 0.7f,       0.55f,      1.05f,      1.12f};
    struct ends e = ends_of(block->shape, lines->first, 0);
    for (unsigned i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        start_at(starts, block, lines, e, parts[i]);
    for (unsigned rank = 1; rank < block->shape->groups; rank *= 2)
        start_at(starts, block, lines, ends_of(block->shape, lines->first, rank), 1);
    start_common(starts, block, lines, lines->first);
    start_common(starts, block, lines, lines->second);
    e = ends_of(block->shape, lines->second, 0);
    for (unsigned i = 0; i < 5; i++)
        start_at(starts, block, lines, e, parts[i]);
}

// Every sub-scale there is for each group, or, where they are many, those that give its extreme
// weight one of the outer codes: far from the best so far, and the best there is where a group is
// one number.
static inline void reach_group(struct super *p, unsigned g, float id)
{
    const struct nb_shape *shape = p->block->shape;
    struct span s = group_of(p->block, g);
    float extreme = extreme_of(extent_of(s.x, s.n));
    for (int sub = shape->sub_low; shape->sub_high < 64 && sub <= shape->sub_high; sub++)
        try_group(p, &s, g, sub, p->min[g]);
    for (unsigned i = 0; shape->sub_high >= 64 && i < codes_of(shape); i++) {
        float v = value_of(shape, i);
        if (fabsf(v) > 0.45f * shape->high)
            try_group(p, &s, g, within(extreme / v * id, shape->sub_low, shape->sub_high), 0);
    }
}

static inline bool reach(struct super *p)
{
    float id = inverse(nb_f16_to_f32(p->d));
    double before = p->sum;
    p->sum = 0;
    for (unsigned g = 0; g < p->block->shape->groups; g++) {
        reach_group(p, g, id);
        p->sum += (double)p->error[g];
    }
    return p->sum < before;
}

// Out of a local optimum: every group's line under super-scales some per cent away.
static inline bool shake_super(struct super *best)
{
    static const float parts[][2] = {{1.03f, 1},  {0.97f, 1}, {1.09f, 1}, {0.92f, 1},
                                     {1, 1.05f},  {1, 0.95f}, {-1, 1},    {-1.04f, 1},
                                     {-0.96f, 1}, {1.2f, 1},  {0.83f, 1}};
    const struct nb_shape *shape = best->block->shape;
    struct line lines[GROUPS_MAX];
    double before = best->sum;
    for (unsigned g = 0; g < shape->groups; g++)
        lines[g] = line_of(best, g);
    const float d = nb_f16_to_f32(best->d), m = nb_f16_to_f32(best->m);
    for (unsigned i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (shape->has_min ? parts[i][0] < 0 : parts[i][1] != 1)
            continue;
        struct super p = *best;
        p.d = half_of(d * parts[i][0]);
        p.m = half_of(m * parts[i][1]);
        place_groups(&p, shape, lines);
        climb(&p);
        take_better(best, &p);
    }
    return best->sum < before;
}

static inline void start_all(struct starts *starts, const struct span *block)
{
    const struct nb_shape *shape = block->shape;
    struct super p = {.block = block};
    struct lines lines;
    measure(&p); // all zero
    for (unsigned i = 0; i < CLIMBS; i++)
        starts->best[i] = p;
    start_reference(&p, shape, block->x);
    measure(&p);
    keep(starts, &p);
    for (unsigned g = 0; g < shape->groups; g++) {
        struct span s = group_of(block, g);
        struct line two[2];
        fit_lines(&s, NULL, two);
        lines.first[g] = two[0];
        lines.second[g] = two[1];
    }
    start_free(starts, block, &lines);
}

static inline void search_super(const struct span *block, struct nb_block *ret)
{
    struct starts starts;
    start_all(&starts, block);
    for (unsigned i = 0; i < CLIMBS; i++)
        climb(&starts.best[i]);
    struct super best = starts.best[0];
    for (unsigned i = 1; i < CLIMBS; i++)
        take_better(&best, &starts.best[i]);
    for (unsigned i = 0; i < POLISHES; i++)
        if (!improve_super(&best) && !reach(&best) && !shake_super(&best))
            break;
    put_super(&best, block->shape, block->x, ret);
}
