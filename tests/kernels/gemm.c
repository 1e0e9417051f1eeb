// Checks the matrix product and the decoding of a row.
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/check.h"

#define PAD 3 // floats between the tokens' results, which must stay as they were

static float *run(const struct nb_kernels *k, const struct product *p, const float *bias,
                  const float *before, size_t ldy)
{
    size_t n = p->a->a.n * ldy;
    float *y = buffer(n * sizeof(float));
    void *scratch = buffer(k->gemm_scratch(&p->m->w, p->a->a.n));
    memcpy(y, before, n * sizeof(float));
    k->gemm(&p->m->w, &p->a->a, p->g0, p->g1, p->bias ? bias : NULL, p->accumulate, y, ldy,
            scratch);
    free(scratch);
    return y;
}

void check_gemm_case(const struct nb_kernels *k, const struct product *p, const char *what)
{
    const struct nb_packed *w = &p->m->w;
    uint32_t n = p->a->a.n;
    size_t ldy = w->rows + PAD;
    float *before = buffer(n * ldy * sizeof(float)), *bias = buffer(w->rows * sizeof(float));
    fill_floats(before, n * ldy, SANE);
    fill_floats(bias, w->rows, SANE);
    float *want = run(nb_kernels_of(NB_ISA_SCALAR), p, bias, before, ldy);
    float *got = run(k, p, bias, before, ldy);
    check_floats(want, got, n * ldy, "%s %ux%u n %u terms %u groups %u-%u %s",
                 nb_type_name(w->layout->type), w->rows, w->cols, n, p->a->a.terms, p->g0, p->g1,
                 what);
    free(before);
    free(bias);
    free(want);
    free(got);
}

// A token's result alone equals its result among others.
void check_gemm_alone(const struct nb_kernels *k, const struct matrix *m, struct act *a)
{
    size_t ldy = m->w.rows, n = a->a.n;
    float *before = calloc(n * ldy, sizeof(float));
    struct product p = {m, a, 0, (m->w.rows + 15) / 16, false, false};
    float *all = run(k, &p, NULL, before, ldy);
    for (uint32_t t = 0; t < n; t++) {
        struct act one = {.a = a->a};
        one.a.n = 1;
        one.a.x += (size_t)t * a->a.k;
        one.a.q1 += (size_t)t * a->a.k;
        one.a.q2 += (size_t)t * a->a.k;
        one.a.s += (size_t)t * (a->a.k / 32);
        one.a.sum1 += (size_t)t * (a->a.k / 16);
        one.a.sum2 += (size_t)t * (a->a.k / 16);
        p.a = &one;
        float *alone = run(k, &p, NULL, before, ldy);
        check_floats(alone, all + t * ldy, ldy, "%s: token %u of %zu, alone and together",
                     nb_type_name(m->w.layout->type), t, n);
        free(alone);
    }
    free(before);
    free(all);
}

// Random shapes; then adversarial codes, scales and activations.
static void check_type(const struct nb_kernels *k, uint32_t type)
{
    static const uint32_t tokens[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 33};
    uint32_t block = nb_type_info(type)->block;
    for (uint32_t i = 0; i < 2 * sizeof(tokens) / sizeof(*tokens); i++) {
        uint32_t rows = 1 + random_below(50), groups = (rows + 15) / 16;
        uint32_t cols =
            block == 1 ? 1 + random_below(100) : block * (1 + random_below(512 / block));
        struct matrix m = random_matrix(type, rows, cols, -1, false);
        struct act a = random_act(tokens[i / 2], (cols + 31) / 32 * 32, 1 + i % 2, SANE);
        uint32_t g0 = random_below(groups), g1 = g0 + 1 + random_below(groups - g0);
        check_gemm_case(k, &(struct product){&m, &a, g0, g1, i % 3 == 0, i % 5 < 2}, "random");
        check_gemm_alone(k, &m, &a);
        free(m.data);
        free(a.mem);
    }
    for (int fill = -1; fill < 256; fill += fill < 0 ? 1 : 51)
        for (int mood = 0; mood < MOODS; mood++)
            for (uint32_t n = 5; n <= 13; n += 8) {
                bool hostile = fill < 0 && n == 5;
                struct matrix m = random_matrix(type, 19, 256, fill, hostile);
                struct act a = random_act(n, 256, 1 + random_below(2), (enum mood)mood);
                check_gemm_case(k, &(struct product){&m, &a, 0, 2, false, false},
                                mood_name((enum mood)mood));
                free(m.data);
                free(a.mem);
            }
}

void check_gemm(const struct nb_kernels *k)
{
    for (uint32_t i = 0; i < check_n_types; i++)
        check_type(k, check_types[i]);
}

void check_decode(const struct nb_kernels *k)
{
    for (uint32_t i = 0; i < check_n_types; i++) {
        uint32_t block = nb_type_info(check_types[i])->block, cols = block == 1 ? 77 : 3 * block;
        struct matrix m = random_matrix(check_types[i], 37, cols, -1, i % 2);
        float *want = buffer(cols * sizeof(float)), *got = buffer(cols * sizeof(float));
        for (uint32_t row = 0; row < m.w.rows; row++) {
            nb_kernels_of(NB_ISA_SCALAR)->decode_row(&m.w, row, want);
            k->decode_row(&m.w, row, got);
            check_floats(want, got, cols, "%s row %u", nb_type_name(check_types[i]), row);
            nb_layout_dequantize_row(&m.w, row, want);
            check_floats(want, got, cols, "%s row %u as tensor/ decodes it",
                         nb_type_name(check_types[i]), row);
        }
        free(m.data);
        free(want);
        free(got);
    }
}
