// Damaged files whose counts are all right: a NaN or an infinity in each place of each type, and
// data that is zero to the file's end; and what looks like these and is none of them.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tensor/gguf_write.h"
#include "tensor/fail.h"
#include "tensor/image.h"
#include "tests/support/pack.h"

enum { ROWS = 37, BLOCKS = 3 }; // of a matrix: two row groups and a part of one

// Where ggml's struct of a block has its fp16 d, and its m or dmin; -1: none.
static const struct place {
    uint32_t type;
    int scale, min;
} places[] = {
    {NB_TYPE_Q4_0, 0, -1},   {NB_TYPE_Q4_1, 0, 2},    {NB_TYPE_Q5_0, 0, -1},
    {NB_TYPE_Q5_1, 0, 2},    {NB_TYPE_Q8_0, 0, -1},   {NB_TYPE_Q2_K, 80, 82},
    {NB_TYPE_Q3_K, 108, -1}, {NB_TYPE_Q4_K, 0, 2},    {NB_TYPE_Q5_K, 0, 2},
    {NB_TYPE_Q6_K, 208, -1}, {NB_TYPE_IQ4_NL, 0, -1}, {NB_TYPE_IQ4_XS, 0, -1},
    {NB_TYPE_Q2_0, 0, -1},   {NB_TYPE_F32, 0, -1},    {NB_TYPE_F16, 0, -1},
    {NB_TYPE_BF16, 0, -1},
};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

// +inf, -inf, NaN of both signs, quiet and not; then numbers near them.
static const struct {
    uint32_t half, bfloat, single;
    const char *says; // NULL: it is a number
} values[] = {
    {0x7c00, 0x7f80, 0x7f800000, "infinite"}, {0xfc00, 0xff80, 0xff800000, "infinite"},
    {0x7e00, 0x7fc0, 0x7fc00000, "NaN"},      {0xfe01, 0xffc1, 0xffc00001, "NaN"},
    {0x7c01, 0x7f81, 0x7f800001, "NaN"},      {0x7bff, 0x7f7f, 0x7f7fffff, NULL},
    {0xfbff, 0xff7f, 0xff7fffff, NULL},       {0x0001, 0x0001, 0x00000001, NULL},
    {0x8000, 0x8000, 0x80000000, NULL},
};

struct tensor {
    const char *name;
    uint32_t type, n_dims;
    uint64_t dims[3];
    uint64_t zeros; // bytes at its end; the others are 0x11
};

static uint64_t bytes_of(const struct tensor *t)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    uint64_t n = t->dims[0] / info->block * info->bytes;
    for (uint32_t d = 1; d < t->n_dims; d++)
        n *= t->dims[d];
    return n;
}

// The file, and where each tensor's data begins.
static int make_file(const struct tensor *tensors, unsigned n, uint64_t ret_offsets[])
{
    struct nb_gguf_writer *w;
    struct nb_error error = {""};
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(nb_gguf_writer_create(&w), 0);
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(nb_gguf_add_tensor(w, tensors[i].name, tensors[i].type, tensors[i].n_dims,
                                            tensors[i].dims),
                         0);
    assert_int_equal(nb_gguf_begin(w, fd), 0);
    for (unsigned i = 0; i < n; i++) {
        uint64_t len = bytes_of(&tensors[i]);
        uint8_t *bytes = malloc(len);
        assert_non_null(bytes);
        memset(bytes, 0x11, len - tensors[i].zeros);
        memset(bytes + len - tensors[i].zeros, 0, tensors[i].zeros);
        assert_int_equal(nb_gguf_write(w, bytes, len), 0);
        free(bytes);
    }
    assert_int_equal(nb_gguf_end(w), 0);
    nb_gguf_writer_destroy(w);
    struct nb_gguf *g;
    assert_int_equal(nb_gguf_open(fd, &g, &error), 0);
    for (unsigned i = 0; i < n; i++)
        ret_offsets[i] = nb_gguf_tensor(g, i)->offset;
    nb_gguf_close(g);
    return fd;
}

// What packing says; `error` is its sentence.
static int pack(int file, bool zeros, struct nb_error *error)
{
    const struct nb_pack_options options = {.zeros = zeros};
    uint64_t bytes = 77;
    int image = memfd_create("image", MFD_CLOEXEC);
    assert_true(image >= 0);
    *error->text = 0;
    int rc = test_pack(file, image, &options, &bytes, error);
    assert_true(rc >= 0 ? bytes > 77 : bytes == 77);
    assert_true(rc >= 0 || !strchr(error->text, '\n'));
    close(image);
    return rc;
}

static void assert_says(const char *error, const char *what)
{
    if (!strstr(error, what))
        fail_msg("\"%s\" does not say \"%s\"", error, what);
}

// One float of the file is made that value; packing must name its place, and nothing else.
static void try_value(int file, uint64_t at, const struct nb_type_info *info, size_t value,
                      const char *where)
{
    const bool bfloat = info->type == NB_TYPE_BF16, single = info->type == NB_TYPE_F32;
    uint32_t was = 0, now = single   ? values[value].single
                            : bfloat ? values[value].bfloat
                                     : values[value].half;
    size_t width = single ? 4 : 2;
    struct nb_error error;
    assert_int_equal(pread(file, &was, width, (off_t)at), width);
    assert_int_equal(pwrite(file, &now, width, (off_t)at), width);
    int rc = pack(file, false, &error);
    if (values[value].says) {
        assert_int_equal(rc, -EINVAL);
        assert_says(error.text, where);
        assert_says(error.text, values[value].says);
        assert_says(error.text, info->name);
    } else {
        assert_int_equal(rc, 0);
    }
    assert_int_equal(pwrite(file, &was, width, (off_t)at), width);
}

static void test_matrices(void **unused)
{
    for (size_t p = 0; p < COUNT(places); p++) {
        const struct nb_type_info *info = nb_type_info(places[p].type);
        // Of floats as many elements as take several vectors, and some behind them.
        const uint32_t blocks = info->block == 1 ? 53 : BLOCKS;
        const struct tensor tensors[] = {
            {"blk.0.attn_q.weight", info->type, 2, {blocks * (uint64_t)info->block, ROWS}, 0}};
        uint64_t offset;
        int file = make_file(tensors, 1, &offset);
        const uint32_t rows[] = {0, 15, 16, ROWS - 1}, at[] = {0, 1, blocks - 1};
        for (size_t v = 0; v < COUNT(values); v++)
            for (size_t i = 0; i < COUNT(rows) * COUNT(at); i++) {
                uint32_t row = rows[i / COUNT(at)], block = at[i % COUNT(at)];
                uint64_t start = offset + (row * blocks + block) * (uint64_t)info->bytes;
                char where[96];
                snprintf(where, sizeof(where), "(row %u, %s %u)", row,
                         info->block > 1 ? "block" : "element", block);
                try_value(file, start + (uint64_t)places[p].scale, info, v, where);
                if (places[p].min >= 0)
                    try_value(file, start + (uint64_t)places[p].min, info, v, where);
            }
        close(file);
    }
}

static void test_what_it_is(void **unused)
{
    const struct tensor tensors[] = {{"q", NB_TYPE_Q4_1, 2, {64, 20}, 0},
                                     {"f", NB_TYPE_F16, 2, {64, 20}, 0},
                                     {"e", NB_TYPE_Q8_0, 3, {64, 20, 3}, 0}};
    uint64_t offsets[3];
    struct nb_error error;
    const uint16_t nan = 0x7e00, infinite = 0xfc00;
    int file = make_file(tensors, 3, offsets);
    assert_int_equal(pack(file, false, &error), 0);
    assert_int_equal(pwrite(file, &nan, 2, (off_t)offsets[2] + ((2 * 20 + 17) * 2 + 1) * 34), 2);
    assert_int_equal(pack(file, false, &error), -EINVAL);
    assert_string_equal(error.text,
                        "tensor e (Q8_0) has a scale that is NaN (slice 2, row 17, block "
                        "1): the file is damaged, fetch or convert it again");
    assert_int_equal(pwrite(file, &infinite, 2, (off_t)offsets[1] + 6), 2);
    assert_int_equal(pack(file, true, &error), -EINVAL);
    assert_string_equal(error.text,
                        "tensor f (F16) has a weight that is infinite (row 0, element 3): "
                        "the file is damaged, fetch or convert it again");
    assert_int_equal(pwrite(file, &nan, 2, (off_t)offsets[0] + 40 * 5 + 22), 2);
    assert_int_equal(pack(file, false, &error), -EINVAL);
    assert_string_equal(error.text,
                        "tensor q (Q4_1) has a minimum that is NaN (row 5, block 1): the "
                        "file is damaged, fetch or convert it again");
    close(file);
}

// Norms, biases and rope's factors, of whatever type they are.
static void test_vectors(void **unused)
{
    static const uint32_t types[] = {NB_TYPE_F32, NB_TYPE_F16, NB_TYPE_BF16};
    for (size_t i = 0; i < COUNT(types); i++) {
        const struct nb_type_info *info = nb_type_info(types[i]);
        const struct tensor tensors[] = {{"blk.0.attn_norm.weight", types[i], 1, {67}, 0}};
        uint64_t offset;
        int file = make_file(tensors, 1, &offset);
        for (size_t v = 0; v < COUNT(values); v++)
            for (uint32_t k = 0; k < 67; k += 33) {
                char where[32];
                snprintf(where, sizeof(where), "(element %u)", k);
                try_value(file, offset + (uint64_t)k * info->bytes, info, v, where);
            }
        close(file);
    }
}

// ---- Zeros to the end

#define MATRIX(name, zeros)                                                                        \
    {                                                                                              \
        name, NB_TYPE_Q8_0, 2, {256, 64}, zeros                                                    \
    }
#define NORM(name, zeros)                                                                          \
    {                                                                                              \
        name, NB_TYPE_F32, 1, {256}, zeros                                                         \
    }

enum { ROW = 256 / 32 * 34, WHOLE = ROW * 64, VECTOR = 1024 };

static const struct {
    struct tensor tensors[4];
    const char *names; // NULL: it loads
} ends[] = {
    {{MATRIX("a", 0), MATRIX("b", 0), NORM("c", 0)}, NULL},
    // Somebody wrote what comes behind.
    {{MATRIX("a", 0), MATRIX("b", WHOLE), NORM("c", 0)}, NULL},
    {{NORM("a", VECTOR), MATRIX("b", WHOLE), NORM("c", VECTOR - 4)}, NULL},
    // Zeros from a tensor on, or from its middle; the last norm alone.
    {{MATRIX("a", 0), MATRIX("b", WHOLE), NORM("c", VECTOR)}, "b"},
    {{MATRIX("a", WHOLE), MATRIX("b", WHOLE), NORM("c", VECTOR)}, "a"},
    {{MATRIX("a", 0), MATRIX("b", WHOLE / 2 + 5), NORM("c", VECTOR)}, "b"},
    {{MATRIX("a", 0), MATRIX("b", 4200), NORM("c", VECTOR)}, "b"},
    {{MATRIX("a", 0), MATRIX("b", 0), NORM("c", VECTOR)}, "c"},
    {{MATRIX("a", 0), MATRIX("b", WHOLE - 40)}, "b"},
    {{MATRIX("a", 0), MATRIX("b", 5000)}, "b"},
    // Less than a page of zeros at the end of a matrix is no sign; whole rows are a padded
    // vocabulary, as long as most of it is there.
    {{MATRIX("a", 0), MATRIX("b", 4095)}, NULL},
    {{NORM("a", 0), MATRIX("b", 20 * ROW)}, NULL},
    {{NORM("a", 0), MATRIX("b", 20 * ROW + 33)}, NULL},
    {{NORM("a", 0), MATRIX("b", 33 * ROW)}, "b"},
    // Biases of zeros are common, at any place.
    {{MATRIX("a", 0), NORM("b", 0), NORM("c.bias", VECTOR)}, NULL},
    {{MATRIX("a", 0), NORM("c.bias", VECTOR), NORM("d.bias", VECTOR)}, NULL},
    {{MATRIX("a", 0), MATRIX("b", WHOLE), NORM("c.bias", VECTOR)}, "b"},
};

static void test_zeros_to_the_end(void **unused)
{
    for (size_t i = 0; i < COUNT(ends); i++) {
        unsigned n = 0;
        while (n < 4 && ends[i].tensors[n].name)
            n++;
        uint64_t offsets[4];
        struct nb_error error;
        char says[64];
        int file = make_file(ends[i].tensors, n, offsets);
        int rc = pack(file, false, &error);
        if (ends[i].names) {
            snprintf(says, sizeof(says), "zero from tensor %s to its end", ends[i].names);
            assert_int_equal(rc, -EINVAL);
            assert_says(error.text, says);
            assert_says(error.text, "--force");
            assert_int_equal(pack(file, true, &error), 1);
        } else {
            if (rc)
                fail_msg("file %zu: %s", i, error.text);
            assert_int_equal(pack(file, true, &error), 0);
        }
        close(file);
    }
}

// The second half of a longer file, at every cut of a page: the first tensor without data is named.
static void test_half_a_download(void **unused)
{
    struct tensor tensors[40];
    struct nb_error error;
    char names[40][16], says[64];
    uint64_t offsets[40], end;
    for (unsigned i = 0; i < 40; i++) {
        snprintf(names[i], sizeof(names[i]), "t%u", i);
        tensors[i] = (struct tensor)MATRIX(names[i], 0);
    }
    int file = make_file(tensors, 40, offsets);
    end = offsets[39] + WHOLE;
    for (uint64_t cut = (end - 4096) / 4096 * 4096; cut > offsets[0]; cut -= 4096) {
        const uint8_t zeros[8192] = {0};
        assert_int_equal(pwrite(file, zeros, end - cut < 8192 ? end - cut : 8192, (off_t)cut),
                         end - cut < 8192 ? end - cut : 8192);
        unsigned first = 0;
        while (first < 39 && offsets[first + 1] <= cut)
            first++;
        int rc = pack(file, false, &error);
        if (rc == 0 && first == 39) // whole rows of the last tensor by chance, or less than a page
            continue;
        assert_int_equal(rc, -EINVAL);
        snprintf(says, sizeof(says), "zero from tensor t%u ", first);
        if (!strstr(error.text, says)) { // the cut left all but a page of the first, or whole rows
            snprintf(says, sizeof(says), "zero from tensor t%u ", first + 1);
            assert_says(error.text, says);
            uint64_t kept = cut - offsets[first];
            assert_true(WHOLE - kept < 4096 || kept % ROW > ROW - 34 || kept % ROW == 0);
        }
    }
    close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matrices),        cmocka_unit_test(test_what_it_is),
        cmocka_unit_test(test_vectors),         cmocka_unit_test(test_zeros_to_the_end),
        cmocka_unit_test(test_half_a_download),
    };
    return cmocka_run_group_tests_name("damage", tests, NULL, NULL);
}
