// Error feedback without a peer: what is refused, the damping ladder, and that a team of any size
// and whole units leave the same bytes. tests/oracle/test_gptq.py has numpy beside it.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/sampler.h"
#include "quant/encode.h"
#include "quant/gptq.h"
#include "quant/hessian.h"
#include "tensor/type.h"

#define ROWS   19
#define COLS   256
#define TOKENS 300

static float w[ROWS * COLS], x[TOKENS * COLS];
static uint16_t narrow[TOKENS * COLS];
static double h[COLS * COLS];
static uint8_t bytes[2][ROWS * COLS * 4];
static struct nb_team *team;

static float random_at(uint64_t seed, uint64_t i)
{
    return (float)(int32_t)nb_random(seed, i) * 0x1p-31f;
}

static int fill(void **state)
{
    for (uint32_t i = 0; i < ROWS * COLS; i++)
        w[i] = 0.1f * random_at(1, i);
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t k = 0; k < COLS; k++)
            x[t * COLS + k] = random_at(2, t * COLS + k) + random_at(3, (size_t)t * COLS + k / 8);
    memset(h, 0, sizeof(h));
    assert_int_equal(nb_team_create(3, &team), 0);
    nb_hessian_narrow(team, &(struct nb_grad_rows){x, COLS, TOKENS}, NULL, COLS, narrow);
    assert_int_equal(nb_hessian_add(team, h, narrow, TOKENS, COLS), 0);
    return 0;
}

static int finish(void **state)
{
    nb_team_destroy(team);
    return 0;
}

static double narrow_at(uint32_t token, uint32_t col)
{
    return (double)nb_bf16_to_f32(narrow[token * COLS + col]);
}

static void sums_are_the_products(void **state)
{
    static double cross[COLS * COLS];
    memset(cross, 0, sizeof(cross));
    assert_int_equal(nb_cross_add(team, cross, narrow, COLS, narrow, 100, COLS), 0);
    assert_int_equal(nb_cross_add(team, cross, narrow + 100 * COLS, COLS, narrow + 100 * COLS,
                                  TOKENS - 100, COLS),
                     0);
    for (uint32_t i = 0; i < COLS; i += 5)
        for (uint32_t j = 0; j < COLS; j += 7) {
            double sum = 0;
            for (uint32_t t = 0; t < TOKENS; t++)
                sum += narrow_at(t, i) * narrow_at(t, j);
            assert_true(fabs(h[i * COLS + j] - sum) < 1e-5 * TOKENS);
            assert_true(fabs(cross[i * COLS + j] - sum) < 1e-5 * TOKENS);
            assert_true(h[i * COLS + j] == h[j * COLS + i]);
        }
}

// Differences of rows with gaps, of more columns than are subtracted at once.
static void rows_become_bf16(void **state)
{
    enum { N = 9, WIDE = 261, AT = 277 };
    static float a[N * AT], b[N * WIDE];
    static uint16_t ret[N * WIDE];
    for (uint32_t i = 0; i < N * AT; i++)
        a[i] = 100 + random_at(5, i);
    for (uint32_t i = 0; i < N * WIDE; i++)
        b[i] = 100 + random_at(6, i);
    const struct nb_grad_rows rows = {a, AT, N}, minus = {b, WIDE, N};
    nb_hessian_narrow(team, &rows, NULL, WIDE, ret);
    for (uint32_t i = 0; i < N; i++)
        for (uint32_t j = 0; j < WIDE; j++)
            assert_int_equal(ret[i * WIDE + j], nb_f32_to_bf16(a[i * AT + j]));
    nb_hessian_narrow(team, &rows, &minus, WIDE, ret);
    for (uint32_t i = 0; i < N; i++)
        for (uint32_t j = 0; j < WIDE; j++)
            assert_int_equal(ret[i * WIDE + j], nb_f32_to_bf16(a[i * AT + j] - b[i * WIDE + j]));
}

static void what_is_refused(void **state)
{
    struct nb_factor_options options = {0.01f, false};
    struct nb_factor *factor = NULL;
    assert_int_equal(nb_factor_create(team, h, 24, &options, &factor), -EINVAL);
    h[7] = NAN;
    assert_int_equal(nb_factor_create(team, h, COLS, &options, &factor), -EDOM);
    memset(h, 0, sizeof(h));
    h[1] = h[COLS] = 1; // no damping makes a factor of this
    h[0] = h[COLS + 1] = 1e-12;
    assert_int_equal(nb_factor_create(team, h, COLS, &options, &factor), -EDOM);
    memset(h, 0, sizeof(h));
    assert_int_equal(nb_hessian_add(team, h, narrow, TOKENS, COLS), 0);
    assert_int_equal(nb_factor_create(team, h, COLS, &options, &factor), 0);

    struct nb_gptq how = {.type = NB_TYPE_F16, .factor = factor};
    assert_int_equal(nb_gptq_encode(&how, team, w, ROWS, COLS, bytes[0], NULL), -EINVAL);
    how.type = NB_TYPE_Q4_0;
    assert_int_equal(nb_gptq_encode(&how, team, w, ROWS, COLS / 2, bytes[0], NULL), -EINVAL);
    how.mismatch = 2;
    assert_int_equal(nb_gptq_encode(&how, team, w, ROWS, COLS, bytes[0], NULL), -EINVAL);
    how.mismatch = 0;
    how.type = NB_TYPE_Q4_1; // has no zero
    how.sparse = (struct nb_sparsity){.share = 0.5};
    assert_int_equal(nb_gptq_encode(&how, team, w, ROWS, COLS, bytes[0], NULL), -EINVAL);
    how.type = NB_TYPE_Q4_0;
    how.sparse = (struct nb_sparsity){.keep = 4, .of = 4};
    assert_int_equal(nb_gptq_encode(&how, team, w, ROWS, COLS, bytes[0], NULL), -EINVAL);
    how.sparse = (struct nb_sparsity){.keep = 8, .of = 16};
    assert_int_equal(nb_gptq_encode(&how, team, w, ROWS, COLS, bytes[0], NULL), -EINVAL);
    how.sparse = (struct nb_sparsity){0};
    w[3 * COLS + 1] = INFINITY;
    assert_int_equal(nb_gptq_encode(&how, team, w, ROWS, COLS, bytes[0], NULL), -EDOM);
    w[3 * COLS + 1] = 3e38f;
    assert_int_equal(nb_gptq_encode(&how, team, w, ROWS, COLS, bytes[0], NULL), -ERANGE);
    w[3 * COLS + 1] = 0;
    nb_factor_destroy(factor);
    nb_factor_destroy(NULL);
}

// A Hessian of a few tokens has no factor without damping.
static void damping_is_raised(void **state)
{
    struct nb_factor_options options = {0, false};
    struct nb_factor *factor = NULL;
    memset(h, 0, sizeof(h));
    assert_int_equal(nb_hessian_add(team, h, narrow, 20, COLS), 0);
    assert_int_equal(nb_factor_create(team, h, COLS, &options, &factor), 0);
    assert_true(nb_factor_damping(factor) > 0 && nb_factor_damping(factor) <= 1);
    assert_int_equal(nb_factor_dead(factor), 0);
    nb_factor_destroy(factor);
    memset(h, 0, sizeof(h)); // nothing was ever seen: every weight is rounded to nearest
    assert_int_equal(nb_factor_create(team, h, COLS, &options, &factor), 0);
    assert_int_equal(nb_factor_dead(factor), COLS);
    struct nb_gptq how = {.type = NB_TYPE_Q4_0, .factor = factor, .passes = 1};
    struct nb_encode plain = {.type = NB_TYPE_Q4_0, .effort = NB_EFFORT_SEARCH};
    assert_int_equal(nb_gptq_encode(&how, team, w, ROWS, COLS, bytes[0], NULL), 0);
    assert_int_equal(nb_encode_rows(&plain, w, ROWS, COLS, bytes[1]), 0);
    double ours, nearest;
    assert_int_equal(nb_encode_error(&plain, w, bytes[0], ROWS, COLS, &ours), 0);
    assert_int_equal(nb_encode_error(&plain, w, bytes[1], ROWS, COLS, &nearest), 0);
    assert_true(ours < 1.001 * nearest);
    nb_factor_destroy(factor);
}

static void encode_twice(struct nb_team *alone, const struct nb_factor *three,
                         const struct nb_factor *one, uint32_t type, struct nb_sparsity sparse)
{
    struct nb_gptq how = {.type = type, .factor = three, .passes = 1, .sparse = sparse};
    struct nb_gptq_report a, b;
    assert_int_equal(nb_gptq_encode(&how, team, w, ROWS, COLS, bytes[0], &a), 0);
    how.factor = one;
    assert_int_equal(nb_gptq_encode(&how, alone, w, ROWS, COLS, bytes[1], &b), 0);
    assert_memory_equal(bytes[0], bytes[1], nb_encoded_bytes(type, ROWS, COLS));
    assert_memory_equal(&a, &b, sizeof(a));
    assert_true(a.refined <= a.columns);
}

// And a pattern is refused where columns are in another order than theirs.
static void a_team_chooses_the_same_zeros(void **state)
{
    static const uint32_t types[] = {NB_TYPE_F32, NB_TYPE_F16, NB_TYPE_Q8_0, NB_TYPE_Q6_K};
    const struct nb_sparsity half = {.share = 0.5}, pattern = {.keep = 2, .of = 4};
    struct nb_team *alone = NULL;
    struct nb_factor *three = NULL, *one = NULL, *ordered = NULL;
    struct nb_factor_options options = {0.01f, false};
    assert_int_equal(nb_team_create(1, &alone), 0);
    assert_int_equal(nb_factor_create(team, h, COLS, &options, &three), 0);
    assert_int_equal(nb_factor_create(alone, h, COLS, &options, &one), 0);
    options.by_size = true;
    assert_int_equal(nb_factor_create(alone, h, COLS, &options, &ordered), 0);
    for (unsigned t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
        encode_twice(alone, three, one, types[t], half);
        encode_twice(alone, three, one, types[t], pattern);
        encode_twice(alone, ordered, ordered, types[t], half);
    }
    const struct nb_gptq how = {.type = NB_TYPE_F32, .factor = ordered, .sparse = pattern};
    assert_int_equal(nb_gptq_encode(&how, team, w, ROWS, COLS, bytes[0], NULL), -EINVAL);
    nb_factor_destroy(three);
    nb_factor_destroy(one);
    nb_factor_destroy(ordered);
    nb_team_destroy(alone);
}

static void a_team_gives_the_same_bytes(void **state)
{
    static const uint32_t types[] = {NB_TYPE_Q4_0, NB_TYPE_Q5_1, NB_TYPE_Q2_0, NB_TYPE_IQ4_NL,
                                     NB_TYPE_Q3_K, NB_TYPE_Q4_K, NB_TYPE_NF4};
    struct nb_team *alone = NULL;
    assert_int_equal(nb_team_create(1, &alone), 0);
    for (int by_size = 0; by_size < 2; by_size++) {
        struct nb_factor_options options = {0.01f, by_size};
        struct nb_factor *three = NULL, *one = NULL;
        assert_int_equal(nb_factor_create(team, h, COLS, &options, &three), 0);
        assert_int_equal(nb_factor_create(alone, h, COLS, &options, &one), 0);
        for (unsigned t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
            struct nb_gptq how = {.type = types[t], .factor = three, .passes = 1};
            struct nb_gptq_report a;
            encode_twice(alone, three, one, types[t], (struct nb_sparsity){0});
            assert_int_equal(nb_gptq_encode(&how, team, w, ROWS, COLS, bytes[0], &a), 0);
            assert_true(a.refined < a.columns && a.columns < a.nearest);
        }
        nb_factor_destroy(three);
        nb_factor_destroy(one);
    }
    nb_team_destroy(alone);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(sums_are_the_products, fill, finish),
        cmocka_unit_test_setup_teardown(rows_become_bf16, fill, finish),
        cmocka_unit_test_setup_teardown(what_is_refused, fill, finish),
        cmocka_unit_test_setup_teardown(damping_is_raised, fill, finish),
        cmocka_unit_test_setup_teardown(a_team_gives_the_same_bytes, fill, finish),
        cmocka_unit_test_setup_teardown(a_team_chooses_the_same_zeros, fill, finish),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
