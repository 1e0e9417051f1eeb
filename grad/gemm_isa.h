// The tables of the ISA levels. Private to grad/.
#pragma once

#include "grad/gemm_kernels.h"

extern const struct nb_gemm_kernels nb_sgemm_scalar, nb_bgemm_scalar;
extern const struct nb_gemm_kernels nb_sgemm_avx2, nb_bgemm_avx2;
extern const struct nb_gemm_kernels nb_sgemm_avx512, nb_bgemm_avx512;
extern const struct nb_gemm_kernels nb_bgemm_pairs;

// The tables above scalar of this architecture, NULL where it has none or this processor lacks the
// instructions (gemm_x86.c, gemm_other.c).
const struct nb_gemm_kernels *nb_sgemm_native(enum nb_isa isa);
const struct nb_gemm_kernels *nb_bgemm_native(enum nb_isa isa);
const struct nb_gemm_kernels *nb_bgemm_native_pairs(enum nb_isa isa);
