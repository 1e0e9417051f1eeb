// The matrix product: prepares a row group's scales (and, for many tokens, its codes as a panel of
// bytes), then runs tiles of tokens over it. Float weights have their own tiles (float_tmpl.h).
#pragma once

#include <math.h>
#include <string.h>

#include "engine/cpu/float_tmpl.h"
#include "engine/cpu/result_tmpl.h"
#include "engine/cpu/tile_tmpl.h"

// A row group is fetched while the one before is multiplied, in the order of its bytes: any other
// order, or less, left the memory idle for half of the time. One that is larger than half a level-1
// cache goes to the level-2 cache.
#define NEAR 16384
#define FAR  65536

#define PANEL_FROM 9 // tokens from which expanding a row group pays

FORCED vf f_neg(vf x)
{
    return f_sub(f_set1(-0.0f), x);
}

// The first n <= 16 floats, zeros after them.
static inline vf f_load_n(const float *p, uint32_t n)
{
    float x[16] = {0};
    memcpy(x, p, n * sizeof(float));
    return f_load(x);
}

static inline void f_store_n(float *p, vf v, uint32_t n)
{
    float x[16];
    f_store(x, v);
    memcpy(p, x, n * sizeof(float));
}

typedef void tile_fn(const struct tile *t, float *out);
typedef void expand_fn(const struct tile *t, uint8_t *panel);

struct tiles {
    const struct format *format;
    tile_fn *run[2][4];    // [terms - 1][log2 of tokens]
    tile_fn *halves[2][4]; // the same, with scales as the matrix has them; may be missing
    expand_fn *expand;     // NULL for a panel
};

// Combinations too wide for the registers are empty and never chosen.
#define TILE(name, format, halves, tokens, terms)                                                  \
    static void name##_##tokens##_##terms(const struct tile *t, float *out)                        \
    {                                                                                              \
        if (tokens * terms <= max_columns(format))                                                 \
            run_tile(format, halves, tokens, terms, t, out);                                       \
    }
#define TILES(name, format, halves)                                                                \
    TILE(name, format, halves, 1, 1)                                                               \
    TILE(name, format, halves, 2, 1)                                                               \
    TILE(name, format, halves, 4, 1)                                                               \
    TILE(name, format, halves, 8, 1)                                                               \
    TILE(name, format, halves, 1, 2)                                                               \
    TILE(name, format, halves, 2, 2)                                                               \
    TILE(name, format, halves, 4, 2)                                                               \
    TILE(name, format, halves, 8, 2)
#define EXPAND(name)                                                                               \
    static void name##_expand(const struct tile *t, uint8_t *panel)                                \
    {                                                                                              \
        expand_panel(name, t, panel);                                                              \
    }
#define RUN(name)                                                                                  \
    {                                                                                              \
        {name##_1_1, name##_2_1, name##_4_1, name##_8_1},                                          \
        {                                                                                          \
            name##_1_2, name##_2_2, name##_4_2, name##_8_2                                         \
        }                                                                                          \
    }

// planes, bytes of a cell's low and high plane, largest code, group, looked up, panel
static const struct format CODES_8 = {NB_PLANES_8, 512, 0, 255, 32, false, false};
static const struct format CODES_4 = {NB_PLANES_4, 256, 0, 15, 32, false, false};
static const struct format CODES_4T = {NB_PLANES_4, 256, 0, 255, 32, true, false};
static const struct format CODES_41 = {NB_PLANES_4_1, 256, 64, 31, 32, false, false};
static const struct format CODES_42 = {NB_PLANES_4_2, 256, 128, 63, 16, false, false};
static const struct format CODES_2 = {NB_PLANES_2, 128, 0, 3, 32, false, false};
static const struct format CODES_2H = {NB_PLANES_2, 128, 0, 3, 16, false, false};
static const struct format CODES_21 = {NB_PLANES_2_1, 128, 64, 7, 16, false, false};

// Panels: one for each largest code and group, whatever the planes were.
static const struct format PANEL_15 = {NB_PLANES_8, 512, 0, 15, 32, false, true};
static const struct format PANEL_15H = {NB_PLANES_8, 512, 0, 15, 16, false, true};
static const struct format PANEL_31 = {NB_PLANES_8, 512, 0, 31, 32, false, true};
static const struct format PANEL_63H = {NB_PLANES_8, 512, 0, 63, 16, false, true};
static const struct format PANEL_255 = {
    NB_PLANES_8, DOT_SPLITS_BYTES ? 1024 : 512, 0, 255, 32, false, true};

#define DEFINE(name)                                                                               \
    TILES(name, name, false)                                                                       \
    EXPAND(name)
DEFINE(CODES_8)
DEFINE(CODES_4)
DEFINE(CODES_4T)
DEFINE(CODES_41)
DEFINE(CODES_42)
DEFINE(CODES_2)
DEFINE(CODES_2H)
DEFINE(CODES_21)
TILES(PANEL_15, PANEL_15, false)
TILES(PANEL_15H, PANEL_15H, false)
TILES(PANEL_31, PANEL_31, false)
TILES(PANEL_63H, PANEL_63H, false)
TILES(PANEL_255, PANEL_255, false)
// Formats of types whose blocks have one scale.
TILES(HALVES_8, CODES_8, true)
TILES(HALVES_4, CODES_4, true)
TILES(HALVES_4T, CODES_4T, true)
TILES(HALVES_41, CODES_41, true)

static const struct tiles direct_tiles[] = {
    {.format = &CODES_8, .run = RUN(CODES_8), .halves = RUN(HALVES_8), .expand = CODES_8_expand},
    {.format = &CODES_4, .run = RUN(CODES_4), .halves = RUN(HALVES_4), .expand = CODES_4_expand},
    {.format = &CODES_4T,
     .run = RUN(CODES_4T),
     .halves = RUN(HALVES_4T),
     .expand = CODES_4T_expand},
    {.format = &CODES_41,
     .run = RUN(CODES_41),
     .halves = RUN(HALVES_41),
     .expand = CODES_41_expand},
    {.format = &CODES_42, .run = RUN(CODES_42), .expand = CODES_42_expand},
    {.format = &CODES_2, .run = RUN(CODES_2), .expand = CODES_2_expand},
    {.format = &CODES_2H, .run = RUN(CODES_2H), .expand = CODES_2H_expand},
    {.format = &CODES_21, .run = RUN(CODES_21), .expand = CODES_21_expand},
};

static const struct tiles panel_tiles[] = {
    {.format = &PANEL_15, .run = RUN(PANEL_15)},   {.format = &PANEL_15H, .run = RUN(PANEL_15H)},
    {.format = &PANEL_31, .run = RUN(PANEL_31)},   {.format = &PANEL_63H, .run = RUN(PANEL_63H)},
    {.format = &PANEL_255, .run = RUN(PANEL_255)},
};

// The weights under one step of scales: 16, or 32 (a group of 64 is two of 32 with one scale).
static uint32_t scale_step(const struct nb_layout *l)
{
    return l->group == 16 ? 16 : 32;
}

static const struct tiles *tiles_of(const struct nb_layout *l)
{
    const struct tiles *t = direct_tiles;
    while (t->format->planes != (int)l->planes || t->format->group != (int)scale_step(l) ||
           t->format->table != (l->codebook == NB_CODEBOOK_IQ4))
        t++;
    return t;
}

static const struct tiles *panel_of(const struct tiles *direct)
{
    const struct tiles *t = panel_tiles;
    while (t->format->max < direct->format->max || t->format->group != direct->format->group)
        t++;
    return t;
}

// Whether each step has one scale, a half.
static bool has_plain_scales(const struct nb_layout *l)
{
    return l->sub == NB_SUB_NONE && l->scale_block == scale_step(l);
}

// What is taken off a code as unpack gives it: the tables of IQ4 hold value + 128.
static uint32_t code_offset(const struct nb_layout *l)
{
    return l->codebook == NB_CODEBOOK_IQ4 ? 128 : l->offset;
}

// Sub-scales and sub-minima of group g of a super-block, as floats.
static inline void sub_scales(enum nb_sub kind, const uint8_t *sub, uint32_t g, vf *scale, vf *min)
{
    vi x;
    *min = f_zero();
    switch (kind) {
    case NB_SUB_SM8:
        *scale = f_of_int(i_of_u8(sub + g * 16));
        *min = f_of_int(i_of_u8(sub + (8 + g) * 16));
        break;
    case NB_SUB_SM4:
        x = i_of_u8(sub + g * 16);
        *scale = f_of_int(i_and(x, i_set1(15)));
        *min = f_of_int(i_srl16(x, 4));
        break;
    case NB_SUB_S6:
        x = i_of_u8(sub + g % 8 * 16);
        x = i_and(g < 8 ? x : i_srl16(x, 4), i_set1(15));
        vi high = i_of_u8(sub + (8 + g % 4) * 16);
        for (uint32_t i = 0; i < g / 4; i++)
            high = i_srl16(high, 2);
        x = i_or(x, i_sll16(i_and(high, i_set1(3)), 4));
        *scale = f_of_int(i_sub(x, i_set1(32)));
        break;
    default:
        *scale = f_of_int(i_of_s8(sub + g * 16));
        break;
    }
}

// Effective scale and minimum of the 16 rows at step g of block b.
FORCED void scales_of_step(const struct nb_packed *w, const uint8_t *group, size_t b, uint32_t g,
                           vf *ws, vf *wm)
{
    const struct nb_layout *l = w->layout;
    if (l->sub == NB_SUB_F32) {
        *ws = f_load((const float *)(group + w->scale) + 16 * b);
        *wm = l->has_min ? f_load((const float *)(group + w->min) + 16 * b) : f_zero();
        return;
    }
    *ws = f_of_half((const uint16_t *)(group + w->scale) + 16 * b);
    *wm = l->has_min ? f_of_half((const uint16_t *)(group + w->min) + 16 * b) : f_zero();
    if (l->sub == NB_SUB_NONE)
        return;
    vf scale, min;
    sub_scales(l->sub, group + w->sub + b * l->sub_bytes * 16, g, &scale, &min);
    *ws = f_mul(*ws, scale);
    *wm = f_neg(f_mul(*wm, min));
}

// The same for a whole row group, [step][16].
static void load_scales(const struct nb_packed *w, const uint8_t *group, float *ws, float *wm)
{
    const struct nb_layout *l = w->layout;
    uint32_t blocks = w->cols / l->scale_block, steps = l->scale_block / scale_step(l);
    for (uint32_t b = 0; b < blocks; b++)
        for (uint32_t g = 0; g < steps; g++, ws += 16, wm += 16) {
            vf s, m;
            scales_of_step(w, group, b, g, &s, &m);
            f_store(ws, s);
            f_store(wm, m);
        }
}

// The tokens of the tile that starts where `left` tokens are left.
static uint32_t tile_log2(uint32_t left, uint32_t columns, uint32_t terms)
{
    uint32_t log2 = 0;
    while (log2 < 3 && 2u << log2 <= left && (2u << log2) * terms <= columns)
        log2++;
    return log2;
}

// Sums of the activations over steps [at, at + 16) of a token, `n` of them real.
FORCED vi step_sums(const int16_t *sums, uint32_t step, uint32_t n)
{
    int16_t last[32] = {0};
    if (n < 16) {
        memcpy(last, sums, n * (step / 16) * sizeof(*sums));
        sums = last;
    }
    return step == 32 ? i_add_pairs(i_load(sums)) : i_of_s16(sums);
}

// What run_tile needs to know of one token's activations: pairs of words for each step, `steps`
// rounded up to 16.
static void load_constants(const struct nb_packed *w, const struct nb_act *a, uint32_t t,
                           uint32_t *out)
{
    uint32_t step = scale_step(w->layout), steps = w->cols / step;
    size_t block = (size_t)t * (a->k / 32), half = (size_t)t * (a->k / 16);
    for (uint32_t i = 0; i < steps; i += 16, out += 32) {
        uint32_t n = steps - i < 16 ? steps - i : 16, blocks = step == 32 ? n : n / 2;
        size_t at = half + i * (step / 16);
        vi sum = step_sums(a->sum1 + at, step, n);
        vf s = f_load_n(a->s + block + i * step / 32, blocks), unused;
        if (step == 16)
            f_zip(s, s, &s, &unused);
        if (a->terms == 2) {
            sum = i_add(i_mul(sum, i_set1(254)), step_sums(a->sum2 + at, step, n));
            s = f_div(s, f_set1(254.0f));
        }
        vf other = w->layout->has_min ? f_mul(f_of_int(sum), s)
                                      : f_of_bits(i_mul(sum, i_set1((int)code_offset(w->layout))));
        vf pairs[2];
        f_zip(s, other, &pairs[0], &pairs[1]);
        f_store((float *)out, pairs[0]);
        f_store((float *)out + 16, pairs[1]);
    }
}

// Where a call keeps what it prepares: offsets in its scratch, and the bytes of all.
struct prepared {
    size_t wm, constants, panel, end;
    size_t stride; // words of a token's constants
};

static struct prepared prepare(const struct nb_packed *w, uint32_t n)
{
    size_t steps = w->cols / scale_step(w->layout), scales = steps * 16 * sizeof(float);
    struct prepared p = {.wm = scales, .constants = 2 * scales, .stride = (steps + 15) / 16 * 32};
    p.panel = p.constants + n * p.stride * sizeof(uint32_t);
    const struct format *panel = panel_of(tiles_of(w->layout))->format;
    p.end = p.panel + (n < PANEL_FROM ? 0 : w->cols / CELL * (size_t)panel->low);
    return p;
}

static size_t gemm_scratch(const struct nb_packed *w, uint32_t n)
{
    return nb_is_float(w) ? 0 : prepare(w, n).end;
}

// Where a row group lies, and the next, which is fetched meanwhile.
static struct tile tile_of_group(const struct nb_packed *w, const uint8_t *group,
                                 const struct prepared *p, void *scratch)
{
    struct tile tile = {.low = group,
                        .high = group + w->high,
                        .ws = scratch,
                        .wm = (const float *)((uint8_t *)scratch + p->wm),
                        .scales = (const uint16_t *)(group + w->scale),
                        .mins = (const uint16_t *)(group + w->min),
                        .stride = p->stride,
                        .cells = w->cols / CELL,
                        .far = w->stride > NEAR,
                        .has_min = w->layout->has_min};
    tile.prefetch = (uint32_t)(w->stride / tile.cells);
    tile.ahead = w->stride < FAR ? (uint32_t)w->stride : FAR;
    return tile;
}

static void gemm_quantized(const struct nb_packed *w, const struct nb_act *a, uint32_t g0,
                           uint32_t g1, const float *bias, bool accumulate, float *y, size_t ldy,
                           void *scratch)
{
    const struct tiles *direct = tiles_of(w->layout);
    const struct tiles *tiles = a->n < PANEL_FROM ? direct : panel_of(direct);
    const uint32_t columns = (uint32_t)max_columns(*tiles->format);
    // Scales that one tile alone will use are taken as they lie.
    const bool halves = a->n * a->terms <= columns && has_plain_scales(w->layout);
    struct prepared p = prepare(w, a->n);
    uint8_t *mem = scratch, *panel = mem + p.panel;
    uint32_t *constants = (uint32_t *)(mem + p.constants);
    for (uint32_t t = 0; t < a->n; t++)
        load_constants(w, a, t, constants + t * p.stride);
    for (uint32_t g = g0; g < g1; g++) {
        const uint8_t *group = w->data + g * w->stride;
        struct tile tile = tile_of_group(w, group, &p, scratch);
        if (!halves)
            load_scales(w, group, scratch, (float *)(mem + p.wm));
        if (tiles != direct) {
            direct->expand(&tile, panel);
            tile.low = panel;
            tile.prefetch = 0;
        }
        for (uint32_t t = 0, log2; t < a->n; t += 1u << log2) {
            float out[MAX_TOKENS * 16];
            log2 = tile_log2(a->n - t, columns, a->terms);
            for (uint32_t i = 0; i < 1u << log2; i++) {
                tile.q[i] = a->q1 + (size_t)(t + i) * a->k;
                tile.q[(1u << log2) * (a->terms - 1) + i] =
                    (a->terms == 2 ? a->q2 : a->q1) + (size_t)(t + i) * a->k;
            }
            tile.constants = constants + t * p.stride;
            (halves ? tiles->halves : tiles->run)[a->terms - 1][log2](&tile, out);
            for (uint32_t i = 0; i < 1u << log2; i++)
                store_rows(w, g * 16, bias, accumulate, out + 16 * i, y + (t + i) * ldy);
            tile.prefetch = 0; // from the second tile on, the row group is in cache
        }
    }
}

static void gemm(const struct nb_packed *w, const struct nb_act *a, uint32_t g0, uint32_t g1,
                 const float *bias, bool accumulate, float *y, size_t ldy, void *scratch)
{
    if (nb_is_float(w))
        gemm_float(w, a, g0, g1, bias, accumulate, y, ldy);
    else
        gemm_quantized(w, a, g0, g1, bias, accumulate, y, ldy, scratch);
}
