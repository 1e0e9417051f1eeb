// nibble-worker's modes probe and load, driven as the broker does: what they answer, what they
// leave behind, and what the sandbox refuses them.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "tensor/image.h"
#include "tensor/fail.h"
#include "tests/service/worker_harness.h"

static void probe_names_the_cpu(void **state)
{
    alignas(8) char packet[NB_WIRE_MAX];
    const struct nb_link_device *device = (const void *)packet;
    struct worker w = worker_spawn("probe", NULL, NULL, 0);
    worker_expect(&w, NB_LINK_DEVICE, packet);
    assert_string_equal(device->device.name, "cpu");
    assert_true(device->device.threads > 0);
    assert_true(device->device.memory_bytes > 0);
    assert_true(worker_link_ended(&w));
    assert_int_equal(worker_wait(&w), 0);
}

static void load_seals_a_valid_image(void **state)
{
    struct nb_error error;
    struct nb_image *image;
    int fd = real_image();
    int seals = fcntl(fd, F_GET_SEALS);
    assert_int_equal(seals, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    assert_int_equal(nb_image_map(fd, 1, &image, &error), 0);
    nb_image_unmap(image);
}

// `len` bytes of the model, then the worker's verdict.
static struct nb_link_loaded load_part(size_t len, const char *budget, int *ret_image)
{
    alignas(8) char packet[NB_WIRE_MAX];
    char *bytes = malloc(len);
    int file = open(model_path(), O_RDONLY | O_CLOEXEC);
    int part = memfd_create("part", MFD_CLOEXEC);
    int image = memfd_create("image", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_non_null(bytes);
    assert_int_equal(pread(file, bytes, len, 0), len);
    assert_int_equal(write(part, bytes, len), len);
    struct worker w = worker_load(budget, part, image);
    worker_expect(&w, NB_LINK_LOADED, packet);
    assert_int_equal(worker_wait(&w), 0);
    free(bytes);
    close(file);
    close(part);
    *ret_image = image;
    return *(const struct nb_link_loaded *)(const void *)packet;
}

static void a_truncated_model_is_refused_in_a_line(void **state)
{
    static const size_t lengths[] = {3, 24, 4096, 5 << 20};
    int image;
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct nb_link_loaded loaded = load_part(lengths[i], "1000000000", &image);
        assert_int_equal(loaded.header.status, NIBBLE_E_FORMAT);
        assert_true(strlen(loaded.text) > 0);
        assert_null(strchr(loaded.text, '\n'));
        close(image);
    }
}

static void a_model_over_the_budget_is_not_written(void **state)
{
    struct stat st;
    int image, file = open(model_path(), O_RDONLY | O_CLOEXEC);
    assert_int_equal(fstat(file, &st), 0);
    struct nb_link_loaded loaded = load_part((size_t)st.st_size, "1000000", &image);
    assert_int_equal(loaded.header.status, NIBBLE_E_TOO_LARGE);
    assert_true(loaded.bytes > 1000000);
    assert_int_equal(fstat(image, &st), 0);
    assert_int_equal(st.st_size, 0);
    close(image);
    close(file);
}

static void a_wrong_command_line_is_bad_usage(void **state)
{
    struct worker w = worker_spawn("dance", NULL, NULL, 0);
    assert_int_equal(worker_wait(&w), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probe_names_the_cpu),
        cmocka_unit_test(load_seals_a_valid_image),
        cmocka_unit_test(a_truncated_model_is_refused_in_a_line),
        cmocka_unit_test(a_model_over_the_budget_is_not_written),
        cmocka_unit_test(a_wrong_command_line_is_bad_usage),
    };
    return cmocka_run_group_tests_name("worker load", tests, NULL, NULL);
}
