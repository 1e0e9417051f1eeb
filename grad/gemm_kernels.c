// Chooses the tables of a product.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "grad/gemm_isa.h"

const struct nb_gemm_kernels *nb_sgemm_of(enum nb_isa isa)
{
    return isa == NB_ISA_SCALAR ? &nb_sgemm_scalar : nb_sgemm_native(isa);
}

const struct nb_gemm_kernels *nb_bgemm_of(enum nb_isa isa, bool pairs)
{
    if (pairs)
        return nb_bgemm_native_pairs(isa);
    return isa == NB_ISA_SCALAR ? &nb_bgemm_scalar : nb_bgemm_native(isa);
}

static const struct nb_gemm_kernels *sgemm, *bgemm;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void choose(void)
{
    const char *forced = getenv("NIBBLE_ISA");
    for (int i = NB_ISA_COUNT - 1; i >= 0 && !sgemm; i--) {
        const enum nb_isa isa = (enum nb_isa)i;
        const struct nb_gemm_kernels *k = nb_sgemm_of(isa), *pairs = nb_bgemm_of(isa, true);
        if (!k || (forced && strcmp(forced, k->name) != 0))
            continue;
        sgemm = k;
        bgemm = pairs ? pairs : nb_bgemm_of(isa, false);
    }
}

const struct nb_gemm_kernels *nb_sgemm_best(void)
{
    pthread_once(&once, choose);
    return sgemm;
}

const struct nb_gemm_kernels *nb_bgemm_best(void)
{
    pthread_once(&once, choose);
    return bgemm;
}
