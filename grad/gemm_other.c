// Architectures for which only the scalar tables exist.
#include "grad/gemm_isa.h"

const struct nb_gemm_kernels *nb_sgemm_native(enum nb_isa isa)
{
    return NULL;
}

const struct nb_gemm_kernels *nb_bgemm_native(enum nb_isa isa)
{
    return NULL;
}

const struct nb_gemm_kernels *nb_bgemm_native_pairs(enum nb_isa isa)
{
    return NULL;
}
