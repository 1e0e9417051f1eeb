// The harness at the limits: a driver that cuts loops short (lavapipe before Mesa 25) is known for
// it, the largest model that the device accepts is computed to its end, and a larger one is
// refused.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/vulkan/device.h"
#include "tensor/fail.h"
#include "tests/kernels/check.h"
#include "tests/kernels/report.h"
#include "tests/vulkan/ops.h"

#define MOST_CONTEXT (1u << 17)
#define MOST_COLUMNS (1u << 17)
#define KV_ROUND     4 // blocks that stand for all of a long context

static void expect(bool fine, const char *what)
{
    check_report.compared++;
    if (fine)
        return;
    check_report.failed++;
    fprintf(stderr, "FAIL %s limits: %s\n", check_report.level, what);
}

// Whether the engine knows what a loop on this device shows.
static void check_driver(struct nb_vulkan_device *d)
{
    struct driver_facts f = {0};
    expect(driver_probe(d, &f) == 0, "the probe runs");
    expect(f.loop == DRIVER_LOOP || nb_vulkan_cuts_loops(&d->info),
           "the driver cuts loops short, and the engine does not know");
}

static const uint32_t *round_table(uint32_t blocks)
{
    uint32_t *table = buffer(blocks * sizeof(*table));
    for (uint32_t i = 0; i < blocks; i++)
        table[i] = i % KV_ROUND;
    return table;
}

// The last position of a context, over blocks that the first few rows filled.
static void check_last(struct nb_device *reference, struct nb_device *device,
                       const struct op_case *c)
{
    struct op_plan p;
    struct op_machine want, got;
    struct op_batch b;
    uint32_t at[OP_SEQUENCES] = {0};
    const uint32_t *table = round_table(c->context / 32);
    op_plan_init(&p, c);
    op_open(&want, reference, &p);
    op_open(&got, device, &p);
    op_batch_init(&b);
    b.blocks[0] = table;
    for (int i = 0; i < 3; i++) {
        if (i == 2)
            at[0] = c->context - 1;
        op_batch_fill(&b, (uint32_t[OP_SEQUENCES]){i < 2 ? OP_ROWS : 1}, at);
        const float *logits = op_step(&want, &b.rows);
        op_compare(c, &b.rows, logits, op_step(&got, &b.rows), p.plan.hp.vocab);
    }
    reference->ops->model_close(want.model);
    device->ops->model_close(got.model);
    op_plan_finish(&p);
    free((void *)(uintptr_t)table);
}

static bool refuses(struct nb_device *d, const struct op_case *c)
{
    const struct nb_device_model_options o = {.kv_blocks = KV_ROUND, .max_rows = 1};
    struct nb_device_model *m;
    struct op_plan p;
    struct nb_error error = {""};
    op_plan_init(&p, c);
    int rc = d->ops->model_open(d, &p.plan, &o, &m, &error);
    if (rc == 0)
        d->ops->model_close(m);
    op_plan_finish(&p);
    return rc == -ENOTSUP && error.text[0];
}

static void check_context(struct nb_device *reference, struct nb_device *device, uint32_t k_dim,
                          uint32_t v_dim)
{
    uint32_t longest = MOST_CONTEXT;
    if (device->ops == &nb_vulkan_ops)
        longest = nb_vulkan_longest_context((struct nb_vulkan_device *)device, k_dim, v_dim);
    struct op_case c = {.what = "the longest context",
                        .middle = MIDDLE_ATTENTION,
                        .type = NB_TYPE_F16,
                        .type2 = NB_TYPE_F16,
                        .terms = 1,
                        .norm = true,
                        .sane = true,
                        .embedding = 32,
                        .heads = 1,
                        .kv_heads = 1,
                        .k_dim = k_dim,
                        .v_dim = v_dim,
                        .rope_dims = k_dim,
                        .context = longest < MOST_CONTEXT ? longest : MOST_CONTEXT};
    check_last(reference, device, &c);
    c.context++;
    expect(longest >= MOST_CONTEXT || refuses(device, &c), "a longer context is refused");
}

// The widest matrix of each way through the products' loops, and one block more.
static void check_widths(struct nb_device *reference, struct nb_device *device)
{
    static const struct op_script rows = {3, {{1}, {2}, {5}}};
    static const struct {
        uint32_t type, terms;
        enum op_middle middle;
        bool wide_ffn; // the result's rows are wide: down, else gate and up
    } cases[] = {
        {NB_TYPE_F16, 1, MIDDLE_NONE, false},    {NB_TYPE_Q4_0, 1, MIDDLE_NONE, false},
        {NB_TYPE_IQ4_NL, 2, MIDDLE_NONE, false}, {NB_TYPE_Q6_K, 2, MIDDLE_NONE, false},
        {NB_TYPE_Q5_1, 2, MIDDLE_FFN, false},    {NB_TYPE_IQ4_NL, 1, MIDDLE_FFN, true},
    };
    const struct nb_vulkan_device *d = (struct nb_vulkan_device *)device;
    // Modules with barriers take long to compile: the other tiers get every other case.
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i += d->tier->rotates ? 1 : 2) {
        const bool ffn = cases[i].middle == MIDDLE_FFN, floats = cases[i].type == NB_TYPE_F16;
        const uint32_t block = nb_type_info(cases[i].type)->block, narrow = 32;
        uint32_t widest = nb_vulkan_widest_matrix(d, floats, ffn && !cases[i].wide_ffn ? 2 : 1,
                                                  cases[i].wide_ffn ? narrow : 0);
        struct op_case c = {.what = "the widest matrix",
                            .middle = cases[i].middle,
                            .type = cases[i].type,
                            .type2 = cases[i].type,
                            .terms = cases[i].terms,
                            .sane = true,
                            .vocab = 21};
        uint32_t *width = cases[i].wide_ffn ? &c.ffn : &c.embedding;
        c.ffn = c.embedding = narrow;
        *width = (widest < MOST_COLUMNS ? widest : MOST_COLUMNS) / block * block;
        op_check_case(reference, device, &c, &rows);
        *width += block;
        expect(widest >= MOST_COLUMNS || refuses(device, &c), "a wider matrix is refused");
    }
}

void op_check_limits(struct nb_device *reference, struct nb_device *device)
{
    static const uint32_t dims[][2] = {{64, 64}, {128, 128}, {24, 96}};
    if (device->ops == &nb_vulkan_ops) {
        check_driver((struct nb_vulkan_device *)device);
        check_widths(reference, device);
    }
    for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]); i++)
        check_context(reference, device, dims[i][0], dims[i][1]);
}
