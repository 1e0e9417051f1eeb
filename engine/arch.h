// Architectures as a table: how a model file's metadata becomes hyperparameters, and of which ops a
// layer is made (op.h). A new family is a row.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/op.h"
#include "tensor/fail.h"
#include "tensor/gguf.h"

struct nb_image;

// An op as the table has it: with the names of its tensors, and sizes that the model will fill in.
struct nb_op_row {
    enum nb_op_kind kind;
    enum nb_section section;
    enum nb_value in, other, out;
    // Of the matrix or vector, without ".weight"; "blk.N." is put before it in a layer. A bias has
    // the same name with ".bias"; it may be missing.
    const char *weight;
    const char *tied; // another tensor that serves when this one is absent
    enum nb_dim rows, cols;
    // The op is there only where the layer has this tensor, or has it not.
    const char *when, *unless;
    bool optional; // and only where it has its own
    bool add;
    bool halves; // ACTIVATE: gate and up are the halves of `in`
    enum nb_heads heads;
    enum nb_lookup lookup;
    enum nb_scale scale;
};

// What a key of the architecture does to the computation.
enum nb_key_use {
    NB_KEY_READ,     // nb_hparams_read takes it
    NB_KEY_HARMLESS, // nothing, whatever its value
    NB_KEY_NEUTRAL,  // nothing with the neutral value; any other is refused
};

struct nb_arch_key {
    const char *name; // without the architecture before it
    enum nb_key_use use;
    const char *what;    // a neutral one with another value means, for the refusal
    double neutral[2];   // either; of truth values 0 and 1
    const char *text[2]; // of strings
};

// What the keys mean in every family that has no word of its own.
extern const struct nb_arch_key nb_common_keys[];
extern const uint32_t nb_n_common_keys;

enum nb_gating { NB_GATING_SOFTMAX, NB_GATING_SIGMOID, NB_GATING_SOFTMAX_OF_CHOSEN };
enum nb_pooling { NB_POOLING_NONE, NB_POOLING_MEAN, NB_POOLING_CLS, NB_POOLING_LAST };

struct nb_hparams;

struct nb_op_rows {
    const struct nb_op_row *rows;
    uint32_t n;
    bool of_x;     // what the rows read of N they read of X: no norm comes before
    bool optional; // as of each row
};
#define NB_PIECES 16

struct nb_arch {
    const char *name; // general.architecture, and the prefix of its keys
    enum nb_norm_kind norm;
    enum nb_activation activation;
    bool rope_neox; // pairs (i, i + rot/2) instead of (2i, 2i + 1)
    bool no_rope;
    bool encoder; // a token sees those after it too, and the result is a vector, not logits
    // Every `period`-th layer differs from those before it: the others have the window, or it has
    // no RoPE. 0: all layers are alike.
    uint32_t window_period, rope_period;
    // Values of keys where the file has none.
    uint32_t window;
    float attn_softcap, logit_cap;
    bool has_local_rope;    // layers with a window have a RoPE of their own, which is not scaled,
    double local_rope_base; // with this base; 0: the others'
    enum nb_gating gating;
    bool expert_weights_norm; // the chosen experts' weights are made to sum to 1
    bool divides_logits;      // logit_scale divides
    // What follows from no key; may be NULL.
    void (*adjust)(struct nb_hparams *hp);
    // Before the layers, of each layer, and after them; an empty piece ends each.
    struct nb_op_rows begin[NB_PIECES], layer[NB_PIECES], end[NB_PIECES];
    const struct nb_arch_key *keys; // that it treats otherwise than nb_common_keys
    uint32_t n_keys;
};

// The architectures' table by its rows; NULL past the last.
const struct nb_arch *nb_arch_at(uint32_t i);
// The one that a model's metadata names; NULL: the table has none of that name.
const struct nb_arch *nb_arch_of(const struct nb_gguf *metadata);
// Whether a model of this metadata is made for vectors.
bool nb_arch_for_vectors(const struct nb_arch *arch, const struct nb_gguf *metadata);
// The tensors of a file, in whichever architecture, that nb_hparams_read takes and no op: factors
// of RoPE's frequencies, for any context or for short and long ones.
enum { NB_FACTORS, NB_FACTORS_SHORT, NB_FACTORS_LONG, NB_ROPE_FACTORS };
extern const char *const nb_rope_factors[NB_ROPE_FACTORS];

// The layer that a tensor's name begins with ("blk.7.ffn_up.weight"), and the name behind it
// ("ffn_up.weight"); NB_NO_LAYER, and the whole name, of one outside the layers.
#define NB_NO_LAYER UINT32_MAX
uint32_t nb_arch_layer(struct nb_str name, struct nb_str *ret_rest);
// What the rows and columns of a family's tensor are, by its name; of a vector the columns alone.
// False: no op of the family has a matrix or vector of this name.
bool nb_arch_dims(const struct nb_arch *arch, struct nb_str name, enum nb_dim *ret_rows,
                  enum nb_dim *ret_cols);

#define NB_MAX_EXPERTS 1024
#define NB_MAX_CHOSEN  32 // experts of a token
#define NB_ROPES       2
#define NB_NO_ROPE     UINT32_MAX

// Position p rotates pair i by p * freq[i], with cos and sin multiplied by `scale`: every variant
// (linear, llama 3's factors, YaRN) is a table of frequencies.
struct nb_rope {
    double *freq; // rope_dims / 2
    double scale;
};

// What layers may differ in.
struct nb_layer {
    uint32_t window; // 0: a query sees all that came before
    uint32_t rope;   // which of the model's, or NB_NO_ROPE
};

// Validated: each size is within limits, so that products of a few of them fit 64 bits.
struct nb_hparams {
    const struct nb_arch *arch;
    uint32_t vocab, n_layers, embedding, ffn;
    uint32_t context; // that the model was made for, or less where less was asked for
    uint32_t n_heads, n_kv_heads, k_dim, v_dim;
    float norm_eps, attn_scale, attn_softcap;
    float embedding_scale, residual_scale, logit_scale, logit_cap;
    bool causal;
    enum nb_pooling pooling; // of a text's vector
    bool any_length;         // which its makers do not normalise
    bool for_vectors;        // which the model is made for: its file names a pooling

    uint32_t n_experts, n_chosen; // 0: none
    enum nb_gating gating;
    bool expert_weights_norm;
    float expert_weights_scale;

    uint32_t rope_dims, n_ropes;
    struct nb_rope rope[NB_ROPES];
    struct nb_layer *layer; // n_layers
    uint32_t dim[NB_DIM_COUNT];
};

// Reads and checks the metadata. max_context 0: the model's own. -ENOTSUP unknown architecture or
// variant, or a key that is neither read nor known to change nothing; -EINVAL missing or senseless
// values.
int nb_hparams_read(const struct nb_image *image, uint32_t max_context, struct nb_hparams *ret,
                    struct nb_error *ret_error);
void nb_hparams_finish(struct nb_hparams *hp);

// Of each of the model's ropes, cos of each pair's angle at one position, then sin of each:
// rope_dims floats.
void nb_rope_row(const struct nb_hparams *hp, uint32_t position, float *ret_cos_sin);
