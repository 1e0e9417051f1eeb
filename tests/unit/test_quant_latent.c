// A matrix under training: its bytes decode to what is computed with, before and after it moved;
// the gradients of scales beside differences of what is decoded; whatever the threads.
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
#include "tensor/type.h"

#define ROWS    37
#define COLS    512
#define WEIGHTS (ROWS * COLS)

static const uint32_t types[] = {NB_TYPE_Q4_0,  NB_TYPE_Q4_1,   NB_TYPE_Q5_0, NB_TYPE_Q5_1,
                                 NB_TYPE_Q8_0,  NB_TYPE_IQ4_NL, NB_TYPE_Q2_0, NB_TYPE_Q2_K,
                                 NB_TYPE_Q3_K,  NB_TYPE_Q4_K,   NB_TYPE_Q5_K, NB_TYPE_Q6_K,
                                 NB_TYPE_IQ4_XS};
#define EACH_TYPE                                                                                  \
    for (size_t i = 0, type; i < sizeof(types) / sizeof(*types) && (type = types[i]); i++)

static float w[WEIGHTS], gradient[WEIGHTS], decoded[2][WEIGHTS];
static uint8_t bytes[2][WEIGHTS * 4];
static struct nb_team *team;

static float random_at(uint64_t seed, uint64_t i)
{
    return (float)(int32_t)nb_random(seed, i) * 0x1p-31f;
}

static int fill(void **state)
{
    for (uint32_t i = 0; i < WEIGHTS; i++) {
        w[i] = 0.1f * random_at(1, i) * (1 + random_at(2, i / 7));
        gradient[i] = 1e-4f * random_at(3, i);
    }
    return nb_team_create(3, &team);
}

static int finish(void **state)
{
    nb_team_destroy(team);
    return 0;
}

static struct nb_latent *create(uint32_t type, const void *encoded)
{
    struct nb_latent *l;
    assert_int_equal(nb_latent_create(team, type, ROWS, COLS, encoded, w, &l), 0);
    return l;
}

static struct nb_latent *searched(uint32_t type)
{
    const struct nb_encode how = {.type = type, .effort = NB_EFFORT_SEARCH};
    assert_int_equal(nb_encode_matrix(&how, team, w, ROWS, COLS, bytes[0]), 0);
    return create(type, bytes[0]);
}

// What it computes with is what its bytes decode to.
static void check_bytes(const struct nb_latent *l, uint32_t type)
{
    nb_latent_encode(l, team, bytes[1]);
    nb_latent_decode(l, team, decoded[0]);
    nb_type_info(type)->dequantize(bytes[1], decoded[1], WEIGHTS / nb_type_info(type)->block);
    assert_memory_equal(decoded[0], decoded[1], sizeof(decoded[0]));
}

static void begins_with_its_bytes(void **state)
{
    EACH_TYPE
    {
        struct nb_latent *l = searched((uint32_t)type);
        check_bytes(l, (uint32_t)type);
        assert_memory_equal(bytes[0], bytes[1], nb_encoded_bytes((uint32_t)type, ROWS, COLS));
        nb_latent_destroy(l);
    }
}

// As after error feedback: codes, scales and minima that have little to do with the weights.
static void keeps_codes_that_are_not_nearest(void **state)
{
    EACH_TYPE
    {
        const struct nb_codec *codec = nb_codec_of((uint32_t)type);
        const uint32_t size = nb_type_info((uint32_t)type)->bytes;
        const size_t n = nb_encoded_bytes((uint32_t)type, ROWS, COLS);
        struct nb_block b;
        memset(&b, 0, sizeof(b));
        for (size_t k = 0; k < n; k++)
            bytes[0][k] = (uint8_t)nb_random(4, k);
        for (size_t k = 0; k < n; k += size) {
            codec->split(bytes[0] + k, &b);
            b.scale = nb_f32_to_f16(0.01f * random_at(5, k));
            b.min = nb_f32_to_f16(0.05f * random_at(6, k));
            for (int c = 0; c < NB_BLOCK_MAX && type == NB_TYPE_Q8_0; c++)
                b.code[c] = b.code[c] ? b.code[c] : 1; // -128 is no code of ours
            codec->join(&b, bytes[0] + k);
        }
        struct nb_latent *l = create((uint32_t)type, bytes[0]);
        check_bytes(l, (uint32_t)type);
        assert_memory_equal(bytes[0], bytes[1], n);
        nb_latent_destroy(l);
    }
}

static const struct nb_descent one_step = {.code_rate = 0.01f,
                                           .scale_rate = 0.003f,
                                           .scale = 1,
                                           .first = 0.9f,
                                           .second = 0.99f,
                                           .first_by = 10,
                                           .second_by = 100};

static void moves_to_bytes_of_its_own(void **state)
{
    EACH_TYPE
    {
        struct nb_latent *l = searched((uint32_t)type);
        for (int step = 0; step < 20; step++)
            nb_latent_descend(l, team, gradient, &one_step);
        check_bytes(l, (uint32_t)type);
        assert_memory_not_equal(bytes[0], bytes[1], nb_encoded_bytes((uint32_t)type, ROWS, COLS));
        double was = 0, is = 0;
        nb_type_info((uint32_t)type)
            ->dequantize(bytes[0], decoded[1], WEIGHTS / nb_type_info((uint32_t)type)->block);
        for (size_t k = 0; k < WEIGHTS; k++) {
            was += (double)gradient[k] * (double)decoded[1][k];
            is += (double)gradient[k] * (double)decoded[0][k];
        }
        assert_true(is < was - 1e-4 * fabs(was)); // the linear loss has fallen
        nb_latent_destroy(l);
    }
}

// The loss is the sum of gradient times what is decoded, so its derivative in a scale is what
// doubling the scale adds to it, which is exact in fp16.
static double difference(struct nb_latent *l, float *number, size_t block)
{
    const size_t n = l->shape.block;
    double sum = 0;
    nb_latent_decode(l, team, decoded[0]);
    *number *= 2;
    nb_latent_decode(l, team, decoded[1]);
    *number /= 2;
    for (size_t k = block * n; k < (block + 1) * n; k++)
        sum += (double)gradient[k] * ((double)decoded[1][k] - (double)decoded[0][k]);
    return sum / (double)*number;
}

static void expect_near(double got, double wanted, double size)
{
    assert_true(fabs(got - wanted) <= 1e-5 * size);
}

// Without decay the first moment is the gradient.
static void check_scale(struct nb_latent *l, const struct nb_scales *s, size_t block)
{
    if (s->stored[block] != 0)
        expect_near(s->moving.first[block],
                    difference(l, &s->stored[block], block) * (double)s->unit[block], 1e-3);
}

static void scales_have_their_derivatives(void **state)
{
    const struct nb_descent still = {.scale = 1, .first_by = 1, .second_by = 1, .floor = 1};
    EACH_TYPE
    {
        struct nb_latent *l = searched((uint32_t)type);
        nb_latent_descend(l, team, gradient, &still);
        for (size_t b = 0; b < l->blocks; b += 5) {
            check_scale(l, &l->scale, b);
            if (l->shape.has_min)
                check_scale(l, &l->min, b);
        }
        check_bytes(l, (uint32_t)type);
        assert_memory_equal(bytes[0], bytes[1], nb_encoded_bytes((uint32_t)type, ROWS, COLS));
        nb_latent_destroy(l);
    }
}

// Two steps of Adam in doubles for each weight.
static void codes_go_straight_through(void **state)
{
    static float before[WEIGHTS];
    EACH_TYPE
    {
        struct nb_latent *l = searched((uint32_t)type);
        const struct nb_shape *s = &l->shape;
        const double gap = s->table ? (double)(s->high - s->low) / 15 : 1;
        memcpy(before, l->code.x, sizeof(before));
        nb_latent_descend(l, team, gradient, &one_step);
        for (size_t k = 0; k < WEIGHTS; k += 3) {
            const size_t block = k / s->block;
            const double sub = l->sub ? (double)l->sub[k / s->group] : 1;
            const double ws = (double)l->scale.stored[block] * sub;
            const double g = (ws > 0) - (ws < 0);
            double wanted =
                (double)before[k] - 0.01 * gap * g * ((gradient[k] > 0) - (gradient[k] < 0));
            wanted = fmin(fmax(wanted, (double)s->low - gap / 2), (double)s->high + gap / 2);
            expect_near(l->code.x[k], wanted, 10 * fmax(fabs(wanted), 1));
        }
        nb_latent_destroy(l);
    }
}

static void a_team_gives_the_same_bits(void **state)
{
    struct nb_team *alone, *three = team;
    assert_int_equal(nb_team_create(1, &alone), 0);
    EACH_TYPE
    {
        struct nb_latent *l[2];
        size_t n;
        for (int k = 0; k < 2; k++) {
            team = k ? alone : three;
            l[k] = searched((uint32_t)type);
            for (int step = 0; step < 3; step++)
                nb_latent_descend(l[k], team, gradient, &one_step);
            nb_latent_decode(l[k], team, decoded[k]);
        }
        team = three;
        assert_memory_equal(decoded[0], decoded[1], sizeof(decoded[0]));
        const float *a = nb_latent_state(l[0], &n), *b = nb_latent_state(l[1], &n);
        assert_memory_equal(a, b, n * sizeof(*a));
        nb_latent_destroy(l[0]);
        nb_latent_destroy(l[1]);
    }
    nb_team_destroy(alone);
}

static void every_level_gives_the_same_bits(void **state)
{
    for (int isa = NB_ISA_SCALAR; isa < NB_ISA_COUNT; isa++) {
        if (!nb_fits[isa] || !nb_kernels_of((enum nb_isa)isa))
            continue;
        for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
            struct nb_latent *l = searched(types[i]), *plain = searched(types[i]);
            size_t n;
            l->loops = nb_fits[isa]->latent;
            plain->loops = nb_fits[NB_ISA_SCALAR]->latent;
            for (int step = 0; step < 3; step++) {
                nb_latent_descend(l, team, gradient, &one_step);
                nb_latent_descend(plain, team, gradient, &one_step);
            }
            const float *a = nb_latent_state(l, &n), *b = nb_latent_state(plain, &n);
            assert_memory_equal(a, b, n * sizeof(*a));
            nb_latent_decode(l, team, decoded[0]);
            nb_latent_decode(plain, team, decoded[1]);
            assert_memory_equal(decoded[0], decoded[1], sizeof(decoded[0]));
            nb_latent_destroy(l);
            nb_latent_destroy(plain);
        }
    }
}

static void what_is_refused(void **state)
{
    struct nb_latent *l = NULL;
    memset(bytes[0], 0, sizeof(bytes[0]));
    assert_int_equal(nb_latent_create(team, NB_TYPE_F16, ROWS, COLS, bytes[0], w, &l), -ENOTSUP);
    assert_int_equal(nb_latent_create(team, NB_TYPE_Q4_K, ROWS, 288, bytes[0], w, &l), -EINVAL);
    assert_int_equal(nb_latent_create(team, NB_TYPE_Q4_0, 0, COLS, bytes[0], w, &l), -EINVAL);
    w[77] = NAN;
    assert_int_equal(nb_latent_create(team, NB_TYPE_Q4_0, ROWS, COLS, bytes[0], w, &l), -EDOM);
    w[77] = 0;
    bytes[0][1] = 0x7c; // an infinite scale
    assert_int_equal(nb_latent_create(team, NB_TYPE_Q4_0, ROWS, COLS, bytes[0], w, &l), -EDOM);
    assert_null(l);
    assert_int_equal(nb_latent_bytes(NB_TYPE_F16, ROWS, COLS), 0);
    assert_true(nb_latent_bytes(NB_TYPE_Q4_0, ROWS, COLS) > 12 * WEIGHTS);
    nb_latent_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(begins_with_its_bytes),
        cmocka_unit_test(keeps_codes_that_are_not_nearest),
        cmocka_unit_test(moves_to_bytes_of_its_own),
        cmocka_unit_test(scales_have_their_derivatives),
        cmocka_unit_test(codes_go_straight_through),
        cmocka_unit_test(a_team_gives_the_same_bits),
        cmocka_unit_test(every_level_gives_the_same_bits),
        cmocka_unit_test(what_is_refused),
    };
    return cmocka_run_group_tests(tests, fill, finish);
}
