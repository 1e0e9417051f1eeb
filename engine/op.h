// What models are made of: values (a row of numbers for each token), and the ops that make one
// value of another. A layer is a list of ops (arch_table.c), and that list is the one description
// of a model: each device reads it, and makes faster forms of neighbouring ops where it has them.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/activation.h"

enum nb_op_kind {
    NB_OP_EMBED,     // out = scale * a row of a matrix; added to out with `add`
    NB_OP_NORM,      // out = the norm of in, of the whole row or head by head
    NB_OP_LINEAR,    // out = w in + bias; added to out with `add`
    NB_OP_ROPE,      // out = in, each head's pairs turned by the token's position
    NB_OP_KV,        // keys (in) and values (other) go to the layer's KV memory
    NB_OP_ATTENTION, // out = softmax(scale q k) v, q = in, k and v from the layer's KV memory
    NB_OP_ACTIVATE,  // out = act(in) * other, or act(in) where there is no other
    NB_OP_ADD,       // out += scale * in
    NB_OP_CAP,       // out = in * scale, and that through cap * tanh(x / cap) where there is a cap
    NB_OP_ROUTE,     // from a row of scores: which experts a token takes, and how much of each
    NB_OP_COMBINE,   // out += what the token's experts gave (in), weighed as ROUTE says
    NB_OP_KINDS,
};
extern const char *const nb_op_names[NB_OP_KINDS];

// Where in a model an op stands: precision is chosen and time is told by it.
enum nb_section {
    NB_SECTION_EMBED,
    NB_SECTION_QKV,       // to the queries, keys and values
    NB_SECTION_ATTENTION, // the attention alone
    NB_SECTION_OUT,       // from its result to the residual stream
    NB_SECTION_GATE_UP,   // to the feed-forward's inner rows
    NB_SECTION_DOWN,      // from them to the residual stream
    NB_SECTION_HEAD,
    NB_SECTIONS,
};
extern const char *const nb_section_names[NB_SECTIONS];

enum nb_value {
    NB_VALUE_NONE,
    NB_VALUE_X, // the residual stream
    NB_VALUE_N, // it, after a norm
    NB_VALUE_O, // what a block will add to it
    NB_VALUE_QKV,
    NB_VALUE_Q, // these three lie side by side in a row of QKV
    NB_VALUE_K,
    NB_VALUE_V,
    NB_VALUE_A,  // attention's result
    NB_VALUE_GU, // gate and up side by side, made by one matrix
    NB_VALUE_H,  // the gate, and then the inner row of a feed-forward
    NB_VALUE_UP,
    NB_VALUE_ROUTER, // a score for each expert
    NB_VALUE_E_H,    // H, UP and O of each expert that a token takes: so many rows for each token
    NB_VALUE_E_UP,
    NB_VALUE_E_O,
    NB_VALUE_LOGITS,
    NB_VALUES,
};

// Whether a value has a row for each expert that a token takes.
static inline bool nb_value_is_of_experts(enum nb_value v)
{
    return v >= NB_VALUE_E_H && v <= NB_VALUE_E_O;
}

// The sizes a tensor's dimension may be bound to.
enum nb_dim {
    NB_DIM_NONE,
    NB_DIM_EMBEDDING,
    NB_DIM_VOCAB,
    NB_DIM_POSITIONS, // of learned positions
    NB_DIM_TYPES,     // of tokens; the first is every token's
    NB_DIM_HEAD,      // k_dim
    NB_DIM_Q,         // n_heads * k_dim
    NB_DIM_K,         // n_kv_heads * k_dim
    NB_DIM_V,         // n_kv_heads * v_dim
    NB_DIM_QKV,       // these three together
    NB_DIM_ATTN,      // n_heads * v_dim
    NB_DIM_FFN,
    NB_DIM_FFN_TWICE, // gate and up together
    NB_DIM_EXPERTS,
    NB_DIM_EXPERT_FFN,
    NB_DIM_SHARED_FFN, // of the experts that every token takes
    NB_DIM_COUNT,
};
// Of a row of each value; of Q, K and V, of the row that they are parts of.
extern const enum nb_dim nb_value_dims[NB_VALUES];

enum nb_norm_kind { NB_NORM_RMS, NB_NORM_LAYER };

// Which row of its matrix an EMBED takes.
enum nb_lookup { NB_LOOKUP_TOKEN, NB_LOOKUP_POSITION, NB_LOOKUP_FIRST };

// Whose size a NORM or a ROPE has.
enum nb_heads { NB_HEADS_NONE, NB_HEADS_Q, NB_HEADS_KV };

// Which of the model's numbers an op's result is multiplied by.
enum nb_scale { NB_SCALE_NONE, NB_SCALE_EMBEDDING, NB_SCALE_RESIDUAL, NB_SCALE_LOGITS };
