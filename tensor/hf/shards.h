// The tensors of a folder: model.safetensors, or the files that model.safetensors.index.json names.
// Private to tensor/hf.
#pragma once

#include "tensor/hf/safetensors.h"
#include "tensor/fail.h"
#include "tensor/source.h"

struct nb_hf_entry {
    const struct nb_safetensor *tensor;
    uint32_t file; // of the source
    bool used;
};

struct nb_hf_shards {
    struct nb_safetensors files[NB_SOURCE_FILES]; // of the source's files; most are empty
    struct nb_hf_entry *entries;
    uint32_t n;
    struct nb_names names; // of the entries
};

// Files are looked for in the folder `base` ("" or "0_Transformer/"). Refuses by its name a file
// that is missing or does not belong to the others. Finish it also after a failure.
int nb_hf_shards_open(const struct nb_source *s, const char *base, struct nb_hf_shards *ret,
                      struct nb_error *ret_error);
void nb_hf_shards_finish(struct nb_hf_shards *s); // all zero is fine
struct nb_hf_entry *nb_hf_shards_find(const struct nb_hf_shards *s, const char *name); // or NULL

// ---- Files of the source

// The index of "BASE/name", or -1.
int64_t nb_hf_file(const struct nb_source *s, const char *base, const char *name);
// Its bytes, malloc'ed with a NUL behind them; *ret_text stays {NULL, 0} where it is absent.
int nb_hf_text(const struct nb_source *s, const char *base, const char *name,
               struct nb_str *ret_text, struct nb_error *ret_error);
