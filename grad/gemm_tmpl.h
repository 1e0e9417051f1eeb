// Packing and tiles of one ISA level, in the words of engine/cpu/simd_*.h. Before it: ROWS and
// VECTORS (registers a row) of a tile, and how words are read and multiplied (gemm_words_tmpl.h,
// gemm_bf16.c).
#pragma once

#include "grad/gemm_words.h"

#define COLUMNS (16 * VECTORS)

// Where 16 words go in a panel.
FORCED float *words_at(const struct nb_gemm_panel *p, uint32_t lane, uint32_t step)
{
    return (float *)(void *)(p->to + (size_t)step * p->width + lane);
}

// `count` (8 or 16) rows of 16 words become 16 rows of `count`: the number of a word, its row's
// bits and then its lane's, is turned left by one bit for each bit of a row's number.
FORCED void transpose(vf *x, int count)
{
    UNROLL
    for (int n = 1; n < count; n *= 2) {
        vf y[16] = {f_zero()};
        UNROLL
        for (int i = 0; i < count / 2; i++)
            f_zip(x[i], x[i + count / 2], &y[2 * i], &y[2 * i + 1]);
        UNROLL
        for (int i = 0; i < count; i++)
            x[i] = y[i];
    }
}

// Sixteen steps of `count` lanes: of 16, or of all in a panel of 8.
FORCED void pack_square(const struct nb_gemm_panel *p, enum operand o, uint32_t lane, uint32_t step,
                        int count)
{
    vf x[16];
    UNROLL
    for (int i = 0; i < count; i++)
        x[i] = lane + (uint32_t)i < p->lanes ? along_k(p, o, lane + (uint32_t)i, step) : f_zero();
    transpose(x, count);
    UNROLL
    for (int i = 0; i < count; i++)
        f_store(words_at(p, lane, step + (uint32_t)(i * 16 / count)) + i * 16 % count, x[i]);
}

FORCED void pack_by_k(const struct nb_gemm_panel *p, enum operand o)
{
    uint32_t whole = p->k / step_of(o) / 16 * 16;
    for (uint32_t step = 0; step < whole; step += 16) {
        if (p->width == NB_GEMM_A_LANES)
            pack_square(p, o, 0, step, NB_GEMM_A_LANES);
        else
            for (uint32_t lane = 0; lane < p->width; lane += 16)
                pack_square(p, o, lane, step, 16);
    }
    pack_words(p, o, whole, (p->k + step_of(o) - 1) / step_of(o));
}

// Whole registers, where a row has as many lanes. A panel of 8 gets 16 of them and loses the upper
// ones to its next step, so its last one goes word by word, as does the last k without a partner.
FORCED void pack_by_lanes(const struct nb_gemm_panel *p, enum operand o)
{
    const bool narrow = p->width == NB_GEMM_A_LANES;
    uint32_t whole = p->lanes < (narrow ? 16 : p->width) ? 0 : p->k / step_of(o);
    whole -= narrow && whole;
    for (uint32_t step = 0; step < whole; step++)
        for (uint32_t lane = 0; lane < p->width; lane += 16)
            f_store(words_at(p, lane, step), along_lanes(p, o, lane, step));
    pack_words(p, o, whole, (p->k + step_of(o) - 1) / step_of(o));
}

FORCED void pack(const struct nb_gemm_panel *p, enum operand o)
{
    if (p->by_k)
        pack_by_k(p, o);
    else
        pack_by_lanes(p, o);
}

// c = beta * c + sum: a product and a sum, each rounded.
FORCED void store_row(const struct nb_gemm_tile *t, const float *sum, float *c)
{
    const uint32_t whole = t->columns / 16 * 16;
    const vf beta = f_set1(t->beta);
    for (uint32_t j = 0; j < whole; j += 16) {
        vf x = f_load(sum + j);
        f_store(c + j, t->beta == 0.0f ? x : f_add(f_mul(beta, f_load(c + j)), x));
    }
    for (uint32_t j = whole; j < t->columns; j++)
        c[j] = t->beta == 0.0f ? sum[j] : t->beta * c[j] + sum[j];
}

static void tile(const struct nb_gemm_tile *t)
{
    const uint32_t *a = t->a, *b = t->b;
    _Alignas(64) float sum[ROWS][COLUMNS];
    vf acc[ROWS][VECTORS];
    UNROLL
    for (int i = 0; i < ROWS * VECTORS; i++)
        acc[i / VECTORS][i % VECTORS] = f_zero();
    for (uint32_t step = 0; step < t->steps; step++) {
        vf y[VECTORS];
        UNROLL
        for (int j = 0; j < VECTORS; j++)
            y[j] = f_of_bits(i_load(b + 16 * j));
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            vf x = f_of_bits(i_broadcast(a + i));
            UNROLL
            for (int j = 0; j < VECTORS; j++)
                acc[i][j] = multiply(x, y[j], acc[i][j]);
        }
        a += NB_GEMM_A_LANES;
        b += COLUMNS;
    }
    UNROLL
    for (int i = 0; i < ROWS; i++) {
        UNROLL
        for (int j = 0; j < VECTORS; j++)
            f_store(&sum[i][16 * j], acc[i][j]);
    }
    for (uint32_t i = 0; i < t->rows; i++)
        store_row(t, sum[i], t->c + i * t->ldc);
}
