// kernels-check [--bench [filter]]: compares every op of every ISA level with the scalar reference
// on the bits, or times them.
#include <stdio.h>
#include <string.h>

#include "tests/kernels/check.h"
#include "tests/kernels/report.h"

static const struct {
    const char *name;
    void (*run)(const struct nb_kernels *k);
} ops[] = {
    {"quantize", check_quantize},
    {"gemm", check_gemm},
    {"decode_row", check_decode},
    {"rmsnorm", check_rmsnorm},
    {"layernorm", check_layernorm},
    {"activate", check_activate},
    {"add", check_add},
    {"cap", check_cap},
    {"rope", check_rope},
    {"kv_write", check_kv_write},
    {"attention", check_attention},
    {"groupwise", check_groupwise},
};

int main(int argc, char **argv)
{
    const struct nb_kernels *levels[8];
    size_t n = 0;
    for (int isa = NB_ISA_SCALAR; isa < NB_ISA_COUNT; isa++)
        if (nb_kernels_of((enum nb_isa)isa))
            levels[n++] = nb_kernels_of((enum nb_isa)isa);
    if (argc > 1 && strcmp(argv[1], "--bench") == 0)
        return bench(levels, n, argc > 2 ? argv[2] : "");
    if (emulated_level())
        levels[n++] = emulated_level();
    for (size_t l = 0; l < n; l++)
        for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
            size_t failed = check_report.failed;
            check_report.level = levels[l]->name;
            check_report.op = ops[i].name;
            check_report.compared = 0;
            ops[i].run(levels[l]);
            printf("%-14s %-10s %10zu values  %s\n", levels[l]->name, ops[i].name,
                   check_report.compared, check_report.failed == failed ? "ok" : "FAILED");
        }
    check_sgemm();
    return check_report.failed > 0;
}
