// Matrices of a folder that are quantized: NF4 as bitsandbytes writes it, INT8 by channels as
// compressed-tensors does. Private to tensor/hf.
#pragma once

#include "tensor/hf/config.h"
#include "tensor/hf/shards.h"

// What config.json's quantization_config says of the linear layers. -ENOTSUP of anything else.
int nb_hf_quantization(const struct nb_hf_config *c);

// A matrix as a file has it, whatever its elements are.
struct nb_hf_matrix {
    uint32_t type, n_dims;
    uint64_t shape[2];        // the last one is contiguous
    struct nb_scales *scales; // of codes; malloc'ed, for the piece
};
// Takes the tensors beside the entry of codes as well. -EINVAL and -ENOTSUP by the tensor's name.
int nb_hf_quantized(const struct nb_source *s, const struct nb_hf_config *c,
                    struct nb_hf_shards *shards, const struct nb_hf_entry *e,
                    struct nb_hf_matrix *ret);
