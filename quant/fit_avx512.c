// The searches on AVX512.
#include "engine/cpu/simd_avx512.h"

#define LEVEL      nb_fit_avx512
#define LEVEL_NAME "avx512"
#include "quant/fit_tmpl.h"
