// A source with a fold in it: whoever reads it from now on, to pack, to calibrate or to compress,
// has the folded model.
#pragma once

#include "quant/fold.h"
#include "tensor/source.h"

struct nb_fold_source;

// Where the output matrix is the embedding, it becomes a tensor of its own: then the residual
// stream may be rotated. Before anything else is made of the source. 0, also where there is nothing
// to do; -errno with its line.
int nb_fold_untie(struct nb_source *s, struct nb_error *ret_error);

// Changes `s` in place: tensors that the fold changes are of F32. Both are borrowed. While it
// lives, `s` may be read from any thread. -ENOMEM with its line.
int nb_fold_source_create(const struct nb_fold *f, struct nb_source *s, struct nb_fold_source **ret,
                          struct nb_error *ret_error);
// Before the source is closed, which is as it was then. NULL is fine.
void nb_fold_source_destroy(struct nb_fold_source *fs);
