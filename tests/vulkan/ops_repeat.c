// Steps again and again: where the workgroup that ends last finishes what others have made, a fence
// that is missing shows once in thousands.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/check.h"
#include "tests/kernels/report.h"
#include "tests/vulkan/ops.h"

static const struct op_case cases[] = {
    {.what = "ffn again",
     .middle = MIDDLE_FFN,
     .type = NB_TYPE_Q4_0,
     .type2 = NB_TYPE_Q4_0,
     .terms = 1,
     .norm = true,
     .sane = true,
     .embedding = 576,
     .ffn = 1536},
    {.what = "ffn of halves again",
     .middle = MIDDLE_FFN,
     .type = NB_TYPE_F16,
     .type2 = NB_TYPE_F16,
     .terms = 1,
     .norm = true,
     .sane = true,
     .embedding = 576,
     .ffn = 1536},
    {.what = "attention again",
     .middle = MIDDLE_ATTENTION,
     .type = NB_TYPE_Q8_0,
     .type2 = NB_TYPE_Q8_0,
     .terms = 2,
     .norm = true,
     .sane = true,
     .embedding = 576,
     .heads = 9,
     .kv_heads = 3,
     .k_dim = 64,
     .v_dim = 64,
     .rope_dims = 64},
};

// Steps of so many rows; stops at the first that differs.
static uint32_t repeat(struct nb_device *d, const struct op_case *c, uint32_t rows, uint32_t times)
{
    struct op_run r;
    uint32_t i = 1;
    op_run_begin(&r, d, c);
    op_run_rows(&r, rows, 0);
    const size_t n = (size_t)rows * r.plan.plan.hp.vocab;
    float *first = buffer(n * sizeof(*first));
    memcpy(first, op_step(&r.machine, &r.batch.rows), n * sizeof(*first));
    const size_t failed = check_report.failed;
    for (; i < times && check_report.failed == failed; i++)
        check_bytes(first, op_step(&r.machine, &r.batch.rows), n * sizeof(*first),
                    "%s, %u rows: step %u of %u", c->what, rows, i + 1, times);
    free(first);
    op_run_end(&r);
    return i;
}

void op_repeat(struct nb_device *d, uint32_t times)
{
    static const uint32_t rows[] = {1, 2, 8};
    static struct nb_device_info info;
    d->ops->info(d, &info);
    check_report.level = info.name;
    check_report.op = "repeat";
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (size_t j = 0; j < sizeof(rows) / sizeof(rows[0]) && op_is_wanted(cases[i].type); j++) {
            size_t failed = check_report.failed;
            uint32_t n = repeat(d, &cases[i], rows[j], times);
            printf("%-8s %-10s %-20s rows %u %6u steps  %s\n", info.name, info.isa, cases[i].what,
                   rows[j], n, check_report.failed == failed ? "ok" : "FAILED");
            fflush(stdout);
        }
}
