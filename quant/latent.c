// A matrix under training: its memory, its start, its bytes. The arithmetic in bulk is
// latent_tmpl.h's.
#include "quant/latent.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "quant/encode.h"
#include "quant/fit.h"

#define UNIT_WEIGHTS 16384 // of a thread's unit of work, about

// --- Units of work

struct work {
    void (*unit)(struct work *w, size_t first, size_t n);
    const struct nb_latent *l;
    struct nb_latent *begun; // the same, while it is created
    const uint8_t *encoded;
    const float *weights; // or the gradient
    const struct nb_descent *how;
    void *ret;
    atomic_size_t next;
    atomic_int failure;
};

static void run_units(void *arg, uint32_t thread)
{
    struct work *w = arg;
    const size_t n = UNIT_WEIGHTS / w->l->shape.block, blocks = w->l->blocks;
    for (size_t first; (first = atomic_fetch_add(&w->next, n)) < blocks;)
        w->unit(w, first, blocks - first < n ? blocks - first : n);
}

// --- The start

// The cell of v: what is nearer to it than to another code. The outer ones are as wide outwards.
static void cell_of(const struct nb_shape *s, float v, float *ret_least, float *ret_most)
{
    const float half = nb_shape_gap(s) / 2;
    const uint8_t code = nb_shape_code(s, v);
    *ret_least = v - (v > s->low && s->table ? (v - nb_shape_value(s, code - 1)) / 2 : half);
    *ret_most = v + (v < s->high && s->table ? (nb_shape_value(s, code + 1) - v) / 2 : half);
}

// Where a weight lies in the cell of its code v. One outside (error feedback wanted it elsewhere)
// is mirrored at the edge: the farther off, the deeper in, so that such codes do not all flip
// back at once. Beyond the last code there is none to flip to.
static float place(const struct nb_shape *s, float v, float u)
{
    float least, most;
    cell_of(s, v, &least, &most);
    if (u > most)
        u = v < s->high ? fmaxf(2 * most - u, v) : most;
    if (u < least)
        u = v > s->low ? fminf(2 * least - u, v) : least;
    // The edge itself may be the next code's.
    const float inside = (most - least) * 1e-3f;
    return fminf(fmaxf(u, least + inside), most - inside);
}

static float start_of(const struct nb_shape *s, uint8_t code, float weight, float ws, float wm)
{
    const float v = fmaxf(nb_shape_value(s, code), s->low);
    return fabsf(ws) > 1e-30f ? place(s, v, (weight - wm) / ws) : v;
}

static void start_group(struct nb_latent *l, size_t block, uint32_t g, const struct nb_block *b,
                        const float *weights)
{
    const struct nb_shape *s = &l->shape;
    const size_t group = block * s->groups + g;
    float ws = l->scale.stored[block], wm = s->has_min ? l->min.stored[block] : 0;
    int sub, sub_min;
    nb_block_sub(s->layout->sub, b->sub, g, &sub, &sub_min);
    if (s->super) {
        l->sub[group] = (float)sub;
        l->sub_min[group] = (float)sub_min;
        ws *= (float)sub;
        wm = -(wm * (float)sub_min);
    }
    for (uint32_t k = g * s->group; k < (g + 1) * s->group; k++)
        l->code.x[block * s->block + k] = start_of(s, b->code[k], weights[k], ws, wm);
}

static void start_scale(struct nb_scales *s, size_t block, uint16_t half)
{
    s->moving.x[block] = s->stored[block] = nb_f16_to_f32(half);
    s->unit[block] = fabsf(s->stored[block]);
}

// A minimum of a block without sub-scales moves by what its scale moves the outer codes.
static void start_block(struct nb_latent *l, size_t block, const uint8_t *encoded,
                        const float *weights)
{
    const struct nb_shape *s = &l->shape;
    struct nb_block b;
    memset(&b, 0, sizeof(b));
    s->codec->split(encoded + block * s->bytes, &b);
    start_scale(&l->scale, block, b.scale);
    if (s->has_min)
        start_scale(&l->min, block, b.min);
    if (s->has_min && !s->super)
        l->min.unit[block] = l->scale.unit[block] * (s->high - s->low) / 2;
    for (uint32_t g = 0; g < s->groups; g++)
        start_group(l, block, g, &b, weights + block * s->block);
}

static bool is_finite(const struct nb_latent *l, size_t block, const float *weights)
{
    return isfinite(l->scale.stored[block]) &&
           (!l->shape.has_min || isfinite(l->min.stored[block])) &&
           nb_find_not_finite(weights + block * l->shape.block, l->shape.block) == l->shape.block;
}

static void start_unit(struct work *w, size_t first, size_t n)
{
    for (size_t b = first; b < first + n; b++) {
        start_block(w->begun, b, w->encoded, w->weights);
        if (!is_finite(w->l, b, w->weights))
            atomic_store(&w->failure, -EDOM);
    }
}

// --- Memory

// Lays arrays of floats out one behind the other; without memory it only counts.
struct layout {
    float *memory;
    size_t at;
};

static float *take(struct layout *a, size_t n)
{
    float *p = a->memory ? a->memory + a->at : NULL;
    a->at += (n + 15) / 16 * 16;
    return p;
}

static void take_moving(struct layout *a, size_t n, struct nb_moving *ret)
{
    ret->x = take(a, n);
    ret->first = take(a, n);
    ret->second = take(a, n);
}

static void take_scales(struct layout *a, size_t n, struct nb_scales *ret)
{
    take_moving(a, n, &ret->moving);
    ret->stored = take(a, n);
}

static size_t lay_out(struct nb_latent *l, float *memory) // NOLINT(*non-const-parameter)
{
    struct layout a = {memory, 0};
    const struct nb_shape *s = &l->shape;
    take_moving(&a, l->blocks * s->block, &l->code);
    take_scales(&a, l->blocks, &l->scale);
    if (s->has_min)
        take_scales(&a, l->blocks, &l->min);
    l->state_floats = a.at;
    l->scale.unit = take(&a, l->blocks);
    l->min.unit = s->has_min ? take(&a, l->blocks) : NULL;
    l->sub = s->super ? take(&a, l->blocks * s->groups) : NULL;
    l->sub_min = s->super ? take(&a, l->blocks * s->groups) : NULL;
    return a.at;
}

static int set_shape(struct nb_latent *l, uint32_t type, uint64_t rows, uint32_t cols)
{
    int rc = nb_shape_init(&l->shape, type);
    if (rc < 0)
        return rc;
    if (rows == 0 || cols == 0 || cols % l->shape.block)
        return -EINVAL;
    l->blocks = rows * (cols / l->shape.block);
    return 0;
}

uint64_t nb_latent_bytes(uint32_t type, uint64_t rows, uint32_t cols)
{
    struct nb_latent l = {0};
    if (set_shape(&l, type, rows, cols) < 0)
        return 0;
    return lay_out(&l, NULL) * sizeof(float) + l.blocks * l.shape.bytes;
}

static int reserve(struct nb_latent *l)
{
    const size_t floats = lay_out(l, NULL);
    l->memory = aligned_alloc(64, floats * sizeof(float));
    l->encoded = malloc(l->blocks * l->shape.bytes);
    if (!l->memory || !l->encoded)
        return -ENOMEM;
    lay_out(l, l->memory);
    return 0;
}

static void start(struct nb_latent *l, struct nb_team *team, struct work *w)
{
    memcpy(l->encoded, w->encoded, l->blocks * l->shape.bytes);
    memset(l->memory, 0, l->state_floats * sizeof(float));
    nb_team_run(team, run_units, w);
}

int nb_latent_create(struct nb_team *team, uint32_t type, uint64_t rows, uint32_t cols,
                     const void *encoded, const float *weights, struct nb_latent **ret)
{
    struct nb_latent *l = calloc(1, sizeof(*l));
    if (!l)
        return -ENOMEM;
    struct work w = {
        .unit = start_unit, .l = l, .begun = l, .encoded = encoded, .weights = weights};
    l->loops = nb_fit_best()->latent;
    int rc = set_shape(l, type, rows, cols);
    if (rc == 0)
        rc = reserve(l);
    if (rc == 0) {
        start(l, team, &w);
        rc = atomic_load(&w.failure);
    }
    if (rc < 0)
        nb_latent_destroy(l);
    else
        *ret = l;
    return rc;
}

void nb_latent_destroy(struct nb_latent *l)
{
    if (!l)
        return;
    free(l->memory);
    free(l->encoded);
    free(l);
}

float nb_latent_gap(const struct nb_latent *l)
{
    const size_t groups = l->shape.groups;
    double sum = 0;
    for (size_t i = 0; i < l->blocks * groups; i++)
        sum += fabs((double)l->scale.unit[i / groups] * (double)(l->sub ? l->sub[i] : 1));
    return (float)(sum / (double)(l->blocks * groups)) * nb_shape_gap(&l->shape);
}

float *nb_latent_state(const struct nb_latent *l, size_t *ret_floats)
{
    *ret_floats = l->state_floats;
    return l->memory;
}

// --- What is done with it

static void decode_unit(struct work *w, size_t first, size_t n)
{
    w->l->loops->decode(w->l, first, n, (float *)w->ret + first * w->l->shape.block);
}

void nb_latent_decode(const struct nb_latent *l, struct nb_team *team,
                      float *ret) // NOLINT(*non-const-parameter)
{
    struct work w = {.unit = decode_unit, .l = l, .ret = ret};
    nb_team_run(team, run_units, &w);
}

static void descend_unit(struct work *w, size_t first, size_t n)
{
    w->l->loops->descend(w->l, first, n, w->weights + first * w->l->shape.block, w->how);
}

void nb_latent_descend(struct nb_latent *l, struct nb_team *team, const float *gradient,
                       const struct nb_descent *how)
{
    struct work w = {.unit = descend_unit, .l = l, .weights = gradient, .how = how};
    nb_team_run(team, run_units, &w);
}

static void clear_moments(const struct nb_moving *p, size_t n)
{
    memset(p->first, 0, n * sizeof(*p->first));
    memset(p->second, 0, n * sizeof(*p->second));
}

void nb_latent_settle(struct nb_latent *l)
{
    clear_moments(&l->code, l->blocks * l->shape.block);
    clear_moments(&l->scale.moving, l->blocks);
    if (l->shape.has_min)
        clear_moments(&l->min.moving, l->blocks);
}

static void encode_unit(struct work *w, size_t first, size_t n)
{
    const struct nb_shape *s = &w->l->shape;
    float v[NB_BLOCK_MAX];
    struct nb_block b;
    for (size_t i = first; i < first + n; i++) {
        memset(&b, 0, sizeof(b));
        s->codec->split(w->l->encoded + i * s->bytes, &b);
        b.scale = nb_f32_to_f16(w->l->scale.stored[i]);
        if (s->has_min)
            b.min = nb_f32_to_f16(w->l->min.stored[i]);
        w->l->loops->codes(w->l, i, v);
        for (uint32_t k = 0; k < s->block; k++)
            b.code[k] = nb_shape_code(s, v[k]);
        s->codec->join(&b, (uint8_t *)w->ret + i * s->bytes);
    }
}

void nb_latent_encode(const struct nb_latent *l, struct nb_team *team, void *ret)
{
    struct work w = {.unit = encode_unit, .l = l, .ret = ret};
    nb_team_run(team, run_units, &w);
}
