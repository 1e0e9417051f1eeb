// A student made of a teacher's parts: a source that has some of its layers, renumbered (as of
// DistilBERT: Sanh and others, arXiv 1910.01108), of each layer some heads and inner rows, some
// channels of the residual stream (as of Minitron: Muralidharan and others, arXiv 2407.14679), and
// all that is outside of these.
#pragma once

#include <stdint.h>

#include "distill/cut.h"
#include "tensor/source.h"

#define NB_STUDENT_LAYERS 4096 // at most, of the teacher as well

// Ascending numbers of the teacher's.
struct nb_student_kept {
    uint32_t layers;
    const uint32_t *layer;       // [layers]
    uint32_t n[NB_CUTS];         // of each layer; of the width in all; 0: nothing is cut
    const uint32_t *of[NB_CUTS]; // [the teacher's layers][n]; of the width [n]
};

// The layers that a model's metadata name. -EINVAL with its line.
int nb_student_count(const struct nb_source *s, uint32_t *ret, struct nb_error *ret_error);

// n layers of `all`, evenly spaced from the first to the last. ret: [n]; 1 <= n <= all.
void nb_student_evenly(uint32_t all, uint32_t n, uint32_t *ret);

// hp: the teacher's; needed where something is cut, else NULL. The teacher must outlive the
// student, the other arguments need not. Metadata that has an entry for each layer is cut alike;
// tensors that are cut are of F32. -EINVAL, -ENOMEM; -ENOTSUP: a tensor is not as its family has
// it, so that it cannot be cut; with its line.
int nb_student_open(const struct nb_source *teacher, const struct nb_hparams *hp,
                    const struct nb_student_kept *kept, struct nb_source **ret,
                    struct nb_error *ret_error);
