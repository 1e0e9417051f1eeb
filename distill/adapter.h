// What training an adapter has made, as a source: two tensors for each adapted matrix, and the
// metadata of llama.cpp's adapters (general.type "adapter"), so that it is written as models are.
#pragma once

#include "distill/train.h"
#include "tensor/source.h"

// `base`: the model that it was trained beside; it and the trainer must outlive the adapter, which
// gives the trainer's numbers as they are when they are read. -ENOTSUP: a matrix that the base's
// file does not have as it is computed with; -EINVAL, -ENOMEM; with its line.
int nb_adapter_open(const struct nb_source *base, struct nb_train *t, float alpha,
                    struct nb_source **ret, struct nb_error *ret_error);
