// Architectures for which only the plain level exists.
#include "quant/fit.h"

const struct nb_fit *const nb_fits[NB_ISA_COUNT] = {[NB_ISA_SCALAR] = &nb_fit_plain};
