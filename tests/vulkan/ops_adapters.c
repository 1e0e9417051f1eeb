// Rows with adapters beside rows with none: every form of ops whose products they change, ranks and
// types of factors that row groups, tiles and chunks cut, and adapters that come and go.
#include <stdio.h>
#include <stdlib.h>

#include "engine/adapter.h"
#include "tensor/fail.h"
#include "tests/kernels/check.h"
#include "tests/vulkan/ops.h"

static const struct op_script script = {
    9, {{1}, {0, 1}, {1, 1, 1}, {2, 1}, {5, 33}, {17, 0, 3}, {0, 2}, {1, 0, 7}, {33, 2, 29}}};

static const struct op_case cases[] = {
    {.what = "adapted head", .type = NB_TYPE_F32, .embedding = 167, .vocab = 101},
    {.what = "adapted head", .type = NB_TYPE_Q4_0, .norm = true, .embedding = 576, .vocab = 101},
    {.what = "adapted gate, up and down",
     .middle = MIDDLE_FFN,
     .type = NB_TYPE_Q8_0,
     .type2 = NB_TYPE_Q4_1,
     .norm = true,
     .sane = true,
     .bias = true,
     .embedding = 96,
     .ffn = 160},
    {.what = "adapted halves",
     .middle = MIDDLE_FFN,
     .type = NB_TYPE_F16,
     .norm = true,
     .sane = true,
     .fused = true,
     .embedding = 64,
     .ffn = 96},
    {.what = "adapted without a gate",
     .middle = MIDDLE_FFN,
     .type = NB_TYPE_Q4_1,
     .norm = true,
     .sane = true,
     .bias = true,
     .gateless = true,
     .norm_kind = NB_NORM_LAYER,
     .activation = NB_ACT_GELU,
     .embedding = 64,
     .ffn = 160},
    {.what = "adapted attention",
     .middle = MIDDLE_ATTENTION,
     .type = NB_TYPE_Q8_0,
     .type2 = NB_TYPE_Q4_1,
     .norm = true,
     .sane = true,
     .embedding = 64,
     .heads = 3,
     .kv_heads = 1,
     .k_dim = 64,
     .v_dim = 64,
     .rope_dims = 64,
     .context = 128},
    {.what = "adapted odd heads",
     .middle = MIDDLE_ATTENTION,
     .type = NB_TYPE_F16,
     .type2 = NB_TYPE_F16,
     .norm = true,
     .sane = true,
     .embedding = 64,
     .heads = 6,
     .kv_heads = 2,
     .k_dim = 26,
     .v_dim = 18,
     .rope_dims = 6,
     .neox = true,
     .context = 128},
    {.what = "adapted beside each other",
     .middle = MIDDLE_BOTH,
     .type = NB_TYPE_Q4_1,
     .type2 = NB_TYPE_Q8_0,
     .norm = true,
     .sane = true,
     .parallel = true,
     .apart = true,
     .embedding = 64,
     .ffn = 96,
     .heads = 2,
     .kv_heads = 1,
     .k_dim = 32,
     .v_dim = 32,
     .rope_dims = 32,
     .context = 128},
};

static struct nb_adapter *make(struct op_plan *p, uint32_t rank, uint32_t type, uint32_t every,
                               float by, bool sane)
{
    const struct nb_plan *plan = &p->plan;
    struct nb_adapter *a = calloc(1, sizeof(*a) + plan->n_matrices * sizeof(a->pairs[0]));
    if (!a)
        abort();
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct nb_op *op = &plan->ops[i];
        if (op->kind != NB_OP_LINEAR || op->w->n > 1 || i % every)
            continue;
        struct nb_adapter_pair *pair = &a->pairs[op->w - plan->matrices];
        pair->a = op_plan_factor(p, type, rank, op->w->packed.cols, sane);
        pair->b = op_plan_factor(p, type, op->w->packed.rows, rank, sane);
        pair->by = by;
        a->rank = rank;
    }
    return a;
}

void op_adapters_init(struct op_adapters *a, struct op_plan *p, uint32_t rank, bool sane)
{
    *a = (struct op_adapters){{make(p, rank, NB_TYPE_F32, 1, 0.02f, sane),
                               make(p, (rank + 2) / 3, NB_TYPE_F16, 1, -0.3f, sane),
                               make(p, rank + 17, NB_TYPE_BF16, 2, 0.01f, sane)},
                              {NULL}};
}

void op_adapters_finish(struct op_adapters *a)
{
    for (uint32_t i = 0; i < OP_ADAPTERS; i++)
        free(a->of[i]);
}

void op_adapter_open(const struct op_machine *m, const struct nb_adapter *adapter)
{
    const struct nb_device_ops *ops = m->device->ops;
    struct nb_error error = {""};
    if (ops->adapter_open && ops->adapter_open(m->model, adapter, &error) < 0) {
        fprintf(stderr, "ops-check: %s\n", error.text);
        exit(1);
    }
}

void op_adapter_close(const struct op_machine *m, const struct nb_adapter *adapter)
{
    if (m->device->ops->adapter_close)
        m->device->ops->adapter_close(m->model, adapter);
}

struct both {
    struct op_machine want, got;
    struct op_batch batch;
};

static void open_both(const struct both *m, const struct nb_adapter *adapter)
{
    op_adapter_open(&m->want, adapter);
    op_adapter_open(&m->got, adapter);
}

static void close_both(const struct both *m, const struct nb_adapter *adapter)
{
    op_adapter_close(&m->want, adapter);
    op_adapter_close(&m->got, adapter);
}

static void check_steps(struct both *m, const struct op_case *c, struct op_adapters *a,
                        const struct nb_adapter *first, const struct nb_adapter *second,
                        const struct nb_adapter *third)
{
    a->list[0] = first;
    a->list[1] = second;
    a->list[2] = third;
    m->batch.rows.adapters = a->list;
    op_check_steps(&m->want, &m->got, c, &script, &m->batch);
}

// One comes after the other, and one of them goes and comes again.
static void check_case(struct nb_device *reference, struct nb_device *device,
                       const struct op_case *c, uint32_t rank)
{
    struct op_plan p;
    struct op_adapters a;
    struct both m;
    op_plan_init(&p, c);
    op_adapters_init(&a, &p, rank, c->sane);
    op_open(&m.want, reference, &p);
    op_open(&m.got, device, &p);
    op_batch_init(&m.batch);
    open_both(&m, a.of[0]);
    check_steps(&m, c, &a, a.of[0], NULL, a.of[0]);
    open_both(&m, a.of[1]);
    open_both(&m, a.of[2]);
    check_steps(&m, c, &a, a.of[0], a.of[1], a.of[2]);
    check_steps(&m, c, &a, NULL, a.of[2], a.of[2]);
    close_both(&m, a.of[0]);
    check_steps(&m, c, &a, a.of[2], NULL, a.of[1]);
    open_both(&m, a.of[0]);
    check_steps(&m, c, &a, a.of[1], a.of[0], NULL);
    check_steps(&m, c, &a, NULL, NULL, NULL);
    for (uint32_t i = 0; i < OP_ADAPTERS; i++)
        close_both(&m, a.of[i]);
    check_steps(&m, c, &a, NULL, NULL, NULL);
    reference->ops->model_close(m.want.model);
    device->ops->model_close(m.got.model);
    op_adapters_finish(&a);
    op_plan_finish(&p);
}

void op_check_adapters(struct nb_device *reference, struct nb_device *device)
{
    static const uint32_t ranks[] = {1, 5, 16, 67};
    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct op_case c = cases[i];
        c.terms = 1 + i % 2;
        check_case(reference, device, &c, ranks[i % 4]);
    }
}
