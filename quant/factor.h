// The triangular factor of a damped Hessian, shared by all matrices that read the same inputs.
//
// GPTQ (Frantar et al., 2022) takes the Cholesky factor of the inverse. LDLQ (Chee et al., QuIP,
// 2023) showed that this is the same as H = (U + 1) D (U + 1)^T, U strictly upper: then column k is
// rounded with sum over j < k of (w[j] - rounded[j]) * U[j][k] added to it. That needs one
// factorization and no inverse.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/cpu/threads.h"

struct nb_factor;

struct nb_factor_options {
    float damping; // added to the diagonal, in units of its mean; 0.01 is usual
    bool by_size;  // columns with the largest diagonal first (activation order)
};

// hessian: [cols][cols], read up to the diagonal; cols is a multiple of 16. Columns whose diagonal
// is 0 were never active: they get a diagonal of the mean, so that they are rounded to nearest and
// disturb nobody. Where the factorization fails the damping is raised tenfold, from the original
// diagonal, up to 1 and more: -EDOM past that, and where a number is not finite. -ENOMEM.
int nb_factor_create(struct nb_team *team, const double *hessian, uint32_t cols,
                     const struct nb_factor_options *options, struct nb_factor **ret);
void nb_factor_destroy(struct nb_factor *f);

float nb_factor_damping(const struct nb_factor *f); // what it took
uint32_t nb_factor_dead(const struct nb_factor *f); // columns that were never active
