// Adapters of a model: rows in table form, whoever asks for them; and whatever bytes an adapter's
// file has, it is taken or refused with a sentence.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tensor/adapters.h"
#include "tensor/gguf_write.h"
#include "tensor/type.h"

enum { ROWS = 6, COLS = 8, RANK = 2, FILE_ROOM = 4096 };
#define MATRIX "blk.0.attn_q.weight"
#define TIED   "token_embd.weight"

static float number(uint32_t seed, uint32_t i)
{
    return (float)((i * 37 + seed * 11) % 29) / 16 - 0.8f;
}

// One tensor of [rows][cols].
static void put(struct nb_gguf_writer *w, uint32_t seed, uint32_t n)
{
    float x[ROWS * COLS];
    for (uint32_t i = 0; i < n; i++)
        x[i] = number(seed, i);
    assert_int_equal(nb_gguf_write(w, x, n * sizeof(*x)), 0);
}

static void put_word(struct nb_gguf_writer *w, const char *key, const char *word)
{
    assert_int_equal(nb_gguf_put_str(w, key, (struct nb_str){word, strlen(word)}), 0);
}

static struct nb_gguf_writer *begin(int *ret_fd)
{
    struct nb_gguf_writer *w;
    *ret_fd = memfd_create("model", MFD_CLOEXEC);
    assert_int_equal(nb_gguf_writer_create(&w), 0);
    put_word(w, "general.architecture", "llama");
    return w;
}

static int make_base(void)
{
    static const uint64_t dims[] = {COLS, ROWS};
    int fd;
    struct nb_gguf_writer *w = begin(&fd);
    assert_int_equal(nb_gguf_add_tensor(w, MATRIX, NB_TYPE_F32, 2, dims), 0);
    assert_int_equal(nb_gguf_add_tensor(w, TIED, NB_TYPE_F32, 2, dims), 0);
    assert_int_equal(nb_gguf_begin(w, fd), 0);
    put(w, 1, ROWS * COLS);
    put(w, 2, ROWS * COLS);
    assert_int_equal(nb_gguf_end(w), 0);
    nb_gguf_writer_destroy(w);
    return fd;
}

static int make_adapter(void)
{
    static const uint64_t a[] = {COLS, RANK}, b[] = {RANK, ROWS};
    const float alpha = 3;
    int fd;
    struct nb_gguf_writer *w = begin(&fd);
    put_word(w, "general.type", "adapter");
    put_word(w, "adapter.type", "lora");
    assert_int_equal(nb_gguf_put(w, "adapter.lora.alpha", NB_GGUF_F32, &alpha), 0);
    assert_int_equal(nb_gguf_add_tensor(w, MATRIX ".lora_a", NB_TYPE_F32, 2, a), 0);
    assert_int_equal(nb_gguf_add_tensor(w, MATRIX ".lora_b", NB_TYPE_F32, 2, b), 0);
    assert_int_equal(nb_gguf_begin(w, fd), 0);
    put(w, 3, RANK * COLS);
    put(w, 4, ROWS * RANK);
    assert_int_equal(nb_gguf_end(w), 0);
    nb_gguf_writer_destroy(w);
    return fd;
}

static struct nb_source *open_base(int fd)
{
    const struct nb_source_file file = {"model.gguf", fd};
    struct nb_error error = {""};
    struct nb_source *s;
    assert_int_equal(nb_source_open_gguf(&file, 1, &s, &error), 0);
    return s;
}

// Element (r, c) of the matrix with an adapter under the sum of some scales.
static double adapted(uint32_t r, uint32_t c, double scales)
{
    double sum = 0;
    for (uint32_t k = 0; k < RANK; k++)
        sum += (double)number(4, r * RANK + k) * (double)number(3, k * COLS + c);
    return (double)number(1, r * COLS + c) + scales * 3 / RANK * sum;
}

static void expect_rows(const struct nb_source *s, const struct nb_source_tensor *t, double scales)
{
    struct nb_error error = {""};
    float x[ROWS * COLS];
    for (uint32_t first = 0; first < ROWS; first++)
        for (uint32_t n = 1; first + n <= ROWS; n++) {
            assert_int_equal(nb_source_read(s, t, first, n, x, &error), 0);
            for (uint32_t i = 0; i < n * COLS; i++) {
                const double wanted = adapted(first + i / COLS, i % COLS, scales);
                assert_true(fabs((double)x[i] - wanted) < 1e-5);
            }
        }
}

static void rows_are_adapted(void **unused)
{
    const int base = make_base(), adapter = make_adapter();
    const struct nb_source_file two[] = {{"adapter/0.5/a.gguf", adapter},
                                         {"adapter/-2/1/a.gguf", adapter}};
    struct nb_error error = {""};
    float x[ROWS * COLS];
    struct nb_source *s = open_base(base);
    assert_true(nb_is_adapter_file(&two[0]));
    assert_int_equal(nb_adapters_add(s, two, 2, &error), 0);
    expect_rows(s, &s->tensors[0], -1.5);
    // A list of his own, as whoever folds has one, and a tensor that is repeated.
    const struct nb_source_tensor own = s->tensors[0];
    expect_rows(s, &own, -1.5);
    assert_int_equal(nb_source_repeat(s, TIED, "output.weight"), 0);
    assert_int_equal(nb_source_read(s, &s->tensors[2], 0, ROWS, x, &error), 0);
    for (uint32_t i = 0; i < ROWS * COLS; i++)
        assert_true(x[i] == number(2, i));
    nb_source_close(s);
    close(base);
    close(adapter);
}

static void any_bytes(void **unused)
{
    const int base = make_base(), adapter = make_adapter();
    uint8_t whole[FILE_ROOM], bytes[FILE_ROOM];
    const ssize_t size = pread(adapter, whole, sizeof(whole), 0);
    uint64_t state = 1;
    uint32_t taken = 0;
    assert_true(size > 0 && size < FILE_ROOM);
    for (uint32_t i = 0; i < 20000; i++) {
        const struct nb_source_file file = {"adapter/1/a.gguf", memfd_create("a", MFD_CLOEXEC)};
        struct nb_error error = {""};
        float x[ROWS * COLS];
        struct nb_source *s = open_base(base);
        memcpy(bytes, whole, (size_t)size);
        for (uint32_t j = 0; j <= i % 3; j++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            bytes[(state >> 32) % (uint64_t)size] = (uint8_t)(state >> 56);
        }
        const size_t len = (size_t)(i % 5 ? size : 1 + (ssize_t)(state >> 40) % size);
        assert_int_equal(write(file.fd, bytes, len), len);
        const int rc = nb_adapters_add(s, &file, 1, &error);
        assert_true(rc == 0 || *error.text); // a name in it may be of any bytes
        if (rc == 0)
            assert_int_equal(nb_source_read(s, &s->tensors[0], 0, ROWS, x, &error), 0);
        taken += rc == 0;
        nb_source_close(s);
        close(file.fd);
    }
    print_message("%u of 20000 were taken\n", taken);
    assert_true(taken > 1000 && taken < 19000);
    close(base);
    close(adapter);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_are_adapted),
                                       cmocka_unit_test(any_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
