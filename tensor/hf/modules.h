// modules.json of a sentence-transformers folder: which part of it is the model, and what becomes
// of its vectors. Private to tensor/hf.
#pragma once

#include "tensor/hf/json.h"
#include "tensor/fail.h"
#include "tensor/source.h"

enum nb_hf_pooling {
    NB_HF_POOLING_NONE,
    NB_HF_POOLING_MEAN,
    NB_HF_POOLING_CLS,
    NB_HF_POOLING_LAST
};

struct nb_hf_modules {
    bool there;                 // else the folder is the model
    char base[NB_SOURCE_NAME];  // of the model's files: "" or "0_Transformer/"
    enum nb_hf_pooling pooling; // GGUF's numbers
    bool normalize;
};

// Refuses by its name a module that the table does not know. -errno with its line.
int nb_hf_modules_read(const struct nb_source *s, struct nb_hf_modules *ret,
                       struct nb_error *ret_error);
