// Products of float matrices in plain C.
#include <math.h>

#include "grad/gemm_isa.h"
#include "grad/gemm_words.h"

#define ROWS    4
#define COLUMNS 16

static float float_of(uint32_t word)
{
    float x;
    memcpy(&x, &word, sizeof(x));
    return x;
}

static void add_step(const uint32_t *a, const uint32_t *b, float sum[ROWS][COLUMNS])
{
    for (uint32_t i = 0; i < ROWS; i++)
        for (uint32_t j = 0; j < COLUMNS; j++)
            sum[i][j] = fmaf(float_of(a[i]), float_of(b[j]), sum[i][j]);
}

static void tile(const struct nb_gemm_tile *t)
{
    float sum[ROWS][COLUMNS] = {{0}};
    for (size_t step = 0; step < t->steps; step++)
        add_step(t->a + step * NB_GEMM_A_LANES, t->b + step * COLUMNS, sum);
    for (uint32_t i = 0; i < t->rows; i++)
        for (uint32_t j = 0; j < t->columns; j++) {
            float *c = t->c + i * t->ldc + j;
            *c = t->beta == 0.0f ? sum[i][j] : t->beta * *c + sum[i][j];
        }
}

static void pack_f32(const struct nb_gemm_panel *p)
{
    pack_words(p, OPERAND_F32, 0, p->k);
}

static void pack_widened(const struct nb_gemm_panel *p)
{
    pack_words(p, OPERAND_WIDENED, 0, p->k);
}

const struct nb_gemm_kernels nb_sgemm_scalar = {
    "scalar", ROWS, COLUMNS, .step = 1, .element = sizeof(float), pack_f32, tile};
const struct nb_gemm_kernels nb_bgemm_scalar = {
    "scalar", ROWS, COLUMNS, .step = 1, .element = sizeof(uint16_t), pack_widened, tile};
