// Folds without a peer: rotations are rotations, what is refused, activations that let scales
// through in a power, and how inputs and their means follow. tests/oracle/test_fold.py has whole
// families.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/sampler.h"
#include "grad/grad.h"
#include "quant/fold.h"
#include "quant/rotation.h"
#include "tensor/image.h"
#include "tests/support/pack.h"
#include "tests/support/random_model.h"

#define E    64
#define FFN  96
#define ROWS 40

static const struct nb_plan_options exact = {.precision = NB_PRECISION_EXACT};

struct machine {
    struct nb_image *image;
    struct nb_plan *plan;
    struct nb_arch arch;
    struct nb_team *team;
    struct nb_fold *fold;
    const struct nb_joint *joints;
    uint32_t n;
};

// An encoder has an activation without a gate.
static struct machine open_machine(bool encoder, enum nb_activation activation)
{
    struct random_model r = {2, E, FFN, 4, 2, 128, 1, NB_TYPE_F32};
    struct nb_error error = {""};
    struct machine m = {0};
    uint64_t bytes;
    const int file = encoder ? random_model_create_pooled(&r, true, NB_POOLING_MEAN, NULL, 0)
                             : random_model_create(&r);
    const int image = memfd_create("image", MFD_CLOEXEC);
    assert_true(file >= 0 && image >= 0);
    assert_int_equal(test_pack(file, image, NULL, &bytes, &error), 0);
    assert_int_equal(nb_image_map(image, 0, &m.image, &error), 0);
    close(file);
    close(image);
    assert_int_equal(nb_plan_create(m.image, &exact, &m.plan, &error), 0);
    m.arch = *m.plan->hp.arch;
    m.arch.activation = activation;
    assert_int_equal(nb_team_create(2, &m.team), 0);
    return m;
}

static void make_fold(struct machine *m)
{
    struct nb_error error = {""};
    m->plan->hp.arch = &m->arch;
    assert_int_equal(nb_fold_create(m->plan, &m->fold, &error), 0);
    m->joints = nb_fold_joints(m->fold, &m->n);
}

static void close_machine(struct machine *m)
{
    nb_fold_destroy(m->fold);
    nb_team_destroy(m->team);
    nb_plan_destroy(m->plan);
    nb_image_unmap(m->image);
}

static uint32_t find(const struct machine *m, enum nb_joint_kind kind)
{
    for (uint32_t i = 0; i < m->n; i++)
        if (m->joints[i].kind == kind)
            return i;
    return UINT32_MAX;
}

static void random_scales(uint32_t n, uint64_t seed, float *ret)
{
    for (uint32_t i = 0; i < n; i++)
        ret[i] = exp2f((float)(nb_random(seed, i) % 4097) / 1024 - 2);
}

static void a_rotation_is_orthogonal(void **state)
{
    static const uint32_t widths[] = {1, 2, 9, 57, 64, 96, 576};
    static double r[576][576];
    for (size_t w = 0; w < sizeof(widths) / sizeof(widths[0]); w++) {
        const uint32_t n = widths[w];
        struct nb_rotation *rotation = NULL;
        double most = 0;
        assert_int_equal(nb_rotation_create(n, 7, &rotation), 0);
        assert_int_equal(nb_rotation_n(rotation), n);
        for (uint32_t i = 0; i < n; i++) {
            memset(r[i], 0, sizeof(r[i]));
            r[i][i] = 1;
            nb_rotation_apply(rotation, r[i]);
        }
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t j = 0; j <= i; j++) {
                double sum = i == j ? -1 : 0;
                for (uint32_t k = 0; k < n; k++)
                    sum += r[i][k] * r[j][k];
                most = fmax(most, fabs(sum));
            }
        assert_true(most < 1e-14);
        nb_rotation_destroy(rotation);
    }
    struct nb_rotation *none = NULL;
    assert_int_equal(nb_rotation_create(0, 1, &none), -ENOTSUP);
    assert_int_equal(nb_rotation_create(NB_ROTATION_ODD + 1, 1, &none), -ENOTSUP);
}

static void what_is_refused(void **state)
{
    struct machine m = open_machine(false, NB_ACT_SILU);
    float scale[FFN] = {0};
    uint32_t order[FFN] = {0};
    make_fold(&m);
    const uint32_t inner = find(&m, NB_JOINT_INNER), values = find(&m, NB_JOINT_VALUES);
    assert_int_equal(nb_fold_scale(m.fold, inner, 0, scale), -EINVAL);
    random_scales(FFN, 1, scale);
    scale[3] = -1;
    assert_int_equal(nb_fold_scale(m.fold, inner, 0, scale), -EINVAL);
    scale[3] = INFINITY;
    assert_int_equal(nb_fold_scale(m.fold, inner, 0, scale), -EINVAL);
    assert_int_equal(nb_fold_order(m.fold, inner, 0, order), -EINVAL);
    order[1] = FFN;
    assert_int_equal(nb_fold_order(m.fold, inner, 0, order), -EINVAL);
    assert_int_equal(nb_fold_order(m.fold, values, 0, order), -ENOTSUP);
    assert_int_equal(nb_fold_rotate(m.fold, inner, 1), -ENOTSUP);
    scale[3] = 2;
    assert_int_equal(nb_fold_rotate(m.fold, values, 1), 0);
    assert_int_equal(nb_fold_scale(m.fold, values, 0, scale), -EBUSY);
    const struct nb_str down = {"blk.0.ffn_down.weight", 21};
    float w[FFN] = {0};
    assert_int_equal(nb_fold_unit(m.fold, down), 0);
    assert_int_equal(nb_fold_scale(m.fold, inner, 0, scale), 0);
    assert_int_equal(nb_fold_unit(m.fold, down), FFN);
    assert_int_equal(nb_fold_tensor(m.fold, m.team, down, 1, FFN, w), -EINVAL);
    assert_int_equal(nb_fold_tensor(m.fold, m.team, down, 0, FFN - 1, w), -EINVAL);
    assert_int_equal(nb_fold_tensor(m.fold, m.team, down, (E - 1) * FFN, 2 * FFN, w), -EINVAL);
    close_machine(&m);
}

static void only_its_own_plan_restores_it(void **state)
{
    struct machine m = open_machine(false, NB_ACT_SILU), other = open_machine(true, NB_ACT_GELU);
    float scale[FFN];
    void *data = NULL;
    size_t n = 0;
    make_fold(&m);
    make_fold(&other);
    random_scales(FFN, 1, scale);
    assert_int_equal(nb_fold_scale(m.fold, find(&m, NB_JOINT_INNER), 0, scale), 0);
    assert_int_equal(nb_fold_store(m.fold, &data, &n), 0);
    assert_int_equal(nb_fold_restore(other.fold, data, n), -EINVAL);
    for (size_t i = 0; i < n; i += 7) // cut anywhere
        assert_int_equal(nb_fold_restore(m.fold, data, i), -EINVAL);
    free(data);
    close_machine(&m);
    close_machine(&other);
}

// ---- Powers

static void run(const struct machine *m, const struct nb_fold *f, float *ret)
{
    struct nb_grad *g = NULL;
    struct nb_error error = {""};
    int32_t token[ROWS];
    uint32_t n;
    float x[ROWS * E], *values[64] = {NULL};
    for (int32_t i = 0; i < ROWS; i++)
        token[i] = i * 7 % RANDOM_VOCAB;
    const struct nb_grad_sequence sequence = {token, ROWS, 0};
    assert_int_equal(nb_grad_open(m->plan, m->team, &g, &error), 0);
    struct nb_grad_tensor *t = nb_grad_tensors(g, &n);
    assert_true(n <= 64);
    for (uint32_t i = 0; i < n; i++) {
        const size_t floats = (size_t)t[i].experts * t[i].rows * t[i].cols;
        values[i] = malloc(floats * sizeof(float));
        nb_grad_dequantize(g, &t[i], values[i]);
        assert_int_equal(nb_fold_tensor(f, m->team, t[i].name, 0, floats, values[i]), 0);
        t[i].values = values[i];
    }
    assert_int_equal(nb_grad_batch(g, &sequence, 1, &error), 0);
    assert_int_equal(nb_grad_begin(g, x), 0);
    assert_int_equal(nb_grad_layer(g, 0, x, NULL, ret), 0);
    nb_grad_close(g);
    for (uint32_t i = 0; i < n; i++)
        free(values[i]);
}

static void scales_go_through_activations_in_their_power(void **state)
{
    static const struct {
        enum nb_activation activation;
        bool goes;
    } cases[] = {{NB_ACT_RELU2, true}, {NB_ACT_RELU, true}, {NB_ACT_GELU, false}};
    for (size_t i = 0; i < 3; i++) {
        struct machine m = open_machine(true, cases[i].activation);
        float scale[FFN], before[ROWS * E], after[ROWS * E];
        make_fold(&m);
        const uint32_t inner = find(&m, NB_JOINT_INNER);
        random_scales(FFN, 1, scale);
        run(&m, m.fold, before);
        assert_int_equal(nb_fold_scale(m.fold, inner, 0, scale), cases[i].goes ? 0 : -ENOTSUP);
        run(&m, m.fold, after);
        for (uint32_t k = 0; k < ROWS * E; k++)
            assert_true(fabsf(after[k] - before[k]) < 1e-5f);
        if (cases[i].goes)
            assert_memory_not_equal(before, after, sizeof(after));
        close_machine(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rotation_is_orthogonal),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(only_its_own_plan_restores_it),
        cmocka_unit_test(scales_go_through_activations_in_their_power),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
