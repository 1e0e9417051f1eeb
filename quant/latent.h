// A quantized matrix under training. Each weight has a continuous number whose nearest code is the
// weight's, each block a continuous scale and minimum whose nearest fp16 numbers are the block's;
// integer sub-scales stay as they are. So what a forward pass computes with is at any time exactly
// what the encoded bytes decode to.
//
// With u the continuous number, q = nearest(u) and a gradient G of the loss in the decoded weights
// w = ws * q + wm (docs/numerics.md), descent follows
//     u       sign(ws) G               straight through the rounding (Bengio and others, arXiv
//                                      1308.3432); |ws| is left out, since Adam divides by it
//     scale   sum of G sub q           the exact derivative while codes stay, straight through the
//     min     sum of G, or -G sub_min  rounding to fp16
// by Adam (Kingma and Ba, arXiv 1412.6980). u is in units of a code, so codes do not flip when a
// scale moves. No type is known by name.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine/cpu/threads.h"

struct nb_latent;

// One step of Adam. Rates may be 0: then only the moments move.
struct nb_descent {
    float code_rate;           // steps between codes (of IQ4's table: the mean one)
    float scale_rate;          // relative to the scale, or the minimum, at the start
    float vector_rate;         // of vectors beside: quant/tune.h
    float scale;               // of the gradient, before all else: what clips it
    float first, second;       // how much of the moments stays
    float first_by, second_by; // what makes young moments unbiased: 1 / (1 - first^t)
    float floor;               // is added to the root of the second moment
};

// Codes, scales and all are those of `encoded`, [rows] of the type, but for Q8_0's -128, which
// becomes -127. `weights`: [rows][cols], what the codes stand for; where a code is not the nearest
// to its weight (error feedback chose it), u begins within the code's own cell, on that side.
// Both are read during the call alone. -ENOTSUP for a float type and what Nibble does not load,
// -EINVAL where cols is no whole blocks, -EDOM where a scale or weight is not finite, -ENOMEM.
int nb_latent_create(struct nb_team *team, uint32_t type, uint64_t rows, uint32_t cols,
                     const void *encoded, const float *weights, struct nb_latent **ret);
void nb_latent_destroy(struct nb_latent *l); // NULL is fine

// Those below run on the team, whose caller is thread 0. The same bits whatever its size.
//
// ret: [rows][cols], what nb_latent_encode's bytes decode to.
void nb_latent_decode(const struct nb_latent *l, struct nb_team *team, float *ret);
// gradient: [rows][cols], of the loss in what nb_latent_decode gave last.
void nb_latent_descend(struct nb_latent *l, struct nb_team *team, const float *gradient,
                       const struct nb_descent *how);
// Forgets the moments: what follows has another loss.
void nb_latent_settle(struct nb_latent *l);
// ret: [rows] of the type.
void nb_latent_encode(const struct nb_latent *l, struct nb_team *team, void *ret);

// Between neighbouring codes of the start, in weights, on the average; 0: all its scales are.
float nb_latent_gap(const struct nb_latent *l);

// Everything that descent moves. Copied out, and into a matrix that was created from the same
// arguments, it goes on to the same bits.
float *nb_latent_state(const struct nb_latent *l, size_t *ret_floats);
// What creation takes, for who sums up memory before; 0 for a type that it refuses.
uint64_t nb_latent_bytes(uint32_t type, uint64_t rows, uint32_t cols);
