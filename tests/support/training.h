// What tests of training share: plans of models as training takes them, steps, and what has moved.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include "distill/train.h"
#include "tensor/image.h"
#include "tests/support/bytes.h"

static inline void open_plan(const struct nb_source *s, struct nb_image **image,
                             struct nb_plan **plan)
{
    const struct nb_plan_options exact = {.precision = NB_PRECISION_EXACT};
    struct nb_error error = {""};
    uint64_t bytes;
    const int fd = memfd_create("image", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_true(nb_image_pack(s, fd, NULL, &bytes, &error) >= 0);
    assert_int_equal(nb_image_map(fd, 0, image, &error), 0);
    close(fd);
    assert_int_equal(nb_plan_create(*image, &exact, plan, &error), 0);
}

// The last one's losses.
static inline struct nb_train_loss steps(struct nb_train *t, int n)
{
    struct nb_error error = {""};
    struct nb_train_loss loss = {0};
    for (int i = 0; i < n; i++)
        assert_int_equal(nb_train_step(t, &loss, &error), 0);
    return loss;
}

static inline const float *moved(const struct nb_train *t, uint32_t i, uint64_t *ret_n)
{
    const struct nb_train_moved w = nb_train_moved(t, i);
    const float *x = nb_train_tensor(t, (struct nb_str){w.name, strlen(w.name)}, ret_n);
    assert_non_null(x);
    assert_int_equal(*ret_n, (uint64_t)w.rows * w.cols);
    return x;
}

static inline void expect_same(const struct nb_train *a, const struct nb_train *b)
{
    assert_true(nb_train_count(a) > 0);
    assert_int_equal(nb_train_count(a), nb_train_count(b));
    for (uint32_t i = 0; i < nb_train_count(a); i++) {
        uint64_t n, same;
        const float *x = moved(a, i, &n), *y = moved(b, i, &same);
        assert_int_equal(n, same);
        assert_memory_equal(x, y, n * sizeof(*x));
    }
}
