// A random rotation of n channels, as a product that takes n log n steps: signs, then the
// Walsh-Hadamard matrix of the largest power of two in n beside a random orthogonal matrix of what
// is left. Of 576 channels: H_64 and 9 by 9. Method: QuaRot (Ashkboos and others, 2024), whose
// Hadamard matrices of odd multiples are tables.
#pragma once

#include <stdint.h>

#define NB_ROTATION_ODD 1024 // the largest odd factor of n

struct nb_rotation;

// The same rotation for the same n and seed, on every machine. -ENOTSUP for an odd factor over the
// bound, -ENOMEM.
int nb_rotation_create(uint32_t n, uint64_t seed, struct nb_rotation **ret);
void nb_rotation_destroy(struct nb_rotation *r); // NULL is fine

uint32_t nb_rotation_n(const struct nb_rotation *r);
// x, a row of n, becomes x R: what a column y of n becomes as R^T y. From any thread.
void nb_rotation_apply(const struct nb_rotation *r, double *x);
