// Chooses the level of the searches that goes with the engine's kernels.
#include "quant/fit.h"

#include <string.h>

const struct nb_fit *nb_fit_best(void)
{
    const struct nb_kernels *k = nb_kernels_best();
    for (int isa = 0; k && isa < NB_ISA_COUNT; isa++)
        if (nb_fits[isa] && strcmp(nb_fits[isa]->name, k->name) == 0)
            return nb_fits[isa];
    return NULL;
}
