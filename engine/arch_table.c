// The architectures, as data: of which ops a layer is made and what feeds them, and which keys a
// family treats otherwise than the others. A family is a row.
#include "engine/arch.h"

#include <math.h>
#include <string.h>

#include "engine/arch_key_rows.h"

#define COUNT(a) ((uint32_t)(sizeof(a) / sizeof((a)[0])))

const char *const nb_op_names[NB_OP_KINDS] = {
    [NB_OP_EMBED] = "embed",       [NB_OP_NORM] = "norm",       [NB_OP_LINEAR] = "linear",
    [NB_OP_ROPE] = "rope",         [NB_OP_KV] = "kv",           [NB_OP_ATTENTION] = "attention",
    [NB_OP_ACTIVATE] = "activate", [NB_OP_ADD] = "add",         [NB_OP_CAP] = "cap",
    [NB_OP_ROUTE] = "route",       [NB_OP_COMBINE] = "combine",
};

const char *const nb_section_names[NB_SECTIONS] = {
    [NB_SECTION_EMBED] = "embed",         [NB_SECTION_QKV] = "qkv",
    [NB_SECTION_ATTENTION] = "attention", [NB_SECTION_OUT] = "out",
    [NB_SECTION_GATE_UP] = "gate_up",     [NB_SECTION_DOWN] = "down",
    [NB_SECTION_HEAD] = "head",
};

const enum nb_dim nb_value_dims[NB_VALUES] = {
    [NB_VALUE_X] = NB_DIM_EMBEDDING,
    [NB_VALUE_N] = NB_DIM_EMBEDDING,
    [NB_VALUE_O] = NB_DIM_EMBEDDING,
    [NB_VALUE_QKV] = NB_DIM_QKV,
    [NB_VALUE_Q] = NB_DIM_Q,
    [NB_VALUE_K] = NB_DIM_K,
    [NB_VALUE_V] = NB_DIM_V,
    [NB_VALUE_A] = NB_DIM_ATTN,
    [NB_VALUE_GU] = NB_DIM_FFN_TWICE,
    [NB_VALUE_H] = NB_DIM_FFN,
    [NB_VALUE_UP] = NB_DIM_FFN,
    [NB_VALUE_ROUTER] = NB_DIM_EXPERTS,
    [NB_VALUE_E_H] = NB_DIM_EXPERT_FFN,
    [NB_VALUE_E_UP] = NB_DIM_EXPERT_FFN,
    [NB_VALUE_E_O] = NB_DIM_EMBEDDING,
    [NB_VALUE_LOGITS] = NB_DIM_VOCAB,
};

// --- Pieces, of which the families are put together

#define MATRIX(name, n_rows, n_cols) .weight = (name), .rows = (n_rows), .cols = (n_cols)
#define EMBEDDING                    NB_DIM_EMBEDDING

static const struct nb_op_row tokens[] = {
    {NB_OP_EMBED, NB_SECTION_EMBED, .out = NB_VALUE_X, .scale = NB_SCALE_EMBEDDING,
     MATRIX("token_embd", NB_DIM_VOCAB, EMBEDDING)},
};

static const struct nb_op_row positions[] = {
    {NB_OP_EMBED, NB_SECTION_EMBED, .out = NB_VALUE_X, .add = true, .lookup = NB_LOOKUP_POSITION,
     MATRIX("position_embd", NB_DIM_POSITIONS, EMBEDDING)},
};

// Every token of a text is of the first type.
static const struct nb_op_row token_types[] = {
    {NB_OP_EMBED, NB_SECTION_EMBED, .out = NB_VALUE_X, .add = true, .lookup = NB_LOOKUP_FIRST,
     .optional = true, MATRIX("token_types", NB_DIM_TYPES, EMBEDDING)},
};

static const struct nb_op_row embedding_norm[] = {
    {NB_OP_NORM, NB_SECTION_EMBED, .in = NB_VALUE_X, .out = NB_VALUE_X,
     .weight = "token_embd_norm"},
};

static const struct nb_op_row attn_norm[] = {
    {NB_OP_NORM, NB_SECTION_QKV, .in = NB_VALUE_X, .out = NB_VALUE_N, .weight = "attn_norm"},
};

static const struct nb_op_row qkv[] = {
    {NB_OP_LINEAR, NB_SECTION_QKV, .in = NB_VALUE_N, .out = NB_VALUE_QKV, .when = "attn_qkv",
     MATRIX("attn_qkv", NB_DIM_QKV, EMBEDDING)},
    {NB_OP_LINEAR, NB_SECTION_QKV, .in = NB_VALUE_N, .out = NB_VALUE_Q, .unless = "attn_qkv",
     MATRIX("attn_q", NB_DIM_Q, EMBEDDING)},
    {NB_OP_LINEAR, NB_SECTION_QKV, .in = NB_VALUE_N, .out = NB_VALUE_K, .unless = "attn_qkv",
     MATRIX("attn_k", NB_DIM_K, EMBEDDING)},
    {NB_OP_LINEAR, NB_SECTION_QKV, .in = NB_VALUE_N, .out = NB_VALUE_V, .unless = "attn_qkv",
     MATRIX("attn_v", NB_DIM_V, EMBEDDING)},
};

static const struct nb_op_row head_norms[] = {
    {NB_OP_NORM, NB_SECTION_QKV, .in = NB_VALUE_Q, .out = NB_VALUE_Q, .heads = NB_HEADS_Q,
     .weight = "attn_q_norm"},
    {NB_OP_NORM, NB_SECTION_QKV, .in = NB_VALUE_K, .out = NB_VALUE_K, .heads = NB_HEADS_KV,
     .weight = "attn_k_norm"},
};

// Of all heads together.
static const struct nb_op_row row_norms[] = {
    {NB_OP_NORM, NB_SECTION_QKV, .in = NB_VALUE_Q, .out = NB_VALUE_Q, .weight = "attn_q_norm"},
    {NB_OP_NORM, NB_SECTION_QKV, .in = NB_VALUE_K, .out = NB_VALUE_K, .weight = "attn_k_norm"},
};

// Positions, and what they see.
static const struct nb_op_row attention[] = {
    {NB_OP_ROPE, NB_SECTION_QKV, .in = NB_VALUE_Q, .out = NB_VALUE_Q, .heads = NB_HEADS_Q},
    {NB_OP_ROPE, NB_SECTION_QKV, .in = NB_VALUE_K, .out = NB_VALUE_K, .heads = NB_HEADS_KV},
    {NB_OP_KV, NB_SECTION_QKV, .in = NB_VALUE_K, .other = NB_VALUE_V},
    {NB_OP_ATTENTION, NB_SECTION_ATTENTION, .in = NB_VALUE_Q, .out = NB_VALUE_A},
};

static const struct nb_op_row out[] = {
    {NB_OP_LINEAR, NB_SECTION_OUT, .in = NB_VALUE_A, .out = NB_VALUE_X, .add = true,
     MATRIX("attn_output", EMBEDDING, NB_DIM_ATTN)},
};

// Where something happens to it before it joins the residual stream.
static const struct nb_op_row out_apart[] = {
    {NB_OP_LINEAR, NB_SECTION_OUT, .in = NB_VALUE_A, .out = NB_VALUE_O,
     MATRIX("attn_output", EMBEDDING, NB_DIM_ATTN)},
};

static const struct nb_op_row out_added[] = {
    {NB_OP_ADD, NB_SECTION_OUT, .in = NB_VALUE_O, .out = NB_VALUE_X, .scale = NB_SCALE_RESIDUAL},
};

static const struct nb_op_row post_attention_norm[] = {
    {NB_OP_NORM, NB_SECTION_OUT, .in = NB_VALUE_O, .out = NB_VALUE_O,
     .weight = "post_attention_norm"},
};

static const struct nb_op_row attn_output_norm[] = {
    {NB_OP_NORM, NB_SECTION_OUT, .in = NB_VALUE_X, .out = NB_VALUE_X, .weight = "attn_output_norm"},
};

static const struct nb_op_row ffn_norm[] = {
    {NB_OP_NORM, NB_SECTION_GATE_UP, .in = NB_VALUE_X, .out = NB_VALUE_N, .weight = "ffn_norm"},
};

// A feed-forward of a gate and what it lets through, in layers without experts.
static const struct nb_op_row gate_up[] = {
    {NB_OP_LINEAR, NB_SECTION_GATE_UP, .in = NB_VALUE_N, .out = NB_VALUE_H,
     .unless = "ffn_gate_inp", MATRIX("ffn_gate", NB_DIM_FFN, EMBEDDING)},
    {NB_OP_LINEAR, NB_SECTION_GATE_UP, .in = NB_VALUE_N, .out = NB_VALUE_UP,
     .unless = "ffn_gate_inp", MATRIX("ffn_up", NB_DIM_FFN, EMBEDDING)},
    {NB_OP_ACTIVATE, NB_SECTION_GATE_UP, .in = NB_VALUE_H, .other = NB_VALUE_UP, .out = NB_VALUE_H,
     .rows = NB_DIM_FFN, .unless = "ffn_gate_inp"},
};

// The gate comes first.
static const struct nb_op_row gate_up_fused[] = {
    {NB_OP_LINEAR, NB_SECTION_GATE_UP, .in = NB_VALUE_N, .out = NB_VALUE_GU,
     MATRIX("ffn_up", NB_DIM_FFN_TWICE, EMBEDDING)},
    {NB_OP_ACTIVATE, NB_SECTION_GATE_UP, .in = NB_VALUE_GU, .out = NB_VALUE_H, .rows = NB_DIM_FFN,
     .halves = true},
};

// Without a gate.
static const struct nb_op_row up[] = {
    {NB_OP_LINEAR, NB_SECTION_GATE_UP, .in = NB_VALUE_N, .out = NB_VALUE_H,
     MATRIX("ffn_up", NB_DIM_FFN, EMBEDDING)},
    {NB_OP_ACTIVATE, NB_SECTION_GATE_UP, .in = NB_VALUE_H, .out = NB_VALUE_H, .rows = NB_DIM_FFN},
};

static const struct nb_op_row down[] = {
    {NB_OP_LINEAR, NB_SECTION_DOWN, .in = NB_VALUE_H, .out = NB_VALUE_X, .add = true,
     .unless = "ffn_gate_inp", MATRIX("ffn_down", EMBEDDING, NB_DIM_FFN)},
};

static const struct nb_op_row down_apart[] = {
    {NB_OP_LINEAR, NB_SECTION_DOWN, .in = NB_VALUE_H, .out = NB_VALUE_O,
     MATRIX("ffn_down", EMBEDDING, NB_DIM_FFN)},
};

static const struct nb_op_row down_added[] = {
    {NB_OP_ADD, NB_SECTION_DOWN, .in = NB_VALUE_O, .out = NB_VALUE_X, .scale = NB_SCALE_RESIDUAL},
};

static const struct nb_op_row post_ffn_norm[] = {
    {NB_OP_NORM, NB_SECTION_DOWN, .in = NB_VALUE_O, .out = NB_VALUE_O, .weight = "post_ffw_norm"},
};

static const struct nb_op_row layer_output_norm[] = {
    {NB_OP_NORM, NB_SECTION_DOWN, .in = NB_VALUE_X, .out = NB_VALUE_X,
     .weight = "layer_output_norm"},
};

// In layers that have a router.
static const struct nb_op_row experts[] = {
    {NB_OP_LINEAR, NB_SECTION_GATE_UP, .in = NB_VALUE_N, .out = NB_VALUE_ROUTER,
     .when = "ffn_gate_inp", MATRIX("ffn_gate_inp", NB_DIM_EXPERTS, EMBEDDING)},
    {NB_OP_ROUTE, NB_SECTION_GATE_UP, .in = NB_VALUE_ROUTER, .when = "ffn_gate_inp",
     .weight = "exp_probs_b"},
    {NB_OP_LINEAR, NB_SECTION_GATE_UP, .in = NB_VALUE_N, .out = NB_VALUE_E_H,
     .when = "ffn_gate_inp", MATRIX("ffn_gate_exps", NB_DIM_EXPERT_FFN, EMBEDDING)},
    {NB_OP_LINEAR, NB_SECTION_GATE_UP, .in = NB_VALUE_N, .out = NB_VALUE_E_UP,
     .when = "ffn_gate_inp", MATRIX("ffn_up_exps", NB_DIM_EXPERT_FFN, EMBEDDING)},
    {NB_OP_ACTIVATE, NB_SECTION_GATE_UP, .in = NB_VALUE_E_H, .other = NB_VALUE_E_UP,
     .out = NB_VALUE_E_H, .rows = NB_DIM_EXPERT_FFN, .when = "ffn_gate_inp"},
    {NB_OP_LINEAR, NB_SECTION_DOWN, .in = NB_VALUE_E_H, .out = NB_VALUE_E_O, .when = "ffn_gate_inp",
     MATRIX("ffn_down_exps", EMBEDDING, NB_DIM_EXPERT_FFN)},
    {NB_OP_COMBINE, NB_SECTION_DOWN, .in = NB_VALUE_E_O, .out = NB_VALUE_X, .when = "ffn_gate_inp",
     .scale = NB_SCALE_RESIDUAL},
};

static const struct nb_op_row head[] = {
    {NB_OP_NORM, NB_SECTION_HEAD, .in = NB_VALUE_X, .out = NB_VALUE_N, .weight = "output_norm"},
    {NB_OP_LINEAR, NB_SECTION_HEAD, .in = NB_VALUE_N, .out = NB_VALUE_LOGITS, .tied = "token_embd",
     MATRIX("output", NB_DIM_VOCAB, EMBEDDING)},
    {NB_OP_CAP, NB_SECTION_HEAD, .in = NB_VALUE_LOGITS, .out = NB_VALUE_LOGITS,
     .scale = NB_SCALE_LOGITS},
};

// --- Families

static const struct nb_arch_key llama_keys[] = {
    EXPERT_KEYS,
    // The old converter's name for rows of Q and K that are permuted for neighbouring pairs, which
    // they are in every file.
    NEUTRAL_TEXT("tensor_data_layout", "Meta AI original pth", "reference",
                 "tensors otherwise laid out"),
};

static const struct nb_arch_key expert_keys[] = {EXPERT_KEYS};

static const struct nb_arch_key gemma2_keys[] = {
    READ("attn_logit_softcapping"),
    READ("final_logit_softcapping"),
    READ("attention.sliding_window_pattern"),
};

static const struct nb_arch_key gemma3_keys[] = {
    READ("final_logit_softcapping"),
    READ("attention.sliding_window_pattern"),
    READ("rope.freq_base_swa"),
};

static const struct nb_arch_key olmo2_keys[] = {
    READ("attention.sliding_window_pattern"),
};

static const struct nb_arch_key granite_keys[] = {
    READ("embedding_scale"),
    READ("residual_scale"),
    READ("logit_scale"),
    NEUTRAL("rope.scaling.finetuned", 1, "layers without RoPE"),
};

static const struct nb_arch_key command_r_keys[] = {
    READ("logit_scale"),
};

static const struct nb_arch_key bert_keys[] = {
    READ("attention.causal"),
};

// Of 27 billion weights the heads are scaled by another width than their own.
static void adjust_gemma(struct nb_hparams *hp, uint32_t layers_of_27b)
{
    hp->embedding_scale = sqrtf((float)hp->embedding);
    const uint32_t width = hp->embedding / hp->n_heads;
    if (hp->n_layers == layers_of_27b)
        hp->attn_scale = 1.0f / sqrtf((float)width);
}

static void adjust_gemma2(struct nb_hparams *hp)
{
    adjust_gemma(hp, 46);
}

static void adjust_gemma3(struct nb_hparams *hp)
{
    adjust_gemma(hp, 62);
}

#define PIECE(list)                                                                                \
    {                                                                                              \
        .rows = list, .n = COUNT(list)                                                             \
    }
#define PIECE_OF_X(list)                                                                           \
    {                                                                                              \
        .rows = list, .n = COUNT(list), .of_x = true                                               \
    }
#define PIECE_IF_THERE(list)                                                                       \
    {                                                                                              \
        .rows = list, .n = COUNT(list), .optional = true                                           \
    }
#define KEYS(rows) .keys = (rows), .n_keys = COUNT(rows)
#define GATED      PIECE(ffn_norm), PIECE(gate_up), PIECE(down)

static const struct nb_arch architectures[] = {
    // Q and K rows are permuted in the file, so that rotary pairs are neighbours.
    {.name = "llama",
     .expert_weights_norm = true,
     .begin = {PIECE(tokens)},
     .layer = {PIECE(attn_norm), PIECE(qkv), PIECE(attention), PIECE(out), GATED, PIECE(experts)},
     .end = {PIECE(head)},
     KEYS(llama_keys)},
    {.name = "smollm3",
     .rope_period = 4,
     .begin = {PIECE(tokens)},
     .layer = {PIECE(attn_norm), PIECE(qkv), PIECE(attention), PIECE(out), GATED},
     .end = {PIECE(head)}},
    {.name = "qwen2",
     .rope_neox = true,
     .begin = {PIECE(tokens)},
     .layer = {PIECE(attn_norm), PIECE(qkv), PIECE(attention), PIECE(out), GATED},
     .end = {PIECE(head)}},
    {.name = "qwen3",
     .rope_neox = true,
     .begin = {PIECE(tokens)},
     .layer = {PIECE(attn_norm), PIECE(qkv), PIECE(head_norms), PIECE(attention), PIECE(out),
               GATED},
     .end = {PIECE(head)}},
    {.name = "qwen3moe",
     .rope_neox = true,
     .expert_weights_norm = true,
     .begin = {PIECE(tokens)},
     .layer = {PIECE(attn_norm), PIECE(qkv), PIECE(head_norms), PIECE(attention), PIECE(out), GATED,
               PIECE(experts)},
     .end = {PIECE(head)},
     KEYS(expert_keys)},
    {.name = "gemma2",
     .activation = NB_ACT_GELU,
     .rope_neox = true,
     .window = 4096,
     .window_period = 2,
     .attn_softcap = 50,
     .logit_cap = 30,
     .adjust = adjust_gemma2,
     .begin = {PIECE(tokens)},
     .layer = {PIECE(attn_norm), PIECE(qkv), PIECE(attention), PIECE(out_apart),
               PIECE(post_attention_norm), PIECE(out_added), PIECE(ffn_norm), PIECE(gate_up),
               PIECE(down_apart), PIECE(post_ffn_norm), PIECE(down_added)},
     .end = {PIECE(head)},
     KEYS(gemma2_keys)},
    {.name = "gemma3",
     .activation = NB_ACT_GELU,
     .rope_neox = true,
     .window_period = 6,
     .has_local_rope = true,
     .local_rope_base = 10000,
     .adjust = adjust_gemma3,
     .begin = {PIECE(tokens)},
     .layer = {PIECE(attn_norm), PIECE(qkv), PIECE(head_norms), PIECE(attention), PIECE(out_apart),
               PIECE(post_attention_norm), PIECE(out_added), PIECE(ffn_norm), PIECE(gate_up),
               PIECE(down_apart), PIECE(post_ffn_norm), PIECE(down_added)},
     .end = {PIECE(head)},
     KEYS(gemma3_keys)},
    {.name = "phi3",
     .rope_neox = true,
     .begin = {PIECE(tokens)},
     .layer = {PIECE(attn_norm), PIECE(qkv), PIECE(attention), PIECE(out), PIECE(ffn_norm),
               PIECE(gate_up_fused), PIECE(down)},
     .end = {PIECE(head)}},
    {.name = "gpt2",
     .norm = NB_NORM_LAYER,
     .activation = NB_ACT_GELU,
     .no_rope = true,
     .begin = {PIECE(tokens), PIECE(positions)},
     .layer = {PIECE(attn_norm), PIECE(qkv), PIECE(attention), PIECE(out), PIECE(ffn_norm),
               PIECE(up), PIECE(down)},
     .end = {PIECE(head)}},
    {.name = "starcoder2",
     .norm = NB_NORM_LAYER,
     .activation = NB_ACT_GELU,
     .rope_neox = true,
     .begin = {PIECE(tokens)},
     .layer = {PIECE(attn_norm), PIECE(qkv), PIECE(attention), PIECE(out), PIECE(ffn_norm),
               PIECE(up), PIECE(down)},
     .end = {PIECE(head)}},
    {.name = "olmo2",
     .rope_neox = true,
     .window_period = 4,
     .has_local_rope = true,
     .begin = {PIECE(tokens)},
     .layer = {PIECE_OF_X(qkv), PIECE(row_norms), PIECE(attention), PIECE(out_apart),
               PIECE(post_attention_norm), PIECE(out_added), PIECE_OF_X(gate_up), PIECE(down_apart),
               PIECE(post_ffn_norm), PIECE(down_added)},
     .end = {PIECE(head)},
     KEYS(olmo2_keys)},
    {.name = "granite",
     .divides_logits = true,
     .begin = {PIECE(tokens)},
     .layer = {PIECE(attn_norm), PIECE(qkv), PIECE(attention), PIECE(out_apart), PIECE(out_added),
               PIECE(ffn_norm), PIECE(gate_up), PIECE(down_apart), PIECE(down_added)},
     .end = {PIECE(head)},
     KEYS(granite_keys)},
    // Attention and feed-forward read the same norm.
    {.name = "command-r",
     .norm = NB_NORM_LAYER,
     .begin = {PIECE(tokens)},
     .layer = {PIECE(attn_norm), PIECE(qkv), PIECE_IF_THERE(head_norms), PIECE(attention),
               PIECE(out), PIECE(gate_up), PIECE(down)},
     .end = {PIECE(head)},
     KEYS(command_r_keys)},
    {.name = "bert",
     .norm = NB_NORM_LAYER,
     .activation = NB_ACT_GELU_ERF,
     .no_rope = true,
     .encoder = true,
     .begin = {PIECE(tokens), PIECE(token_types), PIECE(positions), PIECE(embedding_norm)},
     .layer = {PIECE_OF_X(qkv), PIECE(attention), PIECE(out), PIECE(attn_output_norm),
               PIECE_OF_X(up), PIECE(down), PIECE(layer_output_norm)},
     KEYS(bert_keys)},
};

const struct nb_arch *nb_arch_at(uint32_t i)
{
    return i < COUNT(architectures) ? &architectures[i] : NULL;
}
