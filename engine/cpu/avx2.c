// The AVX2 level (with FMA and F16C): the templates over pairs of 256-bit registers.
#include "engine/cpu/isa.h"
#include "engine/cpu/simd_avx2.h"
#include "engine/cpu/gemm_tmpl.h"
#include "engine/cpu/vector_tmpl.h"
#include "engine/cpu/attention_tmpl.h"

#define LEVEL      nb_kernels_avx2
#define LEVEL_NAME "avx2"
#include "engine/cpu/table_tmpl.h"
