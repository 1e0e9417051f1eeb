// What a search of a fold sees of its joints' inputs: some rows, and sums over all. Of a layer at a
// time; private to quant/.
#pragma once

#include "grad/grad.h"
#include "quant/fold.h"

#define NB_FOLD_INPUT_ROWS 512 // of each joint, or each expert, that are kept

struct nb_fold_rows_seen {
    uint32_t joint, expert, cols, n;
    float *x;           // [n][cols]: evenly from those that were seen
    float *mean;        // [cols]: of the squares, of all that were seen
    float *size, *most; // [channels]: the mean and the largest of |x|
};

struct nb_fold_inputs;

int nb_fold_inputs_create(const struct nb_fold *f, struct nb_fold_inputs **ret); // -ENOMEM
void nb_fold_inputs_destroy(struct nb_fold_inputs *in);                          // NULL is fine

// For nb_grad_see. The first of a joint's readers shows them; of rotated inputs the importance goes
// to the fold's.
void nb_fold_inputs_see(void *user, const struct nb_grad_tensor *w, uint32_t expert, const float *x,
                        size_t stride, uint32_t n);
// NULL: no row was seen. Until clear.
const struct nb_fold_rows_seen *nb_fold_inputs_find(struct nb_fold_inputs *in, uint32_t joint,
                                                    uint32_t expert);
void nb_fold_inputs_clear(struct nb_fold_inputs *in);
int nb_fold_inputs_failed(const struct nb_fold_inputs *in); // 0, or what see could not say: -ENOMEM
