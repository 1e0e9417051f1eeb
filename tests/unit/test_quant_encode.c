// Encoders without a peer: what they refuse, that every ISA level and a team give the same bytes,
// and that a search is never worse than rounding to nearest. tests/oracle/test_encode.py has
// llama.cpp beside them.
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
#include "quant/fit.h"
#include "quant/scheme.h"

#define ROWS 5
#define COLS 512

static const uint32_t types[] = {
    NB_TYPE_F32,  NB_TYPE_F16,    NB_TYPE_BF16,   NB_TYPE_Q4_0, NB_TYPE_Q4_1, NB_TYPE_Q5_0,
    NB_TYPE_Q5_1, NB_TYPE_Q8_0,   NB_TYPE_Q2_K,   NB_TYPE_Q3_K, NB_TYPE_Q4_K, NB_TYPE_Q5_K,
    NB_TYPE_Q6_K, NB_TYPE_IQ4_NL, NB_TYPE_IQ4_XS, NB_TYPE_Q2_0, NB_TYPE_NF4};

#define TYPES (sizeof(types) / sizeof(types[0]))

static float matrix[ROWS * COLS], importance[COLS];
static uint8_t bytes[2][ROWS * COLS * sizeof(float)];

static void fill(void)
{
    for (uint32_t i = 0; i < ROWS * COLS; i++) {
        uint64_t r = nb_random(1, i);
        matrix[i] = ((float)(uint16_t)r + (float)(uint16_t)(r >> 16) - 65535) * 1e-6f;
    }
    matrix[7] = 0.9f;
    memset(matrix + COLS, 0, COLS * sizeof(float)); // a row of zeros
    for (uint32_t k = 0; k < COLS; k++)
        importance[k] = (float)(nb_random(2, k) % 1000) * 0.01f;
}

static void what_is_refused(void **state)
{
    fill();
    struct nb_encode how = {.type = NB_TYPE_Q4_K, .effort = NB_EFFORT_SEARCH};
    assert_int_equal(nb_encode_rows(&how, matrix, 1, 320, bytes[0]), -EINVAL);
    how.type = NB_TYPE_END;
    assert_int_equal(nb_encode_rows(&how, matrix, 1, COLS, bytes[0]), -EINVAL);
    how.type = NB_TYPE_Q4_0;
    how.importance = importance;
    importance[3] = -1;
    assert_int_equal(nb_encode_rows(&how, matrix, 1, COLS, bytes[0]), -EINVAL);
    importance[3] = NAN;
    assert_int_equal(nb_encode_rows(&how, matrix, 1, COLS, bytes[0]), -EINVAL);
    assert_int_equal(nb_encoded_bytes(NB_TYPE_Q4_K, 3, 512), 3 * 2 * 144);
    assert_int_equal(nb_encoded_bytes(NB_TYPE_Q4_K, 3, 500), 0);
    assert_int_equal(nb_encoded_bytes(NB_TYPE_Q4_K, UINT64_MAX / 2, 512), 0);
}

static void weights_that_no_type_holds(void **state)
{
    fill();
    for (unsigned t = 0; t < TYPES; t++)
        for (int effort = NB_EFFORT_REFERENCE; effort <= NB_EFFORT_SEARCH; effort++) {
            struct nb_encode how = {.type = types[t], .effort = (enum nb_effort)effort};
            matrix[COLS + 9] = NAN;
            assert_int_equal(nb_encode_rows(&how, matrix, ROWS, COLS, bytes[0]), -EDOM);
            matrix[COLS + 9] = -INFINITY;
            assert_int_equal(nb_encode_rows(&how, matrix, ROWS, COLS, bytes[0]), -EDOM);
            assert_int_equal(nb_find_not_finite(matrix, sizeof(matrix) / sizeof(float)), COLS + 9);
            matrix[COLS + 9] = 3.3e38f;
            bool wide = types[t] == NB_TYPE_F32 || types[t] == NB_TYPE_BF16;
            assert_int_equal(nb_encode_rows(&how, matrix, ROWS, COLS, bytes[0]),
                             wide ? 0 : -ERANGE);
            matrix[COLS + 9] = 0;
        }
}

static void a_team_gives_the_same_bytes(void **state)
{
    fill();
    struct nb_team *team = NULL;
    assert_int_equal(nb_team_create(3, &team), 0);
    for (unsigned t = 0; t < TYPES; t++) {
        struct nb_encode how = {.type = types[t],
                                .effort = NB_EFFORT_SEARCH,
                                .by_size = true,
                                .importance = importance};
        size_t n = nb_encoded_bytes(types[t], ROWS, COLS);
        assert_int_equal(nb_encode_rows(&how, matrix, ROWS, COLS, bytes[0]), 0);
        assert_int_equal(nb_encode_matrix(&how, team, matrix, ROWS, COLS, bytes[1]), 0);
        assert_memory_equal(bytes[0], bytes[1], n);
        matrix[4 * COLS + 1] = NAN;
        assert_int_equal(nb_encode_matrix(&how, team, matrix, ROWS, COLS, bytes[1]), -EDOM);
        fill();
    }
    nb_team_destroy(team);
}

static void every_level_gives_the_same_bytes(void **state)
{
    fill();
    float factors[COLS];
    for (uint32_t k = 0; k < COLS; k++)
        factors[k] = importance[k] + 0.01f;
    for (unsigned t = 0; t < TYPES; t++) {
        struct nb_shape shape;
        if (nb_shape_init(&shape, types[t]) < 0)
            continue;
        for (int isa = NB_ISA_SCALAR + 1; isa < NB_ISA_COUNT; isa++) {
            if (!nb_fits[isa] || !nb_kernels_of((enum nb_isa)isa))
                continue;
            struct nb_block a, b;
            nb_fit_plain.reference(&shape, matrix, &a);
            nb_fits[isa]->reference(&shape, matrix, &b);
            assert_memory_equal(&a, &b, sizeof(a));
            nb_fit_plain.search(&shape, matrix, factors, &a);
            nb_fits[isa]->search(&shape, matrix, factors, &b);
            assert_memory_equal(&a, &b, sizeof(a));
        }
    }
}

static void a_search_is_never_worse(void **state)
{
    fill();
    for (unsigned t = 0; t < TYPES; t++)
        for (int by_size = 0; by_size < 2; by_size++) {
            struct nb_encode how = {.type = types[t], .by_size = by_size, .importance = importance};
            double nearest, searched;
            assert_int_equal(nb_encode_rows(&how, matrix, ROWS, COLS, bytes[0]), 0);
            assert_int_equal(nb_encode_error(&how, matrix, bytes[0], ROWS, COLS, &nearest), 0);
            how.effort = NB_EFFORT_SEARCH;
            assert_int_equal(nb_encode_rows(&how, matrix, ROWS, COLS, bytes[0]), 0);
            assert_int_equal(nb_encode_error(&how, matrix, bytes[0], ROWS, COLS, &searched), 0);
            assert_true(nb_type_info(types[t])->block == 1 ? searched == nearest
                                                           : searched < 0.97 * nearest);
        }
}

static unsigned codes_of(const struct nb_shape *shape)
{
    return shape->table ? 16 : (unsigned)(shape->high - shape->low) + 1;
}

// A scheme that is a type has its bits, group and minimum; one that a type holds has room in it.
// Every type is one scheme's.
static void schemes_fit_their_types(void **state)
{
    size_t n, found = 0;
    const struct nb_scheme *schemes = nb_schemes(&n);
    for (size_t i = 0; i < n; i++) {
        const struct nb_scheme *s = &schemes[i];
        struct nb_shape shape;
        assert_ptr_equal(nb_scheme_by_name(s->name), s);
        assert_true((s->type > NB_TYPE_GGUF_END) == (s->instead != NULL));
        found += s->exact;
        if (s->exact)
            assert_ptr_equal(nb_scheme_by_name(nb_type_name(s->type)), s);
        if (nb_shape_init(&shape, s->type) < 0)
            continue;
        assert_int_equal(shape.has_min, s->has_min);
        if (s->exact) {
            assert_int_equal(shape.group, s->group);
            assert_in_range(codes_of(&shape), (1u << s->bits) - 1, 1u << s->bits);
            continue;
        }
        assert_false(shape.super);
        assert_true(s->group >= shape.group && codes_of(&shape) >= (1u << s->bits) - 1);
        assert_true(nb_scheme_bits(s, 576, 576) <=
                    8.0 * nb_type_info(s->type)->bytes / nb_type_info(s->type)->block);
    }
    assert_int_equal(found, TYPES);
    assert_null(nb_scheme_by_name("int4"));
    assert_null(nb_scheme_by_name("Q8_1"));
}

static void wide_scales_are_the_same_on_every_level(void **state)
{
    fill();
    float factors[COLS];
    for (uint32_t k = 0; k < COLS; k++)
        factors[k] = importance[k] + 0.01f;
    for (unsigned t = 0; t < TYPES; t++)
        for (int isa = NB_ISA_SCALAR + 1; isa < NB_ISA_COUNT; isa++) {
            struct nb_shape shape;
            if (!nb_fits[isa] || !nb_kernels_of((enum nb_isa)isa) ||
                nb_shape_init(&shape, types[t]) < 0 || shape.super)
                continue;
            for (int search = 0; search < 2; search++) {
                const float *w = search ? factors : NULL;
                uint16_t d[2], m[2];
                struct nb_block a, b;
                nb_fit_plain.scale(&shape, matrix, w, COLS - 64, &d[0], &m[0]);
                nb_fits[isa]->scale(&shape, matrix, w, COLS - 64, &d[1], &m[1]);
                assert_true(d[0] == d[1] && m[0] == m[1]);
                nb_fit_plain.codes(&shape, matrix, d[0], m[0], &a);
                nb_fits[isa]->codes(&shape, matrix, d[0], m[0], &b);
                assert_memory_equal(&a, &b, sizeof(a));
            }
        }
}

// By whichever way, and never worse than rounding to nearest.
static void schemes_are_searched(void **state)
{
    size_t n;
    const struct nb_scheme *schemes = nb_schemes(&n);
    struct nb_team *team = NULL;
    assert_int_equal(nb_team_create(3, &team), 0);
    fill();
    for (size_t i = 0; i < n; i++) {
        struct nb_encode how = {.type = schemes[i].type,
                                .importance = importance,
                                .scheme = &schemes[i],
                                .least = -0.07f,
                                .most = 0.9f};
        double nearest, searched;
        assert_int_equal(nb_encode_rows(&how, matrix, ROWS, COLS, bytes[0]), 0);
        assert_int_equal(nb_encode_error(&how, matrix, bytes[0], ROWS, COLS, &nearest), 0);
        how.effort = NB_EFFORT_SEARCH;
        assert_int_equal(nb_encode_rows(&how, matrix, ROWS, COLS, bytes[0]), 0);
        assert_int_equal(nb_encode_error(&how, matrix, bytes[0], ROWS, COLS, &searched), 0);
        assert_true(searched <= nearest);
        assert_int_equal(nb_encode_matrix(&how, team, matrix, ROWS, COLS, bytes[1]), 0);
        assert_memory_equal(bytes[0], bytes[1], nb_encoded_bytes(how.type, ROWS, COLS));
        how.type = NB_TYPE_BF16;
        assert_int_equal(nb_encode_rows(&how, matrix, ROWS, COLS, bytes[0]),
                         schemes[i].type == NB_TYPE_BF16 ? 0 : -EINVAL);
    }
    nb_team_destroy(team);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(weights_that_no_type_holds),
        cmocka_unit_test(a_team_gives_the_same_bytes),
        cmocka_unit_test(every_level_gives_the_same_bytes),
        cmocka_unit_test(a_search_is_never_worse),
        cmocka_unit_test(schemes_fit_their_types),
        cmocka_unit_test(wide_scales_are_the_same_on_every_level),
        cmocka_unit_test(schemes_are_searched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
