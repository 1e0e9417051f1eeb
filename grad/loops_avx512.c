// The AVX-512 level of the float engine's loops.
#define LEVEL nb_loops_avx512
#include "grad/loops_tmpl.h"
