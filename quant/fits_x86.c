// The levels of an x86.
#include "quant/fit.h"

const struct nb_fit *const nb_fits[NB_ISA_COUNT] = {
    [NB_ISA_SCALAR] = &nb_fit_plain,
    [NB_ISA_AVX2] = &nb_fit_avx2,
    [NB_ISA_AVX512] = &nb_fit_avx512,
};
