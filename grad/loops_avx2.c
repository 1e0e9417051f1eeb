// The AVX2 level of the float engine's loops.
#define LEVEL nb_loops_avx2
#include "grad/loops_tmpl.h"
