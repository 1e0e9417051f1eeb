// The searches on AVX2.
#include "engine/cpu/simd_avx2.h"

#define LEVEL      nb_fit_avx2
#define LEVEL_NAME "avx2"
#include "quant/fit_tmpl.h"
