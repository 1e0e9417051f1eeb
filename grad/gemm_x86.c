// Which of the x86 tables this processor has.
#include "grad/gemm_isa.h"

static const struct nb_gemm_kernels *const sgemm[NB_ISA_COUNT] = {
    [NB_ISA_AVX2] = &nb_sgemm_avx2, [NB_ISA_AVX512] = &nb_sgemm_avx512};
static const struct nb_gemm_kernels *const bgemm[NB_ISA_COUNT] = {
    [NB_ISA_AVX2] = &nb_bgemm_avx2, [NB_ISA_AVX512] = &nb_bgemm_avx512};

const struct nb_gemm_kernels *nb_sgemm_native(enum nb_isa isa)
{
    return nb_kernels_of(isa) ? sgemm[isa] : NULL;
}

const struct nb_gemm_kernels *nb_bgemm_native(enum nb_isa isa)
{
    return nb_kernels_of(isa) ? bgemm[isa] : NULL;
}

const struct nb_gemm_kernels *nb_bgemm_native_pairs(enum nb_isa isa)
{
    __builtin_cpu_init();
    bool has = isa == NB_ISA_AVX512 && nb_kernels_of(isa) && __builtin_cpu_supports("avx512bf16");
    return has ? &nb_bgemm_pairs : NULL;
}
