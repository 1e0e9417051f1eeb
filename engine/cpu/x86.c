// Which of the x86 levels this processor (and its operating system) has.
#include "engine/cpu/isa.h"

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

const struct nb_kernels *nb_kernels_native(enum nb_isa isa)
{
    __builtin_cpu_init();
    if (isa == NB_ISA_AVX2 && has_avx2())
        return &nb_kernels_avx2;
    if (isa == NB_ISA_AVX512 && has_avx512())
        return &nb_kernels_avx512;
    return NULL;
}
