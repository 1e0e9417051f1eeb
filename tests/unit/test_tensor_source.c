// Sources: rows in table form from pieces, types and orders that differ from the files'; a GGUF in
// parts is the model that it was split from, and parts that do not belong together are refused.
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

static int new_memfd(void)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

// ---- Rows

enum { COLS = 3, HEAD = 4, ROWS = 8 };

// Row r of the file has r * 10 + column.
static void fill(float *x, uint16_t *half, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        const unsigned row = i / COLS;
        x[i] = (float)(row * 10 + i % COLS);
        half[i] = nb_f32_to_f16(x[i]);
    }
}

static void read_rows(const struct nb_source *s, const struct nb_source_tensor *t,
                      const float *wanted)
{
    struct nb_error error = {""};
    float got[ROWS * COLS];
    for (unsigned first = 0; first < ROWS; first++)
        for (unsigned n = 1; first + n <= ROWS; n++) {
            assert_int_equal(nb_source_read(s, t, first, n, got, &error), 0);
            assert_memory_equal(got, wanted + first * COLS, n * COLS * sizeof(float));
        }
}

// In two pieces, the second before the first in the file, as F16 that is read as F32, plus one.
static void test_pieces(void **unused)
{
    float x[ROWS * COLS];
    uint16_t half[ROWS * COLS];
    fill(x, half, ROWS * COLS);
    struct nb_source_file file = {"f", new_memfd()};
    const size_t part = sizeof(half) / 2;
    assert_int_equal(pwrite(file.fd, half + ROWS * COLS / 2, part, 7), part);
    assert_int_equal(pwrite(file.fd, half, part, 7 + (off_t)part), part);
    struct nb_piece pieces[] = {{.offset = 7 + part}, {.offset = 7}};
    struct nb_source_tensor t = {.type = NB_TYPE_F32,
                                 .n_dims = 3,
                                 .dims = {COLS, ROWS / 2, 2, 1},
                                 .pieces = pieces,
                                 .n_pieces = 2,
                                 .stored = NB_TYPE_F16,
                                 .add = 1};
    const struct nb_source s = {.files = &file, .n_files = 1};
    for (unsigned i = 0; i < ROWS * COLS; i++)
        x[i] += 1;
    read_rows(&s, &t, x);
    assert_ptr_equal(nb_source_piece(&t, 3), &pieces[0]);
    assert_ptr_equal(nb_source_piece(&t, 4), &pieces[1]);
    struct nb_error error = {""};
    float got[COLS];
    pieces[0].name = (struct nb_str){"short", 5};
    assert_int_equal(ftruncate(file.fd, 7 + (off_t)part + 4), 0);
    assert_int_equal(nb_source_read(&s, &t, 0, 1, got, &error), -EINVAL);
    assert_non_null(strstr(error.text, "tensor short at byte"));
    close(file.fd);
}

// Two heads of four rows: rotary pairs (i, i + 2) become neighbours.
static void test_heads(void **unused)
{
    static const unsigned order[ROWS] = {0, 2, 1, 3, 4, 6, 5, 7};
    float x[ROWS * COLS], wanted[ROWS * COLS];
    uint16_t half[ROWS * COLS];
    fill(x, half, ROWS * COLS);
    const struct nb_piece piece = {.data = x};
    const struct nb_source_tensor t = {.type = NB_TYPE_F32,
                                       .n_dims = 2,
                                       .dims = {COLS, ROWS, 1, 1},
                                       .pieces = &piece,
                                       .n_pieces = 1,
                                       .stored = NB_TYPE_F32,
                                       .heads = ROWS / HEAD};
    const struct nb_source s = {.n_files = 0};
    for (unsigned r = 0; r < ROWS; r++)
        memcpy(wanted + r * COLS, x + order[r] * COLS, COLS * sizeof(float));
    read_rows(&s, &t, wanted);
}

// ---- Parts

struct part {
    uint32_t number, count, tensors; // as its metadata says
    const char *names;               // of its tensors, a letter each
    const char *architecture;        // NULL: it does not say
};

static int write_part(const struct part *p)
{
    static const char *const keys[] = {"split.no", "split.count", "split.tensors.count"};
    const uint32_t values[] = {p->number, p->count, p->tensors};
    struct nb_gguf_writer *w;
    int fd = new_memfd();
    assert_int_equal(nb_gguf_writer_create(&w), 0);
    if (p->architecture)
        assert_int_equal(nb_gguf_put_str(w, "general.architecture",
                                         (struct nb_str){p->architecture, strlen(p->architecture)}),
                         0);
    for (unsigned i = 0; i < 3 && p->count; i++)
        assert_int_equal(nb_gguf_put(w, keys[i], NB_GGUF_U32, &values[i]), 0);
    const uint64_t dims[] = {2, 3};
    for (const char *n = p->names; *n; n++)
        assert_int_equal(nb_gguf_add_tensor(w, (char[]){*n, 0}, NB_TYPE_F32, 2, dims), 0);
    assert_int_equal(nb_gguf_begin(w, fd), 0);
    for (const char *n = p->names; *n; n++)
        for (unsigned i = 0; i < 6; i++) {
            float x = (float)(*n * 16) + (float)i;
            assert_int_equal(nb_gguf_write(w, &x, sizeof(x)), 0);
        }
    assert_int_equal(nb_gguf_end(w), 0);
    nb_gguf_writer_destroy(w);
    return fd;
}

#define PARTS_MAX 3

static int open_parts(const struct part *parts, struct nb_source_file *files,
                      struct nb_source **ret, struct nb_error *error)
{
    static char names[PARTS_MAX][32];
    uint32_t n = 0;
    for (; n < PARTS_MAX && parts[n].names; n++) {
        snprintf(names[n], sizeof(names[n]), "m-%05u-of-00003.gguf", n + 1);
        files[n] = (struct nb_source_file){names[n], write_part(&parts[n])};
    }
    *error->text = 0;
    int rc = nb_source_open_gguf(files, n, ret, error);
    for (uint32_t i = 0; i < n && rc < 0; i++)
        close(files[i].fd);
    return rc;
}

// The image's bytes.
static uint8_t *pack(const struct nb_source *s, uint64_t *ret_bytes)
{
    struct nb_error error = {""};
    int fd = new_memfd();
    if (nb_image_pack(s, fd, NULL, ret_bytes, &error) != 0)
        fail_msg("%s", error.text);
    uint8_t *bytes = malloc(*ret_bytes);
    assert_non_null(bytes);
    assert_int_equal(pread(fd, bytes, *ret_bytes, 0), *ret_bytes);
    close(fd);
    return bytes;
}

static void test_parts(void **unused)
{
    static const struct part parts[] = {
        {0, 3, 4, "ab", "llama"}, {1, 3, 4, "c", NULL}, {2, 3, 4, "d", "llama"}};
    static const struct part whole[PARTS_MAX] = {{.names = "abcd", .architecture = "llama"}};
    struct nb_source_file files[PARTS_MAX], file[PARTS_MAX];
    struct nb_source *s = NULL, *one = NULL;
    struct nb_error error;
    uint64_t bytes, expected;
    assert_int_equal(open_parts(parts, files, &s, &error), 0);
    assert_int_equal(open_parts(whole, file, &one, &error), 0);
    uint8_t *image = pack(s, &bytes), *wanted = pack(one, &expected);
    assert_int_equal(bytes, expected);
    assert_memory_equal(image, wanted, bytes);
    free(image);
    free(wanted);
    nb_source_close(s);
    nb_source_close(one);
    for (unsigned i = 0; i < PARTS_MAX; i++)
        close(files[i].fd);
    close(file[0].fd);
}

static void test_broken_parts(void **unused)
{
    static const struct {
        struct part parts[PARTS_MAX];
        const char *says[2];
    } broken[] = {
        {{{0, 3, 2, "a", "llama"}}, {"one of 3 parts", "-00001-of-00003.gguf"}},
        {{{0, 3, 2, "a", "llama"}, {1, 3, 2, "b", NULL}},
         {"m-00001-of-00003.gguf: ", "a part of a model of 3 parts, and this one has 2"}},
        {{{1, 2, 2, "a", "llama"}, {0, 2, 2, "b", NULL}},
         {"m-00001-of-00003.gguf: ", "part 2 by its metadata and 1 by its name"}},
        {{{0, 2, 2, "a", "llama"}, {1, 2, 3, "b", NULL}},
         {"m-00002-of-00003.gguf: ", "another model than m-00001-of-00003.gguf"}},
        {{{0, 2, 2, "a", "llama"}, {1, 2, 2, "b", "qwen2"}},
         {"m-00002-of-00003.gguf: ", "another model"}},
        {{{0, 2, 3, "a", "llama"}, {1, 2, 3, "b", NULL}},
         {"m-00001-of-00003.gguf: ", "3 tensors by its metadata and 2 in its parts"}},
        {{{0, 2, 2, "a", "llama"}, {1, 2, 2, "a", NULL}}, {"tensor a comes twice", "one model"}},
        {{{0, 2, 2, "a", "llama"}, {.names = "b"}},
         {"m-00002-of-00003.gguf: ", "it is no part of a model"}},
    };
    for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
        struct nb_source_file files[PARTS_MAX];
        struct nb_source *s = NULL;
        struct nb_error error;
        assert_int_equal(open_parts(broken[i].parts, files, &s, &error), -EINVAL);
        assert_null(s);
        for (unsigned k = 0; k < 2; k++)
            if (!strstr(error.text, broken[i].says[k]))
                fail_msg("%zu: \"%s\" does not say \"%s\"", i, error.text, broken[i].says[k]);
    }
}

// A part's damage is told with its name.
static void test_damage(void **unused)
{
    static const struct part parts[PARTS_MAX] = {{0, 2, 2, "a", "llama"}, {1, 2, 2, "b", NULL}};
    struct nb_source_file files[PARTS_MAX];
    struct nb_source *s;
    struct nb_error error;
    uint64_t bytes;
    const uint32_t nan = 0x7fc00000, zeros[6] = {0};
    assert_int_equal(open_parts(parts, files, &s, &error), 0);
    off_t at = (off_t)s->tensors[1].pieces[0].offset;
    int fd = new_memfd();
    assert_int_equal(pwrite(files[1].fd, &nan, 4, at + 12), 4);
    assert_int_equal(nb_image_pack(s, fd, NULL, &bytes, &error), -EINVAL);
    assert_string_equal(error.text,
                        "m-00002-of-00003.gguf: tensor b (F32) has a weight that is NaN "
                        "(row 1, element 1): the file is damaged, fetch or convert it again");
    assert_int_equal(pwrite(files[1].fd, zeros, sizeof(zeros), at), sizeof(zeros));
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(nb_image_pack(s, fd, NULL, &bytes, &error), -EINVAL);
    assert_non_null(
        strstr(error.text, "m-00002-of-00003.gguf: the file is zero from tensor b to its end"));
    nb_source_close(s);
    close(files[0].fd);
    close(files[1].fd);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces), cmocka_unit_test(test_heads),
        cmocka_unit_test(test_parts),  cmocka_unit_test(test_broken_parts),
        cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests_name("source", tests, NULL, NULL);
}
