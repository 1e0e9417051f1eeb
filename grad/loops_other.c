// The loops of architectures that have the scalar level alone.
#include "engine/cpu/kernels.h"
#include "grad/loops.h"

const struct nb_loops *nb_loops_best(void)
{
    return nb_kernels_best() ? &nb_loops_scalar : NULL;
}
