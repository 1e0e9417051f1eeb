// The matrix product of float weights: a tile is a row group of 16 rows by as many tokens as there
// are registers, so that a weight is read (and made a float) once for all of them.
#pragma once

#include "engine/cpu/result_tmpl.h"
#include "tensor/block.h"

// Sixteen weights at one k, as floats.
FORCED vf float_weights(int planes, const uint8_t *p, size_t k)
{
    if (planes == NB_PLANES_F32)
        return f_load((const float *)p + k * 16);
    const uint16_t *h = (const uint16_t *)p + k * 16;
    return planes == NB_PLANES_F16 ? f_of_half(h) : f_of_bits(i_sll32(i_of_u16(h), 16));
}

// Sixteen weights of NF4 at one k: a cell of 32 columns is four words of each row, whose low
// nibbles come first. Scales are [k / 64][16].
FORCED vf nf4_weights(const uint8_t *codes, const float *scales, size_t k)
{
    vi words = i_load(codes + (k / 32 * 4 + k % 16 / 4) * 64);
    vf w = f_lookup(nb_nf4_values, i_srl32(words, (int)(k % 4 * 8 + k % 32 / 16 * 4)));
    return f_mul(w, f_load(scales + k / 64 * 16));
}

// `steps` steps of k for all tokens: an address of a token's inputs serves so many.
FORCED void float_steps(int planes, int tokens, int steps, const uint8_t *group, const float *x,
                        size_t ldx, vf *acc)
{
    vf w[FLOAT_STEPS];
    UNROLL
    for (int i = 0; i < steps; i++)
        w[i] = float_weights(planes, group, (size_t)i);
    UNROLL
    for (int n = 0; n < tokens; n++)
        UNROLL
    for (int i = 0; i < steps; i++)
        acc[n] = f_fma(w[i], f_set1(x[(size_t)n * ldx + (size_t)i]), acc[n]);
}

// A row group and the tokens that meet it.
struct float_tile {
    const uint8_t *group;
    const float *scales;  // of NF4
    const uint8_t *ahead; // to fetch meanwhile: a share of the next row group,
    size_t share;         // of so many bytes for FLOAT_STEPS steps
    uint32_t cols;
    const float *x; // [tokens][ldx]
    size_t ldx;
};

FORCED void run_float_tile(int planes, int tokens, const struct float_tile *t, float *out)
{
    const size_t bytes = planes == NB_PLANES_F32 ? 64 : 32; // of a step
    const uint8_t *group = t->group, *ahead = t->ahead;
    const float *x = t->x;
    vf acc[FLOAT_TOKENS];
    UNROLL
    for (int n = 0; n < tokens; n++)
        acc[n] = f_zero();
    uint32_t left = t->cols;
    for (; left >= FLOAT_STEPS; left -= FLOAT_STEPS) {
        for (size_t at = 0; at < t->share; at += 64)
            __builtin_prefetch(ahead + at, 0, 2);
        float_steps(planes, tokens, FLOAT_STEPS, group, x, t->ldx, acc);
        ahead += t->share;
        group += FLOAT_STEPS * bytes;
        x += FLOAT_STEPS;
    }
    for (; left > 0; left--) {
        float_steps(planes, tokens, 1, group, x, t->ldx, acc);
        group += bytes;
        x++;
    }
    UNROLL
    for (int n = 0; n < tokens; n++)
        f_store(out + 16 * n, acc[n]);
}

// The same of NF4, a cell of codes after the other.
FORCED void run_nf4_tile(int tokens, const struct float_tile *t, float *out)
{
    const uint8_t *ahead = t->ahead, *words = t->group;
    const size_t share = t->share * 32 / FLOAT_STEPS;
    const float *x = t->x;
    vf acc[FLOAT_TOKENS];
    UNROLL
    for (int n = 0; n < tokens; n++)
        acc[n] = f_zero();
    for (uint32_t k = 0; k < t->cols; k += 32, words += 256, ahead += share) {
        const vf scale = f_load(t->scales + k / 64 * 16);
        for (size_t at = 0; at < share; at += 64)
            __builtin_prefetch(ahead + at, 0, 2);
        for (uint32_t j = 0; j < 8; j++, x += 4) {
            vi codes = i_srl32(i_load(words + j % 4 * 64), (int)(j / 4 * 4));
            UNROLL
            for (int i = 0; i < 4; i++) {
                vf w = f_mul(f_lookup(nb_nf4_values, i_srl32(codes, 8 * i)), scale);
                UNROLL
                for (int n = 0; n < tokens; n++)
                    acc[n] = f_fma(w, f_set1(x[(size_t)n * t->ldx + (size_t)i]), acc[n]);
            }
        }
    }
    UNROLL
    for (int n = 0; n < tokens; n++)
        f_store(out + 16 * n, acc[n]);
}

typedef void float_fn(const struct float_tile *t, float *out);

// Tiles too wide for the registers are empty and never chosen.
#define FLOAT_TILE(planes, tokens)                                                                 \
    static void planes##_##tokens(const struct float_tile *t, float *out)                          \
    {                                                                                              \
        if (tokens <= FLOAT_TOKENS)                                                                \
            run_float_tile(planes, tokens, t, out);                                                \
    }
#define NF4_TILE(planes, tokens)                                                                   \
    static void planes##_##tokens(const struct float_tile *t, float *out)                          \
    {                                                                                              \
        if (tokens <= FLOAT_TOKENS)                                                                \
            run_nf4_tile(tokens, t, out);                                                          \
    }
#define FLOAT_NAME(planes, tokens) planes##_##tokens,
#define FLOAT_ALL(f, planes)                                                                       \
    f(planes, 1) f(planes, 2) f(planes, 3) f(planes, 4) f(planes, 5) f(planes, 6) f(planes, 7)     \
        f(planes, 8) f(planes, 9) f(planes, 10) f(planes, 11) f(planes, 12) f(planes, 13)          \
            f(planes, 14) f(planes, 15) f(planes, 16) f(planes, 17) f(planes, 18) f(planes, 19)    \
                f(planes, 20) f(planes, 21) f(planes, 22) f(planes, 23) f(planes, 24)

FLOAT_ALL(FLOAT_TILE, NB_PLANES_F32)
FLOAT_ALL(FLOAT_TILE, NB_PLANES_F16)
FLOAT_ALL(FLOAT_TILE, NB_PLANES_BF16)
FLOAT_ALL(NF4_TILE, NB_CODEBOOK_NF4)

static float_fn *const float_f32[] = {FLOAT_ALL(FLOAT_NAME, NB_PLANES_F32)};
static float_fn *const float_f16[] = {FLOAT_ALL(FLOAT_NAME, NB_PLANES_F16)};
static float_fn *const float_bf16[] = {FLOAT_ALL(FLOAT_NAME, NB_PLANES_BF16)};
static float_fn *const float_nf4[] = {FLOAT_ALL(FLOAT_NAME, NB_CODEBOOK_NF4)};

static float_fn *const *float_tiles(const struct nb_layout *layout)
{
    return layout->codebook == NB_CODEBOOK_NF4 ? float_nf4
           : layout->planes == NB_PLANES_F32   ? float_f32
           : layout->planes == NB_PLANES_F16   ? float_f16
                                               : float_bf16;
}

static uint32_t float_passes(uint32_t tokens)
{
    return (tokens + FLOAT_TOKENS - 1) / FLOAT_TOKENS;
}

// The tokens go in tiles of nearly the same number. Each fetches its share of the next row group,
// so that memory is read all the time, not in the first tile alone.
static void gemm_float(const struct nb_packed *w, const struct nb_act *a, uint32_t g0, uint32_t g1,
                       const float *bias, bool accumulate, float *y, size_t ldy)
{
    float_fn *const *tiles = float_tiles(w->layout);
    const size_t share = w->stride / float_passes(a->n);
    for (uint32_t g = g0; g < g1; g++) {
        const uint8_t *group = w->data + g * w->stride;
        struct float_tile tile = {.group = group,
                                  .scales = (const float *)(group + w->scale),
                                  .ahead = group + w->stride,
                                  .share = share * FLOAT_STEPS / w->cols,
                                  .cols = w->cols,
                                  .ldx = a->k};
        for (uint32_t t = 0, n; t < a->n; t += n) {
            float out[FLOAT_TOKENS * 16];
            const uint32_t passes = float_passes(a->n - t);
            n = (a->n - t + passes - 1) / passes;
            tile.x = a->x + (size_t)t * a->k;
            tiles[n - 1](&tile, out);
            for (uint32_t i = 0; i < n; i++)
                store_rows(w, g * 16, bias, accumulate, out + 16 * i, y + (t + i) * ldy);
            tile.ahead += share;
        }
    }
}
