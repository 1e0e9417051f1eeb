// Products of float matrices at the AVX2 level: tiles of 6 rows by 16 columns, in 12 of 16
// registers.
#include "engine/cpu/simd_avx2.h"
#include "grad/gemm_isa.h"

#define ROWS    6
#define VECTORS 1
#include "grad/gemm_words_tmpl.h"
#include "grad/gemm_tmpl.h"

#define LEVEL(kind) nb_##kind##_avx2
#define LEVEL_NAME  "avx2"
#include "grad/gemm_table_tmpl.h"
