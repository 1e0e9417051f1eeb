// The AVX-512 level (F, BW, VL, DQ, VNNI): the templates over 512-bit registers. The harness
// compiles this file once more, under another name, for machines without AVX-512 (see
// simd_avx512.h).
#include "engine/cpu/isa.h"
#include "engine/cpu/simd_avx512.h"
#include "engine/cpu/gemm_tmpl.h"
#include "engine/cpu/vector_tmpl.h"
#include "engine/cpu/attention_tmpl.h"

#ifndef LEVEL
#define LEVEL      nb_kernels_avx512
#define LEVEL_NAME "avx512"
#endif
#include "engine/cpu/table_tmpl.h"
