// The GGUF reader and writer: what they read, and each thing that a hostile file may try.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tensor/gguf_write.h"
#include "tensor/fail.h"
#include "tensor/type.h"

#define STR(s) ((struct nb_str){(s), strlen(s)})

// A file under construction.
struct file {
    uint8_t data[8192];
    size_t len;
};

static void put(struct file *f, const void *data, size_t len)
{
    assert_true(len <= sizeof(f->data) - f->len);
    memcpy(f->data + f->len, data, len);
    f->len += len;
}

static void put32(struct file *f, uint32_t v)
{
    put(f, &v, sizeof(v));
}

static void put64(struct file *f, uint64_t v)
{
    put(f, &v, sizeof(v));
}

static void put_str(struct file *f, const char *s)
{
    put64(f, strlen(s));
    put(f, s, strlen(s));
}

static void put_head(struct file *f, uint32_t version, uint64_t tensors, uint64_t keys)
{
    f->len = 0;
    put(f, "GGUF", 4);
    put32(f, version);
    put64(f, tensors);
    put64(f, keys);
}

static void put_tensor(struct file *f, const char *name, uint32_t type, uint64_t cols,
                       uint64_t rows, uint64_t offset)
{
    put_str(f, name);
    put32(f, 2);
    put64(f, cols);
    put64(f, rows);
    put32(f, type);
    put64(f, offset);
}

static void put_data(struct file *f, size_t alignment, size_t len)
{
    static const uint8_t zeros[4096];
    put(f, zeros, (alignment - f->len % alignment) % alignment);
    put(f, zeros, len);
}

static int fd_of(const struct file *f, size_t len)
{
    int fd = memfd_create("gguf", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, f->data, len), len);
    return fd;
}

static int open_file(const struct file *f, size_t len, struct nb_gguf **ret, struct nb_error *error)
{
    int fd = fd_of(f, len);
    int rc = nb_gguf_open(fd, ret, error);
    close(fd);
    return rc;
}

static void assert_refused(const struct file *f, int code, const char *says)
{
    struct nb_gguf *untouched = (struct nb_gguf *)f, *g = untouched;
    struct nb_error error = {""};
    assert_int_equal(open_file(f, f->len, &g, &error), code);
    assert_ptr_equal(g, untouched);
    if (!strstr(error.text, says))
        fail_msg("\"%s\" does not say \"%s\"", error.text, says);
}

// Every kind of value, and two tensors.
static void put_valid(struct file *f)
{
    int8_t minus = -3;
    uint16_t u16 = 65535;
    float f32 = 0.5f;
    double f64 = -2.25;
    put_head(f, 3, 2, 11);
    put_str(f, "i8"), put32(f, NB_GGUF_I8), put(f, &minus, 1);
    put_str(f, "u16"), put32(f, NB_GGUF_U16), put(f, &u16, 2);
    put_str(f, "u64"), put32(f, NB_GGUF_U64), put64(f, UINT64_MAX);
    put_str(f, "f32"), put32(f, NB_GGUF_F32), put(f, &f32, 4);
    put_str(f, "f64"), put32(f, NB_GGUF_F64), put(f, &f64, 8);
    put_str(f, "yes"), put32(f, NB_GGUF_BOOL), put(f, "\1", 1);
    put_str(f, "text"), put32(f, NB_GGUF_STRING), put_str(f, "some text");
    put_str(f, "words"), put32(f, NB_GGUF_ARRAY), put32(f, NB_GGUF_STRING), put64(f, 3);
    put_str(f, "one"), put_str(f, ""), put_str(f, "three");
    put_str(f, "ints"), put32(f, NB_GGUF_ARRAY), put32(f, NB_GGUF_I8), put64(f, 2),
        put(f, "\5\377", 2);
    put_str(f, "floats"), put32(f, NB_GGUF_ARRAY), put32(f, NB_GGUF_F32), put64(f, 1),
        put(f, &f32, 4);
    put_str(f, "bools"), put32(f, NB_GGUF_ARRAY), put32(f, NB_GGUF_BOOL), put64(f, 2),
        put(f, "\0\1", 2);
    put_tensor(f, "a", NB_TYPE_Q4_0, 32, 2, 0);
    put_tensor(f, "b", NB_TYPE_F32, 4, 1, 64);
    put_data(f, 32, 80);
}

static void test_values(void **unused)
{
    struct file f;
    struct nb_gguf *g;
    struct nb_error error;
    put_valid(&f);
    assert_int_equal(open_file(&f, f.len, &g, &error), 0);

    uint64_t u = 1;
    double d;
    bool yes = false;
    struct nb_str s;
    assert_int_equal(nb_gguf_u64(g, "u16", &u), 0);
    assert_int_equal(u, 65535);
    assert_int_equal(nb_gguf_u64(g, "u64", &u), 0);
    assert_true(u == UINT64_MAX);
    assert_int_equal(nb_gguf_u64(g, "i8", &u), -EINVAL);
    assert_int_equal(nb_gguf_u64(g, "f32", &u), -EINVAL);
    assert_int_equal(nb_gguf_u64(g, "yes", &u), -EINVAL);
    assert_int_equal(nb_gguf_u64(g, "none", &u), -ENOENT);
    assert_true(u == UINT64_MAX);
    assert_int_equal(nb_gguf_f64(g, "f32", &d), 0);
    assert_true(d == 0.5);
    assert_int_equal(nb_gguf_f64(g, "f64", &d), 0);
    assert_true(d == -2.25);
    assert_int_equal(nb_gguf_bool(g, "yes", &yes), 0);
    assert_true(yes);
    assert_int_equal(nb_gguf_str(g, "text", &s), 0);
    assert_int_equal(s.len, 9);
    assert_memory_equal(s.data, "some text", 9);
    assert_int_equal(nb_gguf_str(g, "words", &s), -EINVAL);
    assert_int_equal(nb_gguf_n_keys(g), 11);
    nb_gguf_close(g);
}

static void test_numbers_of_any_type(void **unused)
{
    struct file f;
    struct nb_gguf *g;
    struct nb_error error;
    const float whole = 7, part = 7.5f, minus = -7, large = 0x1p53f;
    const double infinite = 1e300 * 1e300, nan = infinite - infinite;
    const float row[] = {3, -4, 0.25f};
    put_head(&f, 3, 0, 9);
    put_str(&f, "whole"), put32(&f, NB_GGUF_F32), put(&f, &whole, 4);
    put_str(&f, "part"), put32(&f, NB_GGUF_F32), put(&f, &part, 4);
    put_str(&f, "minus"), put32(&f, NB_GGUF_F32), put(&f, &minus, 4);
    put_str(&f, "large"), put32(&f, NB_GGUF_F32), put(&f, &large, 4);
    put_str(&f, "infinite"), put32(&f, NB_GGUF_F64), put(&f, &infinite, 8);
    put_str(&f, "nan"), put32(&f, NB_GGUF_F64), put(&f, &nan, 8);
    put_str(&f, "i64"), put32(&f, NB_GGUF_I64), put64(&f, (uint64_t)-5);
    put_str(&f, "u64"), put32(&f, NB_GGUF_U64), put64(&f, (uint64_t)1 << 63);
    put_str(&f, "row"), put32(&f, NB_GGUF_ARRAY), put32(&f, NB_GGUF_F32), put64(&f, 3),
        put(&f, row, 12);
    assert_int_equal(open_file(&f, f.len, &g, &error), 0);

    uint64_t u = 1;
    int64_t i = 1;
    double d = 0;
    static const char *const no_integers[] = {"part", "minus", "large", "infinite", "nan", "i64"};
    assert_int_equal(nb_gguf_u64(g, "whole", &u), 0);
    assert_int_equal(u, 7);
    for (size_t k = 0; k < sizeof(no_integers) / sizeof(no_integers[0]); k++)
        assert_int_equal(nb_gguf_u64(g, no_integers[k], &u), -EINVAL);
    assert_int_equal(nb_gguf_f64(g, "i64", &d), 0);
    assert_true(d == -5);
    assert_int_equal(nb_gguf_f64(g, "u64", &d), 0);
    assert_true(d == 0x1p63);
    assert_int_equal(nb_gguf_f64(g, "infinite", &d), 0);
    assert_true(d == infinite);
    assert_int_equal(nb_gguf_array_i64(g, "row", 1, &i), 0);
    assert_int_equal(i, -4);
    assert_int_equal(nb_gguf_array_i64(g, "row", 2, &i), -EINVAL);
    assert_int_equal(i, -4);
    nb_gguf_close(g);
}

static void test_arrays(void **unused)
{
    struct file f;
    struct nb_gguf *g;
    struct nb_error error;
    put_valid(&f);
    assert_int_equal(open_file(&f, f.len, &g, &error), 0);

    enum nb_gguf_type type;
    uint64_t n;
    int64_t i;
    double d;
    bool yes;
    struct nb_str s;
    assert_int_equal(nb_gguf_array(g, "words", &type, &n), 0);
    assert_int_equal(type, NB_GGUF_STRING);
    assert_int_equal(n, 3);
    assert_int_equal(nb_gguf_array_str(g, "words", 1, &s), 0);
    assert_int_equal(s.len, 0);
    assert_int_equal(nb_gguf_array_str(g, "words", 2, &s), 0);
    assert_int_equal(s.len, 5);
    assert_memory_equal(s.data, "three", 5);
    assert_int_equal(nb_gguf_array_str(g, "words", 3, &s), -EINVAL);
    assert_int_equal(nb_gguf_array_str(g, "ints", 0, &s), -EINVAL);
    assert_int_equal(nb_gguf_array_str(g, "text", 0, &s), -EINVAL);
    assert_int_equal(nb_gguf_array_i64(g, "ints", 1, &i), 0);
    assert_int_equal(i, -1);
    assert_int_equal(nb_gguf_array_f64(g, "floats", 0, &d), 0);
    assert_true(d == 0.5);
    assert_int_equal(nb_gguf_array_bool(g, "bools", 0, &yes), 0);
    assert_false(yes);
    assert_int_equal(nb_gguf_array_bool(g, "bools", 1, &yes), 0);
    assert_true(yes);
    assert_int_equal(nb_gguf_array_bool(g, "ints", 0, &yes), -EINVAL);
    assert_int_equal(nb_gguf_array_f64(g, "bools", 0, &d), -EINVAL);
    assert_int_equal(nb_gguf_array(g, "text", &type, &n), -EINVAL);
    nb_gguf_close(g);
}

static void test_tensors(void **unused)
{
    struct file f;
    struct nb_gguf *g, *metadata;
    struct nb_error error;
    size_t len;
    put_valid(&f);
    assert_int_equal(open_file(&f, f.len, &g, &error), 0);
    assert_int_equal(nb_gguf_n_tensors(g), 2);
    const struct nb_gguf_tensor *b = nb_gguf_find_tensor(g, "b");
    assert_ptr_equal(b, nb_gguf_tensor(g, 1));
    assert_int_equal(b->bytes, 16);
    assert_int_equal(b->offset, f.len - 16);
    assert_int_equal(b->dims[0], 4);
    assert_int_equal(b->dims[2], 1);
    assert_null(nb_gguf_find_tensor(g, "c"));

    const void *raw = nb_gguf_metadata(g, &len);
    assert_int_equal(nb_gguf_parse_metadata(raw, len, &metadata, &error), 0);
    assert_int_equal(nb_gguf_n_keys(metadata), 11);
    assert_int_equal(nb_gguf_n_tensors(metadata), 0);
    nb_gguf_close(metadata);
    assert_int_equal(nb_gguf_parse_metadata(raw, len - 1, &metadata, &error), -EINVAL);
    nb_gguf_close(g);
}

static void test_header_refusals(void **unused)
{
    struct file f;
    put_head(&f, 1, 0, 0);
    assert_refused(&f, -ENOTSUP, "version 1");
    put_head(&f, 4, 0, 0);
    assert_refused(&f, -ENOTSUP, "version 4");
    put_head(&f, 0x03000000, 0, 0);
    assert_refused(&f, -ENOTSUP, "big-endian");
    put_head(&f, 3, UINT64_MAX, 0);
    assert_refused(&f, -EFBIG, "tensors");
    put_head(&f, 3, 0, UINT64_MAX);
    assert_refused(&f, -EFBIG, "keys");
    put_head(&f, 3, 0, 1000);
    assert_refused(&f, -EINVAL, "truncated");
    put_head(&f, 3, 1000, 0);
    assert_refused(&f, -EINVAL, "truncated");
    put_head(&f, 3, 0, 0);
    f.data[0] = 'g';
    assert_refused(&f, -EINVAL, "not a GGUF file");
    f.len = 0;
    assert_refused(&f, -EINVAL, "truncated");
    int fds[2];
    struct nb_error error;
    struct nb_gguf *g;
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(nb_gguf_open(fds[0], &g, &error), -EINVAL);
    close(fds[0]);
    close(fds[1]);
}

static void put_one_key(struct file *f, const char *key, uint32_t type)
{
    put_head(f, 3, 0, 1);
    put_str(f, key);
    put32(f, type);
}

static void test_metadata_refusals(void **unused)
{
    struct file f;
    put_one_key(&f, "k", NB_GGUF_STRING), put64(&f, UINT64_MAX);
    assert_refused(&f, -EINVAL, "truncated");
    put_one_key(&f, "k", NB_GGUF_STRING), put64(&f, UINT64_MAX - 40);
    assert_refused(&f, -EINVAL, "truncated");
    put_one_key(&f, "k", 13), put64(&f, 0);
    assert_refused(&f, -EINVAL, "no such value type");
    put_one_key(&f, "k", NB_GGUF_BOOL), put(&f, "\2", 1);
    assert_refused(&f, -EINVAL, "truth value");
    put_one_key(&f, "k", NB_GGUF_ARRAY), put32(&f, NB_GGUF_ARRAY), put64(&f, 1), put64(&f, 0);
    assert_refused(&f, -ENOTSUP, "arrays of arrays");
    put_one_key(&f, "k", NB_GGUF_ARRAY), put32(&f, NB_GGUF_U64), put64(&f, (uint64_t)1 << 61);
    assert_refused(&f, -EINVAL, "truncated");
    put_one_key(&f, "k", NB_GGUF_ARRAY), put32(&f, NB_GGUF_STRING), put64(&f, UINT64_MAX);
    assert_refused(&f, -EINVAL, "truncated");
    put_one_key(&f, "k", NB_GGUF_ARRAY), put32(&f, NB_GGUF_STRING), put64(&f, 2),
        put_str(&f, "one");
    put32(&f, 0);
    assert_refused(&f, -EINVAL, "truncated");
    put_one_key(&f, "", NB_GGUF_U32), put32(&f, 0);
    assert_refused(&f, -EINVAL, "key 0");
    put_one_key(&f, "a\033[2J", NB_GGUF_U32), put32(&f, 0);
    assert_refused(&f, -EINVAL, "control characters");
    put_head(&f, 3, 0, 2);
    put_str(&f, "k"), put32(&f, NB_GGUF_U32), put32(&f, 0);
    put_str(&f, "k"), put32(&f, NB_GGUF_U32), put32(&f, 0);
    assert_refused(&f, -EINVAL, "key k comes twice");
}

static void test_alignment(void **unused)
{
    const uint32_t bad[] = {0, 3, 48, 1u << 21, 1u << 31};
    struct file f;
    for (unsigned i = 0; i < 5; i++) {
        put_one_key(&f, "general.alignment", NB_GGUF_U32), put32(&f, bad[i]);
        assert_refused(&f, -EINVAL, "general.alignment");
    }
    put_one_key(&f, "general.alignment", NB_GGUF_U64), put64(&f, 32);
    assert_refused(&f, -EINVAL, "general.alignment");
    struct nb_gguf *g;
    struct nb_error error;
    put_head(&f, 3, 1, 1);
    put_str(&f, "general.alignment"), put32(&f, NB_GGUF_U32), put32(&f, 256);
    put_tensor(&f, "a", NB_TYPE_F32, 4, 1, 256);
    put_data(&f, 256, 256 + 16);
    assert_int_equal(open_file(&f, f.len, &g, &error), 0);
    assert_int_equal(nb_gguf_tensor(g, 0)->offset, 512);
    nb_gguf_close(g);
}

static void put_one_tensor(struct file *f, uint32_t type, uint64_t cols, uint64_t rows,
                           uint64_t offset)
{
    put_head(f, 3, 1, 0);
    put_tensor(f, "w", type, cols, rows, offset);
    put_data(f, 32, 1024);
}

static void test_tensor_refusals(void **unused)
{
    struct file f;
    put_one_tensor(&f, NB_TYPE_F32, 4, 1, 7);
    assert_refused(&f, -EINVAL, "tensor w: offset 7 is not aligned");
    put_one_tensor(&f, NB_TYPE_F32, 257, 1, 0);
    assert_refused(&f, -EINVAL, "truncated: tensor w");
    put_one_tensor(&f, NB_TYPE_F32, 4, 1, 1024);
    assert_refused(&f, -EINVAL, "truncated: tensor w");
    put_one_tensor(&f, NB_TYPE_F32, 4, 1, UINT64_MAX - 31);
    assert_refused(&f, -EINVAL, "truncated: tensor w");
    put_one_tensor(&f, NB_TYPE_F32, (uint64_t)1 << 63, 2, 0);
    assert_refused(&f, -EINVAL, "too many weights");
    put_one_tensor(&f, NB_TYPE_F32, (uint64_t)1 << 62, 1, 0);
    assert_refused(&f, -EINVAL, "overflows");
    put_one_tensor(&f, NB_TYPE_F32, 0, 1, 0);
    assert_refused(&f, -EINVAL, "zero");
    put_one_tensor(&f, NB_TYPE_Q4_K, 128, 2, 0);
    assert_refused(&f, -EINVAL, "whole blocks of Q4_K");
    put_head(&f, 3, 1, 0), put_str(&f, "w"), put32(&f, 5), put_data(&f, 32, 256);
    assert_refused(&f, -EINVAL, "5 dimensions");
    put_head(&f, 3, 2, 0);
    put_tensor(&f, "a", NB_TYPE_F32, 16, 1, 0);
    put_tensor(&f, "b", NB_TYPE_F32, 4, 1, 32);
    put_data(&f, 32, 1024);
    assert_refused(&f, -EINVAL, "a and b overlap");
    put_head(&f, 3, 2, 0);
    put_tensor(&f, "a", NB_TYPE_F32, 4, 1, 0);
    put_tensor(&f, "a", NB_TYPE_F32, 4, 1, 32);
    put_data(&f, 32, 1024);
    assert_refused(&f, -EINVAL, "tensor a comes twice");
}

static void test_truncated_anywhere(void **unused)
{
    struct file f;
    struct nb_error error;
    put_valid(&f);
    for (size_t len = 0; len < f.len; len++) {
        struct nb_gguf *g = NULL;
        assert_int_equal(open_file(&f, len, &g, &error), -EINVAL);
        assert_null(g);
    }
}

// Reads whatever an opened file offers; a sanitizer says if anything of it lies outside.
static uint64_t walk(const struct nb_gguf *g)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < nb_gguf_n_keys(g); i++) {
        enum nb_gguf_type type;
        struct nb_str raw = nb_gguf_pair_bytes(g, i);
        sum += nb_gguf_key(g, i, &type).len + (uint8_t)raw.data[raw.len - 1];
    }
    for (uint64_t i = 0; i < nb_gguf_n_tensors(g); i++)
        sum += nb_gguf_tensor(g, i)->name.len + nb_gguf_tensor(g, i)->bytes;
    return sum;
}

static void test_any_byte_changed(void **unused)
{
    struct file f;
    struct nb_error error;
    unsigned opened = 0, refused = 0;
    put_valid(&f);
    for (size_t at = 0; at < f.len; at++)
        for (unsigned v = 0; v < 256; v += 51) {
            struct file changed = f;
            struct nb_gguf *g = NULL;
            changed.data[at] = (uint8_t)v;
            if (open_file(&changed, f.len, &g, &error) < 0) {
                refused++;
                continue;
            }
            opened++;
            assert_true(walk(g) > 0);
            nb_gguf_close(g);
        }
    assert_true(opened > 0 && refused > 0);
}

static void test_writer(void **unused)
{
    struct file f, piece = {.len = 0};
    struct nb_gguf *source, *copy;
    struct nb_gguf_writer *w;
    struct nb_error error;
    uint64_t u, dims[] = {32, 3};
    put_valid(&f);
    assert_int_equal(open_file(&f, f.len, &source, &error), 0);
    assert_int_equal(nb_gguf_writer_create(&w), 0);
    uint32_t seven = 7;
    assert_int_equal(nb_gguf_put(w, "u16", NB_GGUF_U32, &seven), 0);
    assert_int_equal(nb_gguf_put(w, "x", NB_GGUF_STRING, &seven), -EINVAL);
    assert_int_equal(nb_gguf_put_strs(w, "more", (struct nb_str[]){STR("a"), STR("bc")}, 2), 0);
    assert_int_equal(nb_gguf_put(w, "mor", NB_GGUF_U32, &seven), 0); // another's beginning
    assert_int_equal(nb_gguf_copy_metadata(w, source), 0);
    assert_int_equal(nb_gguf_add_tensor(w, "q", NB_TYPE_Q4_0, 2, dims), 0);
    assert_int_equal(nb_gguf_add_tensor(w, "q", NB_TYPE_Q4_0, 2, dims), -EINVAL);
    assert_int_equal(nb_gguf_add_tensor(w, "k", NB_TYPE_Q4_K, 2, dims), -EINVAL);
    assert_int_equal(nb_gguf_add_tensor(w, "f", NB_TYPE_F32, 1, dims), 0);

    int fd = memfd_create("out", MFD_CLOEXEC);
    put_data(&piece, 1, 256);
    piece.data[53] = 0x77;
    assert_int_equal(nb_gguf_write(w, piece.data, 1), -EINVAL);
    assert_int_equal(nb_gguf_begin(w, fd), 0);
    assert_int_equal(nb_gguf_write(w, piece.data, 50), 0);
    assert_int_equal(nb_gguf_write(w, piece.data + 50, 5), -EINVAL);
    assert_int_equal(nb_gguf_write(w, piece.data + 50, 4), 0);
    assert_int_equal(nb_gguf_end(w), -EINVAL);
    assert_int_equal(nb_gguf_write(w, piece.data, 128), 0);
    assert_int_equal(nb_gguf_end(w), 0);
    nb_gguf_writer_destroy(w);

    uint8_t byte = 0;
    assert_int_equal(nb_gguf_open(fd, &copy, &error), 0);
    assert_int_equal(nb_gguf_n_keys(copy), 13);
    assert_int_equal(nb_gguf_u64(copy, "u16", &u), 0);
    assert_int_equal(u, 7);
    assert_int_equal(pread(fd, &byte, 1, (off_t)nb_gguf_find_tensor(copy, "q")->offset + 53), 1);
    assert_int_equal(byte, 0x77);
    assert_int_equal(nb_gguf_find_tensor(copy, "f")->bytes, 128);
    nb_gguf_close(copy);
    nb_gguf_close(source);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_numbers_of_any_type),
        cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_header_refusals),
        cmocka_unit_test(test_metadata_refusals),
        cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_tensor_refusals),
        cmocka_unit_test(test_truncated_anywhere),
        cmocka_unit_test(test_any_byte_changed),
        cmocka_unit_test(test_writer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
