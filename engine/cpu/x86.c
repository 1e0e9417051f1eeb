// Which of the x86 levels this processor (and its operating system) has.
#include "engine/cpu/isa.h"

const struct nb_kernels *nb_kernels_native(enum nb_isa isa)
{
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == NB_ISA_AVX2 && avx2)
        return &nb_kernels_avx2;
    return NULL;
}
