// What the float engine promises on a device beside its results (unit/test_grad_ops.c and
// oracle/test_device_gradients.py compare those): tensors that change are sent again, gradients add
// up, and what the device lacks is refused by name or by -ENOTSUP.
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

#include "distill/train.h"
#include "engine/vulkan/device.h"
#include "grad/vulkan/room.h"
#include "tensor/image.h"
#include "tests/support/cpu_driver.h"
#include "tests/support/pack.h"
#include "tests/support/random_model.h"

#define E    64
#define ROWS 40

struct machine {
    struct nb_device *device;
    struct nb_image *image;
    struct nb_plan *plan;
    struct nb_team *team;
    struct nb_grad *g, *cpu;
    float x[ROWS * E], y[ROWS * E], expected[ROWS * E];
};

static struct nb_plan *plan_of(struct random_model r, uint32_t experts, struct nb_image **ret_image)
{
    const struct nb_plan_options options = {.precision = NB_PRECISION_EXACT};
    struct nb_error error = {""};
    struct nb_plan *plan = NULL;
    uint64_t bytes;
    const int file =
                  experts ? random_model_create_experts(&r, experts, 2) : random_model_create(&r),
              image = memfd_create("image", MFD_CLOEXEC);
    assert_true(file >= 0 && image >= 0);
    assert_int_equal(test_pack(file, image, NULL, &bytes, &error), 0);
    assert_int_equal(nb_image_map(image, 0, ret_image, &error), 0);
    close(file);
    close(image);
    assert_int_equal(nb_plan_create(*ret_image, &options, &plan, &error), 0);
    return plan;
}

static void begin(struct nb_grad *g)
{
    struct nb_error error = {""};
    int32_t token[ROWS];
    for (int32_t i = 0; i < ROWS; i++)
        token[i] = i * 7 % RANDOM_VOCAB;
    const struct nb_grad_sequence sequence[] = {{token, 33, 0}, {token + 33, ROWS - 33, 3}};
    assert_int_equal(nb_grad_batch(g, sequence, 2, &error), 0);
}

static int open_machine(void **state)
{
    struct nb_error error = {""};
    struct machine *m = calloc(1, sizeof(*m));
    const char *name = test_cpu_driver();
    assert_true(m && name);
    m->plan = plan_of((struct random_model){1, E, 96, 4, 2, 65536, 1, NB_TYPE_Q4_1}, 0, &m->image);
    assert_int_equal(nb_team_create(2, &m->team), 0);
    assert_int_equal(
        nb_device_create(name, &(struct nb_device_options){.threads = 2}, &m->device, &error), 0);
    assert_int_equal(nb_grad_open(m->plan, m->team, &m->cpu, &error), 0);
    assert_int_equal(nb_grad_open_on(m->plan, m->team, m->device, &m->g, &error), 0);
    begin(m->cpu);
    begin(m->g);
    assert_int_equal(nb_grad_begin(m->cpu, m->x), 0);
    *state = m;
    return 0;
}

static int close_machine(void **state)
{
    struct machine *m = *state;
    nb_grad_close(m->g);
    nb_grad_close(m->cpu);
    m->device->ops->destroy(m->device);
    nb_team_destroy(m->team);
    nb_plan_destroy(m->plan);
    nb_image_unmap(m->image);
    free(m);
    return 0;
}

static size_t size_of(const struct nb_grad_tensor *t)
{
    return (size_t)t->experts * t->rows * t->cols;
}

static void expect_near(const float *found, const float *expected, size_t n)
{
    float most = 0;
    for (size_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf(expected[i]));
    for (size_t i = 0; i < n; i++)
        assert_float_equal(found[i], expected[i], 1e-5f * most);
}

// The layer's result is the CPU's.
static void expect_layer(struct machine *m)
{
    assert_int_equal(nb_grad_layer(m->cpu, 0, m->x, NULL, m->expected), 0);
    assert_int_equal(nb_grad_layer(m->g, 0, m->x, NULL, m->y), 0);
    expect_near(m->y, m->expected, (size_t)ROWS * E);
}

static void tensors_that_change(void **state)
{
    static const char *const names[] = {"blk.0.attn_v.weight", "blk.0.ffn_norm.weight"};
    struct machine *m = *state;
    expect_layer(m);
    for (int i = 0; i < 2; i++) {
        struct nb_grad_tensor *on[] = {nb_grad_find(m->g, names[i]),
                                       nb_grad_find(m->cpu, names[i])};
        float *w = nb_grad_floats(size_of(on[0]));
        nb_grad_dequantize(m->cpu, on[1], w);
        on[0]->values = on[1]->values = w;
        for (int step = 0; step < 2; step++) {
            w[3] += 5;
            nb_grad_changed(m->g);
            expect_layer(m);
        }
        on[0]->values = on[1]->values = NULL;
        expect_layer(m);
        free(w);
    }
}

static void replaced_matrix(void **state)
{
    struct machine *m = *state;
    const struct nb_grad_tensor *t = nb_grad_find(m->g, "blk.0.ffn_up.weight");
    const struct nb_packed before = t->matrix->packed;
    struct nb_packed other;
    assert_int_equal(nb_packed_init(&other, NB_TYPE_F32, t->rows, t->cols), 0);
    uint8_t *data = aligned_alloc(64, nb_packed_bytes(&other));
    assert_non_null(data);
    memset(data, 0, nb_packed_bytes(&other));
    other.data = data;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(nb_plan_replace(m->plan, t->name, i ? &before : &other, 0), 0);
        expect_layer(m);
    }
    free(data);
}

static void back(struct machine *m, bool to_input)
{
    for (int i = 0; i < ROWS * E; i++)
        m->y[i] = sinf((float)i);
    assert_int_equal(nb_grad_layer_back(m->g, 0, m->x, NULL, m->y, to_input), 0);
}

static void gradients_add_up(void **state)
{
    struct machine *m = *state;
    struct nb_grad_tensor *t = nb_grad_find(m->g, "blk.0.ffn_gate.weight");
    float *once = calloc(size_of(t), sizeof(*once)), *twice = calloc(size_of(t), sizeof(*twice));
    assert_non_null(once);
    assert_non_null(twice);
    t->gradient = once;
    back(m, true);
    t->gradient = twice;
    back(m, false);
    back(m, true);
    for (size_t i = 0; i < size_of(t); i++)
        assert_true(twice[i] == 2 * once[i]);
    t->gradient = NULL;
    free(once);
    free(twice);
}

// What is long goes in several dispatches, bands of products and parts of their sums, and in
// several submissions.
static void in_parts(void **state)
{
    struct machine *m = *state;
    struct nb_grad_vulkan *v = m->g->device;
    struct nb_grad_tensor *on[] = {nb_grad_find(m->g, "blk.0.ffn_down.weight"),
                                   nb_grad_find(m->cpu, "blk.0.ffn_down.weight")};
    const double operations = v->operations;
    const uint32_t depth = v->depth;
    v->operations = 2e5;
    v->depth = 40;
    expect_layer(m);
    for (int i = 0; i < 2; i++)
        on[i]->gradient = calloc(size_of(on[i]), sizeof(float));
    for (int i = 0; i < ROWS * E; i++)
        m->y[i] = m->expected[i] = sinf((float)i);
    assert_int_equal(nb_grad_layer_back(m->g, 0, m->x, NULL, m->y, true), 0);
    assert_int_equal(nb_grad_layer_back(m->cpu, 0, m->x, NULL, m->expected, true), 0);
    expect_near(m->y, m->expected, (size_t)ROWS * E);
    expect_near(on[0]->gradient, on[1]->gradient, size_of(on[0]));
    for (int i = 0; i < 2; i++) {
        free(on[i]->gradient);
        on[i]->gradient = NULL;
    }
    v->operations = operations;
    v->depth = depth;
}

// --- Refusals

static void see(void *user, const struct nb_grad_tensor *w, uint32_t expert, const float *x,
                size_t stride, uint32_t n)
{
}

static int layer(struct machine *m)
{
    return nb_grad_layer(m->g, 0, m->x, NULL, m->y);
}

static void what_a_device_lacks(void **state)
{
    struct machine *m = *state;
    struct nb_tape *tape = NULL;
    struct nb_grad_tensor *t = nb_grad_find(m->g, "blk.0.attn_q.weight");
    const struct nb_grad_factors factors = {.rank = 1};
    float *const taps[] = {m->y, NULL, NULL};
    nb_grad_narrow(m->g, true);
    assert_int_equal(layer(m), -ENOTSUP);
    nb_grad_narrow(m->g, false);
    nb_grad_see(m->g, see, NULL);
    assert_int_equal(layer(m), -ENOTSUP);
    nb_grad_see(m->g, NULL, NULL);
    nb_grad_tap(m->g, 0, taps, NULL);
    assert_int_equal(layer(m), -ENOTSUP);
    nb_grad_tap(m->g, 0, NULL, NULL);
    t->factors = &factors;
    assert_int_equal(layer(m), -ENOTSUP);
    t->factors = NULL;
    t->inputs = NB_INPUT_ROW;
    assert_int_equal(layer(m), -ENOTSUP);
    t->inputs = NB_INPUT_BLOCK;
    assert_int_equal(nb_grad_stage(m->g, 0, 0, m->x, m->y), -ENOTSUP);
    assert_int_equal(nb_tape_create(m->g, 0, &tape), -ENOTSUP);
    assert_int_equal(nb_tapes_create(m->g, 1 << 30, &tape), 0);
    assert_null(tape);
    assert_int_equal(layer(m), 0);
}

static void refused_models(void **state)
{
    struct machine *m = *state;
    struct nb_image *image;
    struct nb_plan *plan =
        plan_of((struct random_model){1, E, 96, 4, 2, 128, 1, NB_TYPE_Q4_1}, 4, &image);
    struct nb_grad *g = NULL;
    struct nb_device *cpu;
    struct nb_error error = {""};
    assert_int_equal(nb_grad_open_on(plan, m->team, m->device, &g, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "experts"));
    assert_non_null(strstr(error.text, "on the CPU"));
    assert_int_equal(
        nb_device_create("cpu", &(struct nb_device_options){.threads = 1}, &cpu, &error), 0);
    assert_int_equal(nb_grad_open_on(m->plan, m->team, cpu, &g, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "no device to train on"));
    struct nb_vulkan_device *d = (struct nb_vulkan_device *)m->device;
    const uint32_t shared = d->max_shared;
    d->max_shared = 16384;
    assert_int_equal(nb_grad_open_on(m->plan, m->team, m->device, &g, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "share 16384 bytes"));
    d->max_shared = shared;
    assert_null(g);
    cpu->ops->destroy(cpu);
    nb_plan_destroy(plan);
    nb_image_unmap(image);
}

static void refused_windows(void **state)
{
    struct machine *m = *state;
    const bool cuts = nb_vulkan_cuts_loops(&((struct nb_vulkan_device *)m->device)->info);
    struct nb_error error = {""};
    int32_t *token = calloc(60000, sizeof(*token));
    assert_non_null(token);
    struct nb_grad_sequence s = {token, 60000, 0};
    assert_int_equal(nb_grad_batch(m->g, &s, 1, &error), -E2BIG);
    assert_non_null(strstr(error.text, "MB at once"));
    s.n = 8000;
    assert_int_equal(nb_grad_batch(m->g, &s, 1, &error), cuts ? -E2BIG : 0);
    assert_true(!cuts || strstr(error.text, "cuts longer loops short"));
    if (!cuts)
        begin(m->g);
    expect_layer(m); // the batch of before is still there
    free(token);
}

static void refused_trainings(void **state)
{
    struct machine *m = *state;
    int32_t tokens[64] = {0};
    const struct nb_windows windows = {.n = 2, .length = 32, .tokens = tokens};
    const struct nb_train_options usual = {
        .batch = 1, .accumulate = 1, .steps = 1, .temperature = 1, .hard = 1, .device = m->device};
    const struct {
        bool bf16;
        uint32_t rank;
        float attention;
        const char *why;
    } cases[] = {{true, 0, 0, "in bf16"}, {false, 4, 0, "adapters"}, {false, 0, 1, "relations"}};
    struct nb_train *t = NULL;
    struct nb_error error = {""};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct nb_train_options o = usual;
        o.bf16 = cases[i].bf16;
        o.adapter = (struct nb_adapter_choice){.rank = cases[i].rank, .alpha = 1};
        o.attention = cases[i].attention;
        assert_int_equal(nb_train_create(m->plan, m->plan, m->team, &windows, &o, &t, &error),
                         -ENOTSUP);
        assert_non_null(strstr(error.text, cases[i].why));
    }
    assert_int_equal(nb_train_create(m->plan, NULL, m->team, &windows, &usual, &t, &error), 0);
    const struct nb_str name = {"blk.0.attn_q.weight", 19};
    assert_int_equal(nb_train_round_inputs(t, name, NB_INPUT_ROW, 0, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "rounded inputs, as those of blk.0.attn_q.weight"));
    struct nb_train_loss loss;
    assert_int_equal(nb_train_step(t, &loss, &error), 0);
    nb_train_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_that_change), cmocka_unit_test(replaced_matrix),
        cmocka_unit_test(gradients_add_up),    cmocka_unit_test(in_parts),
        cmocka_unit_test(what_a_device_lacks), cmocka_unit_test(refused_models),
        cmocka_unit_test(refused_windows),     cmocka_unit_test(refused_trainings),
    };
    return cmocka_run_group_tests(tests, open_machine, close_machine);
}
