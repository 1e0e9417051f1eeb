// What attention makes of a text's tokens, by which MiniLM's students follow their teachers (Wang
// and others, MiniLMv2, arXiv 2012.15828): the relation of a token to the others is the softmax
// over the products of its vector with theirs, divided by the root of their length, of queries with
// queries, keys with keys and values with values. Students may have vectors of another length: both
// are cut into equally many heads.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/cpu/threads.h"

struct nb_relations {
    uint32_t heads;
    uint32_t width, taught_width; // of a row, all heads
    bool causal;  // a token is related to those up to itself, else to all of its text
    float weight; // of a row in the gradient
};

#define NB_RELATIONS_TILE 128 // rows at once
// Floats that nb_relations needs beside, for texts of up to n rows.
size_t nb_relations_scratch(uint32_t n);

// Adds to ret[n], of the rows of one text, the mean over the heads of the KL divergence of a row's
// relation from the teacher's; and to d[n][width], unless it is NULL, the gradient of `weight`
// times their sum. taught: [n][taught_width], x: [n][width]; label: [n], where rows of NB_LEFT_OUT
// are left out. Blocks; uses the team, whose size changes no bit of it.
void nb_relations(const struct nb_relations *r, struct nb_team *team, uint32_t n,
                  const float *taught, const float *x, const int32_t *label, float *d, float *ret,
                  float *scratch);
