// Types: names, and the answers of the encoders to input that python leaves open. What python
// defines is in the oracle.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>

#include "tensor/type.h"

static void test_names(void **unused)
{
    assert_string_equal(nb_type_name(NB_TYPE_Q2_0), "Q2_0");
    assert_string_equal(nb_type_name(16), "IQ2_XXS");
    assert_string_equal(nb_type_name(4000000000u), "unknown");
    assert_null(nb_type_info(16));
    assert_null(nb_type_info(4000000000u));
    assert_ptr_equal(nb_type_by_name("q4_k"), nb_type_info(NB_TYPE_Q4_K));
    assert_null(nb_type_by_name("Q9_9"));
    for (uint32_t t = 0; t < 64; t++)
        if (nb_type_info(t))
            assert_string_equal(nb_type_info(t)->name, nb_type_name(t));
}

// Every half is a float and back; NaNs stay NaNs.
static void test_halves(void **unused)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float f = nb_f16_to_f32((uint16_t)h);
        if (isnan(f))
            assert_true(isnan(nb_f16_to_f32(nb_f32_to_f16(f))));
        else
            assert_int_equal(nb_f32_to_f16(f), h);
        float b = nb_bf16_to_f32((uint16_t)h);
        assert_true(isnan(b) ? isnan(nb_bf16_to_f32(nb_f32_to_bf16(b))) : nb_f32_to_bf16(b) == h);
    }
    assert_int_equal(nb_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(nb_f32_to_f16(65520), 0x7c00);
    assert_int_equal(nb_f32_to_f16(0x1p-25f), 0); // a tie, to even
    assert_int_equal(nb_f32_to_f16(0x1.000002p-25f), 1);
}

static const uint32_t encoded[] = {NB_TYPE_Q4_0, NB_TYPE_Q4_1, NB_TYPE_Q5_0, NB_TYPE_Q5_1,
                                   NB_TYPE_Q8_0};

static void assert_decodes_to_nan(const float *x)
{
    uint8_t block[64];
    float back[32];
    for (unsigned t = 0; t < 5; t++) {
        const struct nb_type_info *info = nb_type_info(encoded[t]);
        info->quantize(x, block, 1);
        info->dequantize(block, back, 1);
        for (unsigned i = 0; i < 32; i++)
            assert_true(isnan(back[i]));
    }
}

static void test_not_finite(void **unused)
{
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (unsigned b = 0; b < 4; b++)
        for (unsigned at = 0; at < 32; at++) {
            float x[32] = {1, -2, 3};
            x[at] = bad[b];
            assert_decodes_to_nan(x);
        }
}

// Finite weights whose range overflows: an infinite scale, codes of a defined value, and no trap.
static void test_overflow(void **unused)
{
    float x[32] = {3e38f, -3e38f};
    uint8_t block[64];
    for (unsigned t = 0; t < 5; t++) {
        const struct nb_type_info *info = nb_type_info(encoded[t]);
        info->quantize(x, block, 1);
        assert_int_equal(block[1] & 0x7c, 0x7c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_halves),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
