// A student made of a teacher's layers: a source that has some of them, renumbered, and all that is
// outside of layers (as of DistilBERT: Sanh and others, arXiv 1910.01108).
#pragma once

#include <stdint.h>

#include "tensor/source.h"

#define NB_STUDENT_LAYERS 4096 // at most, of the teacher as well

// The layers that a model's metadata name. -EINVAL with its line.
int nb_student_count(const struct nb_source *s, uint32_t *ret, struct nb_error *ret_error);

// n layers of `all`, evenly spaced from the first to the last. ret: [n]; 1 <= n <= all.
void nb_student_evenly(uint32_t all, uint32_t n, uint32_t *ret);

// `from`: [n] ascending layers of the teacher, which must outlive the student. Metadata that has an
// entry for each layer is cut alike. -EINVAL, -ENOMEM; with its line.
int nb_student_open(const struct nb_source *teacher, const uint32_t *from, uint32_t n,
                    struct nb_source **ret, struct nb_error *ret_error);
