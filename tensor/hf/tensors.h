// A folder's tensors as the model's, by the table of its family. Private to tensor/hf.
#pragma once

#include "tensor/hf/config.h"
#include "tensor/hf/shards.h"

#define NB_HF_NAME 64 // of a tensor in a GGUF, with the NUL

// Fills the tensors and pieces of `s`; their names lie in *ret_names, which the caller frees, as
// long as the shards and the configuration live. Refuses by its name a tensor that is missing, of a
// dtype or shape that does not fit, or that the table does not know.
int nb_hf_tensors(struct nb_source *s, const struct nb_hf_config *c, struct nb_hf_shards *shards,
                  char (**ret_names)[NB_HF_NAME]);
