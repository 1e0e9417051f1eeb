// The tables of the ISA levels, and who chooses among them. Private to engine/cpu/.
#pragma once

#include "engine/cpu/kernels.h"

extern const struct nb_kernels nb_kernels_scalar;
extern const struct nb_kernels nb_kernels_avx2;
extern const struct nb_kernels nb_kernels_avx512;

// The table of a level above scalar, NULL where this processor or architecture lacks it (x86.c,
// other.c).
const struct nb_kernels *nb_kernels_native(enum nb_isa isa);
