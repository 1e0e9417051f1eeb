// How far vectors point apart, and how far relations among them are from those among others.
#pragma once

#include <stdint.h>

// 1 - cos(x, y), which is 1 where either is zero; and d += weight times its gradient in x (NULL: it
// is not wanted). x, y, d: [n]. A pure function.
double nb_away(const float *x, const float *y, uint32_t n, float weight, float *d);

// Texts' vectors, one behind the other.
struct nb_vectors {
    const float *x; // [texts][width]
    uint32_t width;
};
// Of each text i the mean over the others j of (cos(x_i, x_j) - cos(y_i, y_j))^2, where a cosine
// with zero is 0; and d += weight times the gradient in x of the mean over all texts (NULL: it is
// not wanted). The two may differ in width. ret: [n]; d: [n][width of x]. Pure; -ENOMEM. The method
// is Tung and Mori's (Similarity-Preserving Knowledge Distillation, arXiv 1907.09682) with cosines
// in the place of products that are normalised by rows.
int nb_relation(const struct nb_vectors *x, const struct nb_vectors *y, uint32_t n, float weight,
                float *ret, float *d);
