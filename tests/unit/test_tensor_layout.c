// Packed layouts: lossless for any bits, decoded as the scalar formats decode, of the promised size
// and shape.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>
#include <errno.h>

#include "tensor/block.h"

static const uint32_t types[] = {
    NB_TYPE_F32,  NB_TYPE_F16,    NB_TYPE_BF16,   NB_TYPE_Q4_0, NB_TYPE_Q4_1, NB_TYPE_Q5_0,
    NB_TYPE_Q5_1, NB_TYPE_Q8_0,   NB_TYPE_Q2_K,   NB_TYPE_Q3_K, NB_TYPE_Q4_K, NB_TYPE_Q5_K,
    NB_TYPE_Q6_K, NB_TYPE_IQ4_NL, NB_TYPE_IQ4_XS, NB_TYPE_Q2_0, NB_TYPE_INT8, NB_TYPE_NF4,
};

#define N_TYPES (sizeof(types) / sizeof(types[0]))

// A matrix in file order and packed.
struct matrix {
    const struct nb_type_info *info;
    struct nb_packed packed;
    size_t row_bytes;
    uint8_t *file, *data;
};

static void matrix_init(struct matrix *m, uint32_t type, uint32_t rows, uint32_t cols)
{
    m->info = nb_type_info(type);
    assert_int_equal(nb_packed_init(&m->packed, type, rows, cols), 0);
    m->row_bytes = cols / m->info->block * m->info->bytes;
    m->file = calloc(rows, m->row_bytes);
    m->data = malloc(nb_packed_bytes(&m->packed));
    assert_true(m->file && m->data);
    m->packed.data = m->data;
}

static void matrix_finish(struct matrix *m)
{
    free(m->file);
    free(m->data);
}

static uint64_t state = 1;

static uint8_t random_byte(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint8_t)(state >> 56);
}

static void pack_all(struct matrix *m)
{
    memset(m->data, 0xa5, nb_packed_bytes(&m->packed));
    nb_layout_pack(&m->packed, m->file, m->data, 0, (m->packed.rows + 15) / 16);
}

static void assert_lossless(struct matrix *m)
{
    uint8_t *row = malloc(m->row_bytes);
    assert_non_null(row);
    pack_all(m);
    for (uint32_t r = 0; r < m->packed.rows; r++) {
        memset(row, 0x5a, m->row_bytes);
        nb_layout_unpack_row(&m->packed, r, row);
        assert_memory_equal(row, m->file + r * m->row_bytes, m->row_bytes);
    }
    free(row);
}

static void test_lossless_random(void **unused)
{
    for (unsigned t = 0; t < N_TYPES; t++)
        for (uint32_t rows = 1; rows < 40; rows += 15) {
            struct matrix m;
            matrix_init(&m, types[t], rows, 768);
            for (size_t i = 0; i < rows * m.row_bytes; i++)
                m.file[i] = random_byte();
            assert_lossless(&m);
            matrix_finish(&m);
        }
}

// Each bit of a block alone, set among zeros and clear among ones: no bit of any type is lost,
// moved or copied.
static void test_lossless_each_bit(void **unused)
{
    for (unsigned t = 0; t < N_TYPES; t++) {
        struct matrix m;
        matrix_init(&m, types[t], 8 * nb_type_info(types[t])->bytes, nb_type_info(types[t])->block);
        for (int fill = 0; fill < 256; fill += 255) {
            memset(m.file, fill, m.packed.rows * m.row_bytes);
            for (uint32_t bit = 0; bit < m.packed.rows; bit++)
                m.file[bit * m.row_bytes + bit / 8] ^= (uint8_t)(1 << bit % 8);
            assert_lossless(&m);
        }
        matrix_finish(&m);
    }
}

static void assert_same_floats(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(a[i] != a[i] && b[i] != b[i]))
            assert_memory_equal(&a[i], &b[i], sizeof(float));
}

// A row decoded out of the planes is the row decoded from the file, NaN and infinite scales
// included.
static void test_decode_row(void **unused)
{
    float packed[768], file[768];
    for (unsigned t = 0; t < N_TYPES; t++) {
        struct matrix m;
        matrix_init(&m, types[t], 37, 768);
        for (size_t i = 0; i < 37 * m.row_bytes; i++)
            m.file[i] = random_byte();
        pack_all(&m);
        for (uint32_t r = 0; r < 37; r++) {
            nb_layout_dequantize_row(&m.packed, r, packed);
            m.info->dequantize(m.file + r * m.row_bytes, file, 768 / m.info->block);
            assert_same_floats(packed, file, 768);
        }
        matrix_finish(&m);
    }
}

// The planes as layout.h writes them down, against a naive reading of that text.
static unsigned code_at(const struct nb_packed *p, unsigned r, unsigned k, unsigned bits, size_t at)
{
    unsigned span = 4 * bits, cell = k / 32, in = k % 32;
    const uint8_t *byte = p->data + at + cell * 64 * bits + in % span / 4 * 64 + r * 4 + in % 4;
    return *byte >> (in / span * bits) & ((1u << bits) - 1);
}

static void assert_planes(uint32_t type, unsigned low, unsigned high)
{
    struct matrix m;
    struct nb_block b;
    matrix_init(&m, type, 16, 512);
    for (size_t i = 0; i < 16 * m.row_bytes; i++)
        m.file[i] = random_byte();
    pack_all(&m);
    for (unsigned r = 0; r < 16; r++)
        for (unsigned k = 0; k < 512; k++) {
            unsigned block = k / m.info->block;
            nb_codec_of(type)->split(m.file + r * m.row_bytes + block * m.info->bytes, &b);
            unsigned code = code_at(&m.packed, r, k, low, 0);
            if (high)
                code |= code_at(&m.packed, r, k, high, m.packed.high) << low;
            assert_int_equal(code, b.code[k % m.info->block]);
            assert_int_equal(nb_load16(m.data + m.packed.scale + 2 * (block * 16 + r)), b.scale);
        }
    matrix_finish(&m);
}

static void test_planes(void **unused)
{
    assert_planes(NB_TYPE_Q8_0, 8, 0);
    assert_planes(NB_TYPE_Q4_1, 4, 0);
    assert_planes(NB_TYPE_Q5_0, 4, 1);
    assert_planes(NB_TYPE_Q6_K, 4, 2);
    assert_planes(NB_TYPE_Q2_0, 2, 0);
    assert_planes(NB_TYPE_Q3_K, 2, 1);
}

static void test_padding_is_zero(void **unused)
{
    for (unsigned t = 0; t < N_TYPES; t++) {
        struct matrix whole, part;
        matrix_init(&whole, types[t], 16, 256);
        matrix_init(&part, types[t], 5, 256);
        for (size_t i = 0; i < 5 * part.row_bytes; i++)
            whole.file[i] = part.file[i] = random_byte();
        // The file of `whole` is zero past row 5, and zero bits pack to zero bits but for the
        // stored XOR of Q8_0 and INT8 and the stored minus 32 of IQ4_XS.
        if (types[t] != NB_TYPE_Q8_0 && types[t] != NB_TYPE_INT8 && types[t] != NB_TYPE_IQ4_XS) {
            pack_all(&whole);
            pack_all(&part);
            assert_memory_equal(whole.data, part.data, nb_packed_bytes(&part.packed));
        }
        matrix_finish(&whole);
        matrix_finish(&part);
    }
}

static void test_size(void **unused)
{
    struct nb_packed p;
    for (unsigned t = 0; t < N_TYPES; t++) {
        const struct nb_type_info *info = nb_type_info(types[t]);
        assert_int_equal(nb_packed_init(&p, types[t], 1024, 2048), 0);
        size_t file = (size_t)1024 * 2048 / info->block * info->bytes;
        assert_true(nb_packed_bytes(&p) <= file + file * 3 / 100);
        assert_int_equal(p.stride % 64, 0);
    }
}

static void test_refusals(void **unused)
{
    struct nb_packed p = {.rows = 7};
    assert_int_equal(nb_packed_init(&p, NB_TYPE_Q4_K, 16, 576), -EINVAL);
    assert_int_equal(nb_packed_init(&p, NB_TYPE_Q4_0, 0, 32), -EINVAL);
    assert_int_equal(nb_packed_init(&p, NB_TYPE_Q4_0, 16, 0), -EINVAL);
    assert_int_equal(nb_packed_init(&p, 9, 16, 32), -EINVAL);
    assert_int_equal(nb_packed_init(&p, NB_TYPE_F32, UINT64_MAX, 32), -EOVERFLOW);
    assert_int_equal(nb_packed_init(&p, NB_TYPE_F32, 16, (uint64_t)1 << 40), -EOVERFLOW);
    assert_int_equal(p.rows, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lossless_random), cmocka_unit_test(test_lossless_each_bit),
        cmocka_unit_test(test_decode_row),      cmocka_unit_test(test_planes),
        cmocka_unit_test(test_padding_is_zero), cmocka_unit_test(test_size),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
