// Architectures that have the scalar kernels alone, and builds under a sanitizer: no emulated
// level, and nothing to time.
#include "tests/kernels/check.h"
#include "tests/kernels/peak.h"

const struct nb_kernels *emulated_level(void)
{
    return NULL;
}

const struct nb_gemm_kernels *emulated_sgemm(void)
{
    return NULL;
}

const struct nb_gemm_kernels *emulated_bgemm(void)
{
    return NULL;
}

double peak_avx2(void)
{
    return 0.0;
}

double peak_read(const void *memory, size_t n)
{
    return 0.0;
}

double peak_fma_avx2(void)
{
    return 0.0;
}

double peak_fma_avx512(void)
{
    return 0.0;
}

double peak_bf16(void)
{
    return 0.0;
}
