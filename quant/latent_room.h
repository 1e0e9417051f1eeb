// A matrix under training from the inside: for latent.c and, by ISA level, latent_tmpl.h alone.
#pragma once

#include "quant/latent.h"
#include "quant/shape.h"

// Numbers under training with the moments of their gradients.
struct nb_moving {
    float *x, *first, *second;
};

struct nb_scales {
    struct nb_moving moving;
    float *stored; // as fp16 has them
    float *unit;   // what a rate of 1 moves them by
};

struct nb_latent_loops;

struct nb_latent {
    const struct nb_latent_loops *loops;
    struct nb_shape shape;
    size_t blocks;               // of all rows
    struct nb_moving code;       // [blocks][shape.block]
    struct nb_scales scale, min; // [blocks]; min is NULL where the type has none
    float *sub, *sub_min;        // [blocks][shape.groups]; NULL without sub-scales
    uint8_t *encoded;            // the start; sub-scales are taken from there
    float *memory;
    size_t state_floats; // of memory, from its beginning: all that moves
};

struct nb_latent_loops {
    // Blocks [first, first + n); ret and gradient point to the first block's weights.
    void (*decode)(const struct nb_latent *l, size_t first, size_t n, float *ret);
    void (*descend)(const struct nb_latent *l, size_t first, size_t n, const float *gradient,
                    const struct nb_descent *how);
    // What the codes of a block stand for.
    void (*codes)(const struct nb_latent *l, size_t block, float *ret);
};
