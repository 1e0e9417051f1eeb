// Products of float matrices at the AVX-512 level: tiles of 8 rows by 48 columns, in 24 of 32
// registers.
#include "engine/cpu/simd_avx512.h"
#include "grad/gemm_isa.h"

#define ROWS    8
#define VECTORS 3
#include "grad/gemm_words_tmpl.h"
#include "grad/gemm_tmpl.h"

#ifndef LEVEL
#define LEVEL(kind) nb_##kind##_avx512
#define LEVEL_NAME  "avx512"
#endif
#include "grad/gemm_table_tmpl.h"
