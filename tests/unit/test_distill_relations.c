// Relations among a text's tokens beside sums in doubles: of texts that are longer than a tile and
// shorter, of both orders, with rows left out, of vectors of another length; the same bits by any
// number of threads.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "distill/relations.h"
#include "engine/sampler.h"
#include "grad/loss.h"

#define MOST 300 // rows

static void fill(float *x, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(nb_random(seed, i) >> 40) * 0x1p-22f - 2;
}

// The logarithms of one row's relation; of a row that sees no others nothing.
static void logs_of(const float *x, uint32_t width, uint32_t length, uint32_t row, uint32_t n,
                    double *ret)
{
    double sum = 0;
    for (uint32_t j = 0; j < n; j++) {
        ret[j] = 0;
        for (uint32_t k = 0; k < length; k++)
            ret[j] += (double)x[(size_t)row * width + k] * (double)x[(size_t)j * width + k];
        ret[j] /= sqrt(length);
        sum += exp(ret[j]);
    }
    for (uint32_t j = 0; j < n; j++)
        ret[j] -= log(sum);
}

// One head's part of both results.
static void expect_head(const struct nb_relations *r, uint32_t n, const float *taught,
                        const float *x, const int32_t *label, double *d, double *ret)
{
    static double p[MOST], q[MOST];
    const uint32_t length = r->width / r->heads;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t related = label[i] == NB_LEFT_OUT ? 0 : r->causal ? i + 1 : n;
        logs_of(x, r->width, length, i, related, q);
        logs_of(taught, r->taught_width, r->taught_width / r->heads, i, related, p);
        for (uint32_t j = 0; j < related; j++) {
            const double by = (double)r->weight / r->heads * (exp(q[j]) - exp(p[j])) / sqrt(length);
            ret[i] += exp(p[j]) * (p[j] - q[j]) / r->heads;
            for (uint32_t k = 0; k < length; k++) {
                d[(size_t)i * r->width + k] += by * (double)x[(size_t)j * r->width + k];
                d[(size_t)j * r->width + k] += by * (double)x[(size_t)i * r->width + k];
            }
        }
    }
}

static void check(const struct nb_relations *r, uint32_t n)
{
    const size_t all = (size_t)n * r->width;
    float *taught = calloc((size_t)n * r->taught_width, sizeof(float)),
          *x = calloc(all, sizeof(float));
    float *d = calloc(3 * all, sizeof(float)), *ret = calloc(3 * n, sizeof(float));
    float *scratch = calloc(nb_relations_scratch(n), sizeof(float));
    double *expected = calloc(all + n, sizeof(double));
    int32_t *label = calloc(n, sizeof(*label));
    assert_true(taught && x && d && ret && scratch && expected && label);
    fill(taught, (size_t)n * r->taught_width, 1);
    fill(x, all, 2);
    for (uint32_t i = 0; i < n; i++)
        label[i] = nb_random(3, i) % 4 ? (int32_t)i : NB_LEFT_OUT;
    for (uint32_t h = 0; h < r->heads; h++)
        expect_head(r, n, taught + h * (r->taught_width / r->heads), x + h * (r->width / r->heads),
                    label, expected + h * (r->width / r->heads), expected + all);
    for (uint32_t threads = 1; threads < 3; threads++) {
        struct nb_team *team;
        assert_int_equal(nb_team_create(threads, &team), 0);
        nb_relations(r, team, n, taught, x, label, d + (threads - 1) * all, ret + (threads - 1) * n,
                     scratch);
        nb_relations(r, team, n, taught, x, label, NULL, ret + 2 * n, scratch);
        nb_team_destroy(team);
    }
    assert_memory_equal(d, d + all, all * sizeof(*d));
    assert_memory_equal(ret, ret + n, n * sizeof(*ret));
    double most = 0, off = 0;
    for (size_t i = 0; i < all; i++) {
        most = fmax(most, fabs(expected[i]));
        off = fmax(off, fabs((double)d[i] - expected[i]));
    }
    // What a row has is the difference of two softmaxes, each up to 1, times vectors up to 2.
    assert_true(off <= 2e-6 * (most + (double)r->weight));
    for (uint32_t i = 0; i < n; i++) {
        assert_true(fabs((double)ret[i] - expected[all + i]) < 1e-5 * (1 + expected[all + i]));
        assert_true(fabsf(ret[2 * n + i] - 2 * ret[i]) <= 1e-6f * ret[i]); // added to what is there
    }
    free(taught);
    free(x);
    free(d);
    free(ret);
    free(scratch);
    free(expected);
    free(label);
}

static void beside_doubles(void **state)
{
    static const uint32_t rows[] = {1, 2, 17, NB_RELATIONS_TILE, NB_RELATIONS_TILE + 1, MOST};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (int causal = 0; causal < 2; causal++) {
            check(&(struct nb_relations){3, 24, 24, causal, 0.5f}, rows[i]);
            check(&(struct nb_relations){1, 10, 48, causal, 2}, rows[i]);
        }
}

// What a model has learnt of itself is nothing.
static void of_itself(void **state)
{
    enum { ROWS = 40, WIDTH = 12 };
    const struct nb_relations r = {2, WIDTH, WIDTH, true, 1};
    float x[ROWS * WIDTH], d[ROWS * WIDTH] = {0}, ret[ROWS] = {0},
                                    scratch[2 * NB_RELATIONS_TILE * ROWS];
    int32_t label[ROWS] = {0};
    struct nb_team *team;
    fill(x, ROWS * WIDTH, 4);
    assert_int_equal(nb_team_create(1, &team), 0);
    nb_relations(&r, team, ROWS, x, x, label, d, ret, scratch);
    nb_team_destroy(team);
    for (uint32_t i = 0; i < ROWS; i++)
        assert_true(ret[i] == 0);
    for (uint32_t i = 0; i < ROWS * WIDTH; i++)
        assert_true(d[i] == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(beside_doubles),
                                       cmocka_unit_test(of_itself)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
