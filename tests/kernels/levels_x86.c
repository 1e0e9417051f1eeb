// The levels to check on x86: those of this processor, and AVX-512 by SIMDe.
#include "grad/gemm_kernels.h"
#include "tests/kernels/check.h"

extern const struct nb_kernels nb_kernels_avx512_simde;
extern const struct nb_gemm_kernels nb_sgemm_avx512_simde, nb_bgemm_avx512_simde;

const struct nb_kernels *emulated_level(void)
{
    return nb_kernels_of(NB_ISA_AVX2) ? &nb_kernels_avx512_simde : NULL;
}

const struct nb_gemm_kernels *emulated_sgemm(void)
{
    return nb_kernels_of(NB_ISA_AVX2) ? &nb_sgemm_avx512_simde : NULL;
}

const struct nb_gemm_kernels *emulated_bgemm(void)
{
    return nb_kernels_of(NB_ISA_AVX2) ? &nb_bgemm_avx512_simde : NULL;
}
