// Architectures as a table: how a model file's metadata becomes hyperparameters, and which tensors
// feed which op. A new family is a row (and, at most, a new kind of norm, activation or position
// scheme).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nb_image;

// The model's ops in the order of a layer. Coarse on purpose: a device fuses each into as few
// passes as it can.
enum nb_op_kind {
    NB_OP_EMBED,     // x = row of the embedding
    NB_OP_QKV,       // norm; q, k, v; rope of q and k; k and v into the KV block
    NB_OP_ATTENTION, // a = softmax(q k) v
    NB_OP_OUT,       // x += o a
    NB_OP_GATE_UP,   // norm; h = act(gate x) * up x
    NB_OP_DOWN,      // x += down h
    NB_OP_HEAD,      // norm; logits
    NB_OP_KINDS,
};

extern const char *const nb_op_names[NB_OP_KINDS];

enum nb_norm_kind { NB_NORM_RMS };
enum nb_activation { NB_ACTIVATION_SWIGLU };

// The sizes a tensor's dimension may be bound to.
enum nb_dim {
    NB_DIM_NONE,
    NB_DIM_EMBEDDING,
    NB_DIM_VOCAB,
    NB_DIM_Q,    // n_heads * k_dim
    NB_DIM_K,    // n_kv_heads * k_dim
    NB_DIM_V,    // n_kv_heads * v_dim
    NB_DIM_ATTN, // n_heads * v_dim
    NB_DIM_FFN,
    NB_DIM_COUNT,
};

// A tensor of the architecture and its place in the plan. `matrix` -1 is the op's norm. Each matrix
// may have a bias (the same name with ".bias"), a vector of `rows`.
struct nb_arch_tensor {
    enum nb_op_kind op;
    int matrix;
    const char
        *name; // without ".weight"; "blk.N." is put before it where the op belongs to a layer
    const char *tied; // another tensor that serves when this one is absent
    enum nb_dim rows, cols;
};

struct nb_arch {
    const char *name; // general.architecture, and the prefix of its keys
    enum nb_norm_kind norm;
    enum nb_activation activation;
    bool rope_neox; // pairs (i, i + rot/2) instead of (2i, 2i + 1)
    const struct nb_arch_tensor *tensors;
    uint32_t n_tensors;
};

// Validated: each size is within limits, so that products of a few of them fit 64 bits.
struct nb_hparams {
    const struct nb_arch *arch;
    uint32_t vocab, context, n_layers, embedding, ffn;
    uint32_t n_heads, n_kv_heads, k_dim, v_dim;
    uint32_t rope_dims;
    uint32_t window; // 0: a query sees all that came before
    float norm_eps, attn_scale, attn_softcap;
    uint32_t dim[NB_DIM_COUNT];
    // Position p turns pair i by p * rope_freq[i], with cos and sin multiplied by rope_scale: every
    // scaling variant (linear, llama 3's factors, YaRN) is a table of frequencies.
    double *rope_freq; // rope_dims / 2
    double rope_scale;
};

// Reads and checks the metadata. -ENOTSUP unknown architecture or variant, -EINVAL missing or
// senseless values.
int nb_hparams_read(const struct nb_image *image, struct nb_hparams *ret, char *ret_error,
                    size_t error_size);
void nb_hparams_finish(struct nb_hparams *hp);

// cos of each pair's angle at one position, then sin of each: rope_dims floats.
void nb_rope_row(const struct nb_hparams *hp, uint32_t position, float *ret_cos_sin);
