// The packed model: what goes in comes out, what cannot be served is refused by name, and no
// changed image maps that would lead a reader outside of it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tensor/gguf_write.h"
#include "tensor/fail.h"
#include "tensor/image.h"
#include "tests/support/pack.h"

#define ALL_SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct tensor {
    const char *name;
    uint32_t type, n_dims;
    uint64_t dims[4];
};

static const struct tensor model[] = {
    {"matrix", NB_TYPE_Q4_1, 2, {64, 37}},
    {"vector", NB_TYPE_F16, 1, {33}},
    {"wide", NB_TYPE_Q6_K, 2, {512, 5000}}, // more than one chunk
    {"floats", NB_TYPE_F32, 2, {24, 16}},
    {"experts", NB_TYPE_Q5_0, 3, {96, 19, 5}}, // each slice begins at a row group
    {"one expert", NB_TYPE_F16, 3, {8, 3, 1}},
};
#define N_MODEL (sizeof(model) / sizeof(model[0]))

static int new_memfd(void)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    return fd;
}

static uint64_t bytes_of(const struct tensor *t)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    uint64_t n = t->dims[0] / info->block * info->bytes;
    for (uint32_t d = 1; d < t->n_dims; d++)
        n *= t->dims[d];
    return n;
}

// Takes a bit of every second byte, which may be an exponent's: whatever is a float is a number.
static void make_numbers(uint8_t *bytes, uint64_t len)
{
    for (uint64_t i = 1; i < len; i += 2)
        bytes[i] &= 0xbf;
}

// A GGUF file of these tensors, of any bytes that are numbers.
static int make_file(const struct tensor *tensors, unsigned n)
{
    struct nb_gguf_writer *w;
    uint32_t value = 5;
    int fd = new_memfd();
    assert_int_equal(nb_gguf_writer_create(&w), 0);
    assert_int_equal(nb_gguf_put(w, "some.key", NB_GGUF_U32, &value), 0);
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(nb_gguf_add_tensor(w, tensors[i].name, tensors[i].type, tensors[i].n_dims,
                                            tensors[i].dims),
                         0);
    assert_int_equal(nb_gguf_begin(w, fd), 0);
    for (unsigned i = 0; i < n; i++) {
        uint64_t len = bytes_of(&tensors[i]);
        uint8_t *bytes = malloc(len);
        assert_non_null(bytes);
        uint32_t state = i;
        for (uint64_t k = 0; k < len; k++)
            bytes[k] = (uint8_t)((state = state * 1664525 + 1013904223) >> 24);
        make_numbers(bytes, len);
        assert_int_equal(nb_gguf_write(w, bytes, len), 0);
        free(bytes);
    }
    assert_int_equal(nb_gguf_end(w), 0);
    nb_gguf_writer_destroy(w);
    return fd;
}

static int packed(int file)
{
    struct nb_error error = {""};
    uint64_t bytes = 0, size = 0;
    struct stat st;
    int fd = new_memfd();
    assert_int_equal(test_pack(file, fd, NULL, &bytes, &error), 0);
    assert_int_equal(test_pack_size(file, &size, &error), 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(bytes, size);
    assert_int_equal(bytes, st.st_size);
    return fd;
}

static void assert_same(const struct nb_image_tensor *t, const uint8_t *file)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    size_t row_bytes = t->dims[0] / info->block * info->bytes;
    uint8_t *row = malloc(row_bytes);
    assert_non_null(row);
    assert_int_equal(t->n_slices, t->dims[2]);
    assert_int_equal(t->packed.rows, t->dims[1]);
    for (uint32_t e = 0; e < t->n_slices; e++) {
        struct nb_packed slice = t->packed;
        slice.data += e * t->slice_bytes;
        assert_int_equal((uintptr_t)slice.data % 64, 0);
        for (uint32_t r = 0; r < slice.rows; r++, file += row_bytes) {
            nb_layout_unpack_row(&slice, r, row);
            assert_memory_equal(row, file, row_bytes);
        }
    }
    free(row);
}

static void test_round_trip(void **unused)
{
    int file = make_file(model, N_MODEL), fd = packed(file);
    struct nb_image *img;
    struct nb_gguf *g;
    struct nb_error error;
    uint64_t value;
    assert_int_equal(nb_image_map(fd, 1, &img, &error), -EPERM);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, ALL_SEALS), 0);
    assert_int_equal(nb_image_map(fd, 1, &img, &error), 0);
    assert_int_equal(nb_gguf_open(file, &g, &error), 0);
    assert_int_equal(nb_gguf_u64(nb_image_metadata(img), "some.key", &value), 0);
    assert_int_equal(value, 5);
    assert_int_equal(nb_image_n_tensors(img), N_MODEL);
    assert_null(nb_image_find(img, "none"));
    for (unsigned i = 0; i < N_MODEL; i++) {
        const struct nb_gguf_tensor *from = nb_gguf_find_tensor(g, model[i].name);
        const struct nb_image_tensor *t = nb_image_find(img, model[i].name);
        uint8_t *bytes = malloc(from->bytes);
        assert_int_equal(pread(file, bytes, from->bytes, (off_t)from->offset), from->bytes);
        assert_ptr_equal(t, nb_image_tensor(img, i));
        assert_int_equal(t->type, model[i].type);
        if (t->n_dims > 1) {
            assert_same(t, bytes);
        } else {
            float expected[33];
            nb_type_info(t->type)->dequantize(bytes, expected, 33);
            assert_memory_equal(t->f32, expected, sizeof(expected));
        }
        free(bytes);
    }
    nb_gguf_close(g);
    nb_image_unmap(img);
    close(file);
    close(fd);
}

// Vectors, names and metadata stay; whole pages of matrices cannot be read any more.
static void test_forgotten_matrices(void **unused)
{
    struct nb_image *img;
    uint64_t value;
    int file = make_file(model, N_MODEL), fd = packed(file);
    assert_int_equal(nb_image_map(fd, 0, &img, NULL), 0);
    const struct nb_image_tensor *vector = nb_image_find(img, "vector"), *wide;
    float before[33];
    memcpy(before, vector->f32, sizeof(before));
    assert_int_equal(nb_image_forget_matrices(img), 0);
    assert_memory_equal(vector->f32, before, sizeof(before));
    assert_ptr_equal(nb_image_find(img, "vector"), vector);
    assert_int_equal(nb_gguf_u64(nb_image_metadata(img), "some.key", &value), 0);
    assert_non_null(wide = nb_image_find(img, "wide"));
    const int any = new_memfd();
    assert_int_equal(write(any, wide->packed.data + 4096, 4096), -1);
    assert_int_equal(errno, EFAULT);
    close(any);
    nb_image_unmap(img);
    close(fd);
    close(file);
}

static void assert_not_packed(int file, int code, const char *says)
{
    struct nb_error error = {""};
    uint64_t bytes = 77;
    int fd = new_memfd();
    assert_int_equal(test_pack_size(file, &bytes, &error), code);
    assert_int_equal(test_pack(file, fd, NULL, &bytes, &error), code);
    assert_int_equal(bytes, 77);
    if (!strstr(error.text, says))
        fail_msg("\"%s\" does not say \"%s\"", error.text, says);
    close(fd);
}

static void test_refusals(void **unused)
{
    const struct tensor video = {"v.patch_embd.weight", NB_TYPE_F16, 4, {32, 2, 2, 2}};
    const struct tensor many = {"many", NB_TYPE_F32, 3, {1, 1, 65537}};
    const struct tensor wide = {"wide", NB_TYPE_F32, 2, {(1 << 20) + 1, 1}};
    int file = make_file(&video, 1);
    assert_not_packed(file, -ENOTSUP, "v.patch_embd.weight (F16) has 4 dimensions");
    close(file);
    file = make_file(&many, 1);
    assert_not_packed(file, -EINVAL, "tensor many (F32) of 65537 by 1 by 1");
    close(file);
    file = make_file(&wide, 1);
    assert_not_packed(file, -EOVERFLOW, "tensor wide (F32) of 1 by 1 by 1048577");
    close(file);

    // A type that GGUF has and Nibble has not: the writer makes none, so its number is changed in
    // the file.
    const struct tensor other = {"strange", NB_TYPE_F32, 1, {4}};
    uint32_t type = 16;
    file = make_file(&other, 1);
    off_t at =
        24 + 8 + 8 + 4 + 4 + 8 + 7 + 4 + 8; // header, one key and its value, name, dimensions
    assert_int_equal(pwrite(file, &type, 4, at), 4);
    assert_not_packed(file, -ENOTSUP, "tensor strange is of type IQ2_XXS (16)");
    close(file);
}

static int cancel(void *user, uint64_t done, uint64_t total)
{
    uint64_t *last = user;
    assert_true(done > *last && done <= total);
    *last = done;
    return done > total / 2 ? -ECANCELED : 0;
}

static void test_cancel_and_output(void **unused)
{
    struct nb_error error = {""};
    uint64_t bytes = 0, last = 0;
    int file = make_file(model, N_MODEL), fd = new_memfd();
    const struct nb_pack_options options = {.progress = cancel, .user = &last};
    struct nb_image *img = NULL;
    assert_int_equal(test_pack(file, fd, &options, &bytes, &error), -ECANCELED);
    assert_true(last > 0);
    assert_int_equal(nb_image_map(fd, 0, &img, &error),
                     -EINVAL); // no half-packed model maps
    assert_null(img);
    assert_int_equal(test_pack(file, fd, NULL, &bytes, &error), -EINVAL);
    assert_non_null(strstr(error.text, "not empty"));
    assert_int_equal(bytes, 0);
    close(file);
    close(fd);
}

// Touches the first and last byte of all that an image offers.
static float walk(const struct nb_image *img)
{
    float sum = 0, row[512];
    for (uint32_t i = 0; i < nb_image_n_tensors(img); i++) {
        const struct nb_image_tensor *t = nb_image_tensor(img, i);
        if (t->n_dims == 1) {
            sum += t->f32[0] + t->f32[t->dims[0] - 1];
        } else if (t->packed.cols <= 512) {
            struct nb_packed last = t->packed;
            last.data += (t->n_slices - 1) * t->slice_bytes;
            nb_layout_dequantize_row(&t->packed, 0, row);
            nb_layout_dequantize_row(&last, t->packed.rows - 1, row);
            sum += row[0];
        }
    }
    return sum;
}

static void test_any_byte_changed(void **unused)
{
    const struct tensor few[] = {model[0], model[1], model[4]};
    int file = make_file(few, 3), fd = packed(file);
    struct nb_error error;
    unsigned refused = 0, head = 64 + 364; // header, metadata, most of the directory
    for (unsigned at = 0; at < head; at++)
        for (unsigned step = 1; step < 256; step += 85) {
            uint8_t was, now;
            struct nb_image *img;
            assert_int_equal(pread(fd, &was, 1, at), 1);
            now = (uint8_t)(was + step);
            assert_int_equal(pwrite(fd, &now, 1, at), 1);
            if (nb_image_map(fd, 0, &img, &error) < 0) {
                refused++;
            } else {
                walk(img);
                nb_image_unmap(img);
            }
            assert_int_equal(pwrite(fd, &was, 1, at), 1);
        }
    assert_true(refused > head); // what is left are names, values, and types of the same size
    close(file);
    close(fd);
}

static void assert_unmappable(int fd, int code, const char *says)
{
    struct nb_image *img = NULL;
    struct nb_error error = {""};
    assert_int_equal(nb_image_map(fd, 0, &img, &error), code);
    assert_null(img);
    if (!strstr(error.text, says))
        fail_msg("\"%s\" does not say \"%s\"", error.text, says);
}

// A file that its header agrees with, but its directory not: the last tensor's bytes are not there,
// or more are.
static void test_wrong_end(void **unused)
{
    struct stat st;
    int file = make_file(model, N_MODEL), fd = packed(file);
    assert_int_equal(fstat(fd, &st), 0);
    for (int step = -64; step <= 64; step += 128) {
        uint64_t bytes = (uint64_t)(st.st_size + step);
        assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
        assert_int_equal(pwrite(fd, &bytes, 8, 16), 8);
        assert_unmappable(fd, -EINVAL, "does not account for the file");
    }
    close(file);
    close(fd);
}

static void test_reserved_bytes(void **unused)
{
    const off_t reserved[] = {40, 48, 56, 63};
    int file = make_file(model, 4), fd = packed(file);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(pwrite(fd, "\1", 1, reserved[i]), 1);
        assert_unmappable(fd, -EINVAL, "counts");
        assert_int_equal(pwrite(fd, "", 1, reserved[i]), 1);
    }
    close(file);
    close(fd);
}

static void test_hostile_images(void **unused)
{
    int file = make_file(model, 4), fd = packed(file);
    uint32_t version = 99, count = UINT32_MAX;
    uint64_t huge = UINT64_MAX;
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(ftruncate(fd, st.st_size - 1), 0);
    assert_unmappable(fd, -EINVAL, "header says");
    assert_int_equal(ftruncate(fd, st.st_size + 1), 0);
    assert_unmappable(fd, -EINVAL, "header says");
    assert_int_equal(ftruncate(fd, st.st_size), 0);
    assert_int_equal(pwrite(fd, &version, 4, 8), 4);
    assert_unmappable(fd, -ENOTSUP, "version 99");
    version = NB_IMAGE_VERSION;
    assert_int_equal(pwrite(fd, &version, 4, 8), 4);
    assert_int_equal(pwrite(fd, &count, 4, 12), 4);
    assert_unmappable(fd, -EINVAL, "counts");
    count = 4;
    assert_int_equal(pwrite(fd, &count, 4, 12), 4);
    assert_int_equal(pwrite(fd, &huge, 8, 24), 8);
    assert_unmappable(fd, -EINVAL, "counts");
    assert_int_equal(ftruncate(fd, 63), 0);
    assert_unmappable(fd, -EINVAL, "at least 64 bytes");
    close(file);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_cancel_and_output), cmocka_unit_test(test_any_byte_changed),
        cmocka_unit_test(test_hostile_images),    cmocka_unit_test(test_reserved_bytes),
        cmocka_unit_test(test_wrong_end),         cmocka_unit_test(test_forgotten_matrices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
