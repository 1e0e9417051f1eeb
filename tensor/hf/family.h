// The model families that are read from Hugging Face folders, as data: which architecture a
// config.json names, what each of its keys means, and which tensor of the folder is which of
// GGUF's. Private to tensor/hf.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct nb_hf_config;

enum nb_hf_use {
    NB_HF_IGNORED, // changes nothing that is computed
    NB_HF_U32,     // a whole number that GGUF has under another name
    NB_HF_F32,     // likewise a number
    NB_HF_READ,    // read by code: config.c, rope.c, extras.c
    NB_HF_IS,      // must have one of these values
};

// A key of config.json. null counts as absent.
struct nb_hf_key {
    const char *name;
    enum nb_hf_use use;
    bool required;
    const char *gguf;  // of a number: the key behind "ARCHITECTURE."
    const char *is[2]; // as JSON: "\"silu\"", "false"; of NB_HF_IS
    const char *what;  // other values mean that, for the user; of NB_HF_IS
};

enum {
    NB_HF_BIAS = 1,          // there is a bias too
    NB_HF_BIAS_OPTIONAL = 2, // perhaps
    NB_HF_PLUS_ONE = 4,      // the model multiplies by the weight + 1
    NB_HF_SINGLE = 8,        // is kept in F32, as stock llama.cpp wants it
    NB_HF_NO_PREFIX = 16,    // stands beside the model, not in it
    NB_HF_HEAD = 32,         // absent where it is the embedding
};

// Whose rows are permuted for rotary pairs that are neighbours.
enum nb_hf_rows { NB_HF_ROWS, NB_HF_ROWS_Q, NB_HF_ROWS_K };

// A row of the table of tensors. The first % in a name is the layer's number, and the second one an
// expert's: those become one tensor of three dimensions.
struct nb_hf_tensor {
    const char *name; // in the folder, without prefix and suffix: "layers.%.self_attn.q_proj"
    const char *gguf; // "blk.%.attn_q"
    uint32_t flags;
    enum nb_hf_rows rows;
};

struct nb_hf_family {
    const char *names[3];         // of config.json's architectures; NULL behind the last
    const char *architecture;     // GGUF's
    const char *prefix;           // of tensors' names, which may be absent
    bool tied;                    // tie_word_embeddings where config.json does not say
    uint32_t head_dim;            // likewise; 0: as the embedding is divided by the heads
    const struct nb_hf_key *keys; // beside the common ones; a name that comes in both is these
    uint32_t n_keys;
    const struct nb_hf_tensor *tensors;
    uint32_t n_tensors;
    const char *const *ignored; // tensors; * at the beginning or end stands for anything
    // What the tables do not say.
    int (*extra)(struct nb_hf_config *c);
};

extern const struct nb_hf_family nb_hf_families[];
extern const uint32_t nb_hf_n_families;
extern const struct nb_hf_key nb_hf_common_keys[];
extern const uint32_t nb_hf_n_common_keys;
