// The speed of each operator by the device's own clock, beside the limits measured on it: chains of
// multiplications on registers alone. It asserts nothing.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/vulkan/device.h"
#include "tests/kernels/check.h"
#include "tests/vulkan/ops.h"

#define RUNS  5
#define STEPS 16 // of a run: a device may time one of so many

// Measured anew beside each figure, because the machine's speed drifts.
static double integer_peak, float_peak; // operations a nanosecond

static void measure_peaks(struct nb_device *d)
{
    if (d->ops != &nb_vulkan_ops ||
        driver_peak((struct nb_vulkan_device *)d, &integer_peak, &float_peak) < 0)
        integer_peak = float_peak = 0;
    integer_peak *= 1e-9;
    float_peak *= 1e-9;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// Medians of each op's device time in a step.
static void time_ops(const struct op_machine *m, const struct op_batch *b,
                     struct nb_op_time ret[NB_OP_KINDS])
{
    struct nb_op_time before[NB_OP_KINDS], after[NB_OP_KINDS];
    uint64_t ns[NB_OP_KINDS][RUNS];
    for (int i = -1; i < RUNS; i++) { // the first makes the pipelines
        m->device->ops->times(m->model, before);
        for (int j = 0; j < STEPS; j++)
            op_step(m, &b->rows);
        m->device->ops->times(m->model, after);
        for (int k = 0; k < NB_OP_KINDS && i >= 0; k++) {
            ns[k][i] = (after[k].ns - before[k].ns) / STEPS;
            ret[k].dispatches = (after[k].dispatches - before[k].dispatches) / STEPS;
        }
    }
    for (int k = 0; k < NB_OP_KINDS; k++) {
        qsort(ns[k], RUNS, sizeof(ns[k][0]), ascending);
        ret[k].ns = ns[k][RUNS / 2];
    }
}

// Operations and bytes of weights of an op's products.
static void cost(const struct nb_op *op, uint32_t rows, double *ret_ops, double *ret_bytes,
                 bool *ret_float)
{
    *ret_ops = *ret_bytes = 0;
    for (int j = 0; j < 3 && op->kind != NB_OP_EMBED; j++) {
        const struct nb_packed *w = op->m[j].w;
        if (!w)
            continue;
        *ret_float = nb_is_float(w);
        *ret_ops += 2.0 * w->rows * w->cols * rows * (*ret_float ? 1 : op->terms);
        *ret_bytes += (double)nb_packed_bytes(w);
    }
}

static void print_op(const char *name, const struct nb_op *op, uint32_t rows,
                     const struct nb_op_time *t)
{
    static const char *const kinds[NB_OP_KINDS] = {"embed",   "qkv",  "attention", "out",
                                                   "gate_up", "down", "head"};
    double ops, bytes, ns = (double)t->ns;
    bool is_float = false;
    cost(op, rows, &ops, &bytes, &is_float);
    printf("%-34s %-9s rows %3u %9.1f us %2lu dispatches", name, kinds[op->kind], rows, ns * 1e-3,
           (unsigned long)t->dispatches);
    if (ops > 0)
        printf(" %7.2f Gop/s", ops / ns);
    if (ops > 0 && integer_peak > 0)
        printf(" %5.1f %% of the limit", 100 * ops / ns / (is_float ? float_peak : integer_peak));
    printf(ops > 0 ? " %6.2f GB/s\n" : "\n", bytes / ns);
}

// `from`: the first op of the plan that is of interest.
static void bench_case(struct nb_device *d, const struct op_case *c, uint32_t from, uint32_t n_ops,
                       const char *filter)
{
    static const uint32_t rows[] = {1, 4, 8, 32, 64};
    char name[80];
    snprintf(name, sizeof(name), "%s %s terms %u", c->what, nb_type_name(c->type), c->terms);
    if (!strstr(name, filter))
        return;
    struct op_plan p;
    struct op_machine m;
    struct op_batch b;
    op_plan_init(&p, c);
    op_open(&m, d, &p);
    op_batch_init(&b);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct nb_op_time t[NB_OP_KINDS] = {0};
        op_batch_fill(&b, (uint32_t[OP_SEQUENCES]){rows[i]},
                      (uint32_t[OP_SEQUENCES]){c->context ? c->context - OP_ROWS : 0});
        measure_peaks(d);
        time_ops(&m, &b, t);
        for (uint32_t o = from; o < from + n_ops; o++)
            print_op(name, &p.ops[o], rows[i], &t[p.ops[o].kind]);
    }
    d->ops->model_close(m.model);
    op_plan_finish(&p);
}

static void bench_type(struct nb_device *d, uint32_t type, uint32_t terms, const char *filter)
{
    uint32_t width = nb_type_info(type)->block == 256 ? 512 : 576;
    struct op_case c = {.what = "ffn",
                        .middle = MIDDLE_FFN,
                        .type = type,
                        .type2 = type,
                        .terms = terms,
                        .norm = true,
                        .sane = true,
                        .embedding = width,
                        .ffn = 1536};
    bench_case(d, &c, 1, 2, filter);
    c = (struct op_case){.what = "head",
                         .type = type,
                         .terms = terms,
                         .norm = true,
                         .sane = true,
                         .embedding = width,
                         .vocab = 8192};
    bench_case(d, &c, 1, 1, filter);
}

void op_bench(struct nb_device *d, const char *filter)
{
    static const uint32_t contexts[] = {OP_ROWS, 512, 2048};
    setvbuf(stdout, NULL, _IOLBF, 0);
    measure_peaks(d);
    printf("the limits: %.1f Gop/s of packed integers, %.1f of floats\n", integer_peak, float_peak);
    for (uint32_t i = 0; i < 2 * check_n_types; i++)
        bench_type(d, check_types[i / 2], 1 + i % 2, filter);
    for (size_t i = 0; i < sizeof(contexts) / sizeof(contexts[0]); i++) {
        char what[40];
        snprintf(what, sizeof(what), "attention after %u", contexts[i] - OP_ROWS);
        bench_case(d,
                   &(struct op_case){.what = what,
                                     .middle = MIDDLE_ATTENTION,
                                     .type = NB_TYPE_Q4_1,
                                     .type2 = NB_TYPE_Q4_1,
                                     .terms = 1,
                                     .norm = true,
                                     .sane = true,
                                     .embedding = 576,
                                     .heads = 9,
                                     .kv_heads = 3,
                                     .k_dim = 64,
                                     .v_dim = 64,
                                     .rope_dims = 64,
                                     .context = contexts[i]},
                   1, 3, filter);
    }
}
