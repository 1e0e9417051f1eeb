// Architectures for which only the scalar kernels exist.
#include "engine/cpu/isa.h"

const struct nb_kernels *nb_kernels_native(enum nb_isa isa)
{
    return NULL;
}
