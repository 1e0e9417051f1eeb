// The speed of each section of a layer by the device's own clock, beside the limits measured on it:
// chains of multiplications on registers alone. It asserts nothing.
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
                     struct nb_op_time ret[NB_SECTIONS])
{
    struct nb_op_time before[NB_SECTIONS], after[NB_SECTIONS];
    uint64_t ns[NB_SECTIONS][RUNS];
    for (int i = -1; i < RUNS; i++) { // the first makes the pipelines
        m->device->ops->times(m->model, before);
        for (int j = 0; j < STEPS; j++)
            op_step(m, &b->rows);
        m->device->ops->times(m->model, after);
        for (int k = 0; k < NB_SECTIONS && i >= 0; k++) {
            ns[k][i] = (after[k].ns - before[k].ns) / STEPS;
            ret[k].dispatches = (after[k].dispatches - before[k].dispatches) / STEPS;
        }
    }
    for (int k = 0; k < NB_SECTIONS; k++) {
        qsort(ns[k], RUNS, sizeof(ns[k][0]), ascending);
        ret[k].ns = ns[k][RUNS / 2];
    }
}

// Operations and bytes of weights of a section's products; of experts those that are chosen.
static void cost(const struct op_plan *p, enum nb_section section, uint32_t rows, double *ret_ops,
                 double *ret_bytes, bool *ret_float)
{
    *ret_ops = *ret_bytes = 0;
    for (const struct nb_op *op = p->ops; op < p->ops + p->plan.n_ops; op++) {
        if (op->section != section || op->kind != NB_OP_LINEAR)
            continue;
        const struct nb_packed *w = &op->w->packed;
        const uint32_t times = op->w->n > 1 ? rows * p->plan.hp.n_chosen : rows;
        const uint32_t read = op->w->n < times ? op->w->n : times;
        *ret_float = nb_is_float(w);
        *ret_ops += 2.0 * w->rows * w->cols * times * (*ret_float ? 1 : op->terms);
        *ret_bytes += (double)nb_packed_bytes(w) * read;
    }
}

static void print_section(const char *name, const struct op_plan *p, enum nb_section section,
                          uint32_t rows, const struct nb_op_time *t)
{
    double ops, bytes, ns = (double)t->ns;
    bool is_float = false;
    cost(p, section, rows, &ops, &bytes, &is_float);
    printf("%-34s %-9s rows %3u %9.1f us %2lu dispatches", name, nb_section_names[section], rows,
           ns * 1e-3, (unsigned long)t->dispatches);
    if (ops > 0)
        printf(" %7.2f Gop/s", ops / ns);
    if (ops > 0 && integer_peak > 0)
        printf(" %5.1f %% of the limit", 100 * ops / ns / (is_float ? float_peak : integer_peak));
    printf(ops > 0 ? " %6.2f GB/s\n" : "\n", bytes / ns);
}

// What the case's middle takes, or its head.
static void bench_case(struct nb_device *d, const struct op_case *c, const char *filter)
{
    static const uint32_t rows[] = {1, 4, 8, 32, 64};
    char name[80];
    snprintf(name, sizeof(name), "%s %s terms %u", c->what, nb_type_name(c->type), c->terms);
    if (!strstr(name, filter))
        return;
    struct op_run r;
    struct op_adapters a = {{NULL}, {NULL}};
    op_run_begin(&r, d, c);
    if (c->rank) {
        op_adapters_init(&a, &r.plan, c->rank, true);
        op_adapter_open(&r.machine, a.of[0]);
        a.list[0] = a.of[0];
        r.batch.rows.adapters = a.list;
    }
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct nb_op_time t[NB_SECTIONS] = {0};
        op_run_rows(&r, rows[i], c->context ? c->context - OP_ROWS : 0);
        measure_peaks(d);
        time_ops(&r.machine, &r.batch, t);
        for (enum nb_section section = 0; section < NB_SECTIONS; section++)
            if (t[section].ns && section != NB_SECTION_EMBED &&
                (section != NB_SECTION_HEAD || c->middle == MIDDLE_NONE))
                print_section(name, &r.plan, section, rows[i], &t[section]);
    }
    if (c->rank)
        op_adapter_close(&r.machine, a.of[0]);
    op_adapters_finish(&a);
    op_run_end(&r);
}

// A layer of a small llama, with adapters of all of its matrices and without.
static void bench_adapters(struct nb_device *d, const char *filter)
{
    static const uint32_t ranks[] = {0, 8, 64};
    for (size_t i = 0; i < sizeof(ranks) / sizeof(ranks[0]); i++) {
        char what[40];
        snprintf(what, sizeof(what), "adapters of rank %u", ranks[i]);
        bench_case(d,
                   &(struct op_case){.what = ranks[i] ? what : "no adapters",
                                     .middle = MIDDLE_BOTH,
                                     .type = NB_TYPE_Q4_1,
                                     .type2 = NB_TYPE_Q4_1,
                                     .terms = 1,
                                     .norm = true,
                                     .sane = true,
                                     .embedding = 576,
                                     .ffn = 1536,
                                     .heads = 9,
                                     .kv_heads = 3,
                                     .k_dim = 64,
                                     .v_dim = 64,
                                     .rope_dims = 64,
                                     .context = OP_ROWS,
                                     .rank = ranks[i]},
                   filter);
    }
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
    bench_case(d, &c, filter);
    c = (struct op_case){.what = "head",
                         .type = type,
                         .terms = terms,
                         .norm = true,
                         .sane = true,
                         .embedding = width,
                         .vocab = 8192};
    bench_case(d, &c, filter);
}

// Layers as families have them, in the shapes of small models of theirs.
static void bench_families(struct nb_device *d, const char *filter)
{
    const struct op_case usual = {.middle = MIDDLE_BOTH,
                                  .type = NB_TYPE_Q4_1,
                                  .type2 = NB_TYPE_Q4_1,
                                  .terms = 1,
                                  .norm = true,
                                  .sane = true,
                                  .embedding = 640,
                                  .ffn = 2048,
                                  .heads = 4,
                                  .kv_heads = 1,
                                  .k_dim = 256,
                                  .v_dim = 256,
                                  .rope_dims = 256,
                                  .neox = true,
                                  .context = 512};
    struct op_case c = usual;
    c.what = "norms around, GELU";
    c.head_norm = HEAD_NORM_SHARED;
    c.apart = true;
    c.activation = NB_ACT_GELU;
    bench_case(d, &c, filter);
    c = usual;
    c.what = "LayerNorm, biases, no gate";
    c.norm_kind = NB_NORM_LAYER;
    c.activation = NB_ACT_GELU;
    c.bias = c.fused = c.gateless = c.still = true;
    bench_case(d, &c, filter);
    c = usual;
    c.what = "fused matrices";
    c.fused = true;
    bench_case(d, &c, filter);
    c = usual;
    c.what = "2 of 8 experts";
    c.middle = MIDDLE_EXPERTS;
    c.experts = 8;
    c.chosen = 2;
    bench_case(d, &c, filter);
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
                   filter);
    }
    bench_families(d, filter);
    bench_adapters(d, filter);
}
