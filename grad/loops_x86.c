// Chooses a table of loops on x86. No arithmetic here.
#include "engine/cpu/kernels.h"
#include "grad/loops.h"

const struct nb_loops *nb_loops_best(void)
{
    const struct nb_kernels *best = nb_kernels_best();
    if (best && best == nb_kernels_of(NB_ISA_AVX512))
        return &nb_loops_avx512;
    if (best && best == nb_kernels_of(NB_ISA_AVX2))
        return &nb_loops_avx2;
    return best ? &nb_loops_scalar : NULL;
}
