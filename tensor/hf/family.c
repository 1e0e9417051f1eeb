// The tables: see family.h. Keys as transformers' configuration classes have them, GGUF's names as
// llama.cpp's converter writes them.
#include "tensor/hf/family.h"

#include "tensor/hf/config.h"

#define COUNT(a) ((uint32_t)(sizeof(a) / sizeof((a)[0])))

// clang-format off
#define IGNORED(key)                  {.name = key, .use = NB_HF_IGNORED}
#define READ(key)                     {.name = key, .use = NB_HF_READ}
#define READ_REQUIRED(key)            {.name = key, .use = NB_HF_READ, .required = true}
#define U32(key, to)                  {.name = key, .use = NB_HF_U32, .required = true, .gguf = to}
#define U32_OPTIONAL(key, to)         {.name = key, .use = NB_HF_U32, .gguf = to}
#define F32(key, to)                  {.name = key, .use = NB_HF_F32, .required = true, .gguf = to}
#define IS(key, value, text)          {.name = key, .use = NB_HF_IS, .is = {value}, .what = text}
#define IS_2(key, value, other, text) {.name = key, .use = NB_HF_IS, .is = {value, other}, .what = text}
// clang-format on

// What any configuration may have. The last lines are how a model is trained and how a text was
// generated once.
const struct nb_hf_key nb_hf_common_keys[] = {
    READ_REQUIRED("architectures"),
    READ_REQUIRED("vocab_size"),
    READ_REQUIRED("num_hidden_layers"),
    READ_REQUIRED("num_attention_heads"),
    READ("tie_word_embeddings"),
    U32("hidden_size", "embedding_length"),
    U32("intermediate_size", "feed_forward_length"),
    U32("max_position_embeddings", "context_length"),

    READ("quantization_config"),
    IS("vision_config", NULL, "a vision tower"),
    IS("audio_config", NULL, "an audio tower"),
    IS("text_config", NULL, "a model of several parts"),
    IS("is_encoder_decoder", "false", "an encoder with a decoder"),
    IS("add_cross_attention", "false", "cross attention"),
    IS("cross_attention_hidden_size", NULL, "cross attention"),
    IS("pruned_heads", "{}", "pruned heads"),
    IS("is_causal", "true", "attention to what comes after"),

    IGNORED("model_type"),
    IGNORED("_name_or_path"),
    IGNORED("_commit_hash"),
    IGNORED("_attn_implementation"),
    IGNORED("_attn_implementation_autoset"),
    IGNORED("attn_implementation"),
    IGNORED("auto_map"),
    IGNORED("transformers_version"),
    IGNORED("transformers.js_config"),
    IGNORED("unsloth_fixed"),
    IGNORED("unsloth_version"),
    IGNORED("torch_dtype"),
    IGNORED("dtype"),
    IGNORED("torchscript"),
    IGNORED("use_bfloat16"),
    IGNORED("use_cache"),
    IGNORED("cache_implementation"),
    IGNORED("return_dict"),
    IGNORED("output_attentions"),
    IGNORED("output_hidden_states"),
    IGNORED("chunk_size_feed_forward"),
    IGNORED("tokenizer_class"),
    IGNORED("bos_token_id"), // the tokenizer's
    IGNORED("eos_token_id"),
    IGNORED("pad_token_id"),
    IGNORED("sep_token_id"),
    IGNORED("decoder_start_token_id"),
    IGNORED("prefix"),
    IGNORED("tf_legacy_loss"),
    IGNORED("tie_encoder_decoder"),
    IGNORED("is_decoder"),
    IGNORED("id2label"),
    IGNORED("label2id"),
    IGNORED("problem_type"),
    IGNORED("task_specific_params"),
    IGNORED("finetuning_task"),
    IGNORED("gradient_checkpointing"),
    IGNORED("initializer_range"),
    IGNORED("attention_dropout"),
    IGNORED("hidden_dropout"),
    IGNORED("pretraining_tp"), // how products are cut into parts
    IGNORED("do_sample"),
    IGNORED("early_stopping"),
    IGNORED("num_beams"),
    IGNORED("num_beam_groups"),
    IGNORED("diversity_penalty"),
    IGNORED("temperature"),
    IGNORED("top_k"),
    IGNORED("top_p"),
    IGNORED("typical_p"),
    IGNORED("repetition_penalty"),
    IGNORED("length_penalty"),
    IGNORED("encoder_no_repeat_ngram_size"),
    IGNORED("no_repeat_ngram_size"),
    IGNORED("bad_words_ids"),
    IGNORED("begin_suppress_tokens"),
    IGNORED("suppress_tokens"),
    IGNORED("exponential_decay_length_penalty"),
    IGNORED("forced_bos_token_id"),
    IGNORED("forced_eos_token_id"),
    IGNORED("max_length"),
    IGNORED("min_length"),
    IGNORED("num_return_sequences"),
    IGNORED("output_scores"),
    IGNORED("return_dict_in_generate"),
    IGNORED("remove_invalid_values"),
};
const uint32_t nb_hf_n_common_keys = COUNT(nb_hf_common_keys);

// Of every decoder here. Biases are where their tensors are.
#define DECODER_KEYS                                                                               \
    READ("num_key_value_heads"), READ("head_dim"), READ("rope_theta"), READ("rope_scaling"),       \
        READ("rope_parameters"), F32("rms_norm_eps", "attention.layer_norm_rms_epsilon"),          \
        IGNORED("attention_bias"), IGNORED("mlp_bias")
#define SILU IS_2("hidden_act", "\"silu\"", "\"swish\"", "another activation")

static const char *const decoder_ignored[] = {"*.rotary_emb.inv_freq", NULL};

// clang-format off
#define T(from, to)                {.name = from, .gguf = to}
#define T_IS(from, to, its)        {.name = from, .gguf = to, .flags = its}
#define T_HEADS(from, to, of)      {.name = from, .gguf = to, .flags = NB_HF_BIAS_OPTIONAL, .rows = of}

#define EMBEDDING T("embed_tokens", "token_embd")
#define HEAD      T_IS("lm_head", "output", NB_HF_NO_PREFIX | NB_HF_HEAD)
#define GATED_FFN                                                                                  \
    T("layers.%.mlp.gate_proj", "blk.%.ffn_gate"),                                                 \
    T("layers.%.mlp.up_proj", "blk.%.ffn_up"),                                                     \
    T("layers.%.mlp.down_proj", "blk.%.ffn_down")
#define LLAMA_ATTENTION                                                                            \
    T("layers.%.input_layernorm", "blk.%.attn_norm"),                                              \
    T_HEADS("layers.%.self_attn.q_proj", "blk.%.attn_q", NB_HF_ROWS_Q),                            \
    T_HEADS("layers.%.self_attn.k_proj", "blk.%.attn_k", NB_HF_ROWS_K),                            \
    T_IS("layers.%.self_attn.v_proj", "blk.%.attn_v", NB_HF_BIAS_OPTIONAL),                        \
    T_IS("layers.%.self_attn.o_proj", "blk.%.attn_output", NB_HF_BIAS_OPTIONAL),                   \
    T("layers.%.post_attention_layernorm", "blk.%.ffn_norm")
// clang-format on

// ---- llama, mistral, mixtral: neighbouring rotary pairs

static const struct nb_hf_key llama_keys[] = {
    DECODER_KEYS,
    SILU,
    IS("rope_interleaved", "false", "rotary pairs otherwise laid out"),
    IGNORED("is_llama_config"),
    IGNORED("max_sequence_length"), // max_position_embeddings under its first name
    READ("sliding_window"),
};

static const struct nb_hf_tensor llama_tensors[] = {
    EMBEDDING,
    LLAMA_ATTENTION,
    T_IS("layers.%.mlp.gate_proj", "blk.%.ffn_gate", NB_HF_BIAS_OPTIONAL),
    T_IS("layers.%.mlp.up_proj", "blk.%.ffn_up", NB_HF_BIAS_OPTIONAL),
    T_IS("layers.%.mlp.down_proj", "blk.%.ffn_down", NB_HF_BIAS_OPTIONAL),
    T("norm", "output_norm"),
    HEAD,
};

static const struct nb_hf_key mixtral_keys[] = {
    DECODER_KEYS,
    SILU,
    READ_REQUIRED("num_local_experts"),
    U32("num_experts_per_tok", "expert_used_count"),
    READ("sliding_window"),
    IGNORED("output_router_logits"),
    IGNORED("router_aux_loss_coef"),
    IGNORED("router_jitter_noise"),
};

static const struct nb_hf_tensor mixtral_tensors[] = {
    EMBEDDING,
    LLAMA_ATTENTION,
    T_IS("layers.%.block_sparse_moe.gate", "blk.%.ffn_gate_inp", NB_HF_SINGLE),
    T("layers.%.block_sparse_moe.experts.%.w1", "blk.%.ffn_gate_exps"),
    T("layers.%.block_sparse_moe.experts.%.w3", "blk.%.ffn_up_exps"),
    T("layers.%.block_sparse_moe.experts.%.w2", "blk.%.ffn_down_exps"),
    T("norm", "output_norm"),
    HEAD,
};

// ---- qwen2, qwen3

static const struct nb_hf_key qwen_keys[] = {
    DECODER_KEYS,
    SILU,
    READ("use_sliding_window"),
    READ("sliding_window"),
    READ("max_window_layers"),
    READ("layer_types"),
    IS("use_mrope", "false", "positions of several dimensions"),
};

static const struct nb_hf_tensor qwen2_tensors[] = {
    EMBEDDING,
    T("layers.%.input_layernorm", "blk.%.attn_norm"),
    T_IS("layers.%.self_attn.q_proj", "blk.%.attn_q", NB_HF_BIAS),
    T_IS("layers.%.self_attn.k_proj", "blk.%.attn_k", NB_HF_BIAS),
    T_IS("layers.%.self_attn.v_proj", "blk.%.attn_v", NB_HF_BIAS),
    T("layers.%.self_attn.o_proj", "blk.%.attn_output"),
    T("layers.%.post_attention_layernorm", "blk.%.ffn_norm"),
    GATED_FFN,
    T("norm", "output_norm"),
    HEAD,
};

static const struct nb_hf_tensor qwen3_tensors[] = {
    EMBEDDING,
    T("layers.%.input_layernorm", "blk.%.attn_norm"),
    T("layers.%.self_attn.q_proj", "blk.%.attn_q"),
    T("layers.%.self_attn.q_norm", "blk.%.attn_q_norm"),
    T("layers.%.self_attn.k_proj", "blk.%.attn_k"),
    T("layers.%.self_attn.k_norm", "blk.%.attn_k_norm"),
    T("layers.%.self_attn.v_proj", "blk.%.attn_v"),
    T("layers.%.self_attn.o_proj", "blk.%.attn_output"),
    T("layers.%.post_attention_layernorm", "blk.%.ffn_norm"),
    GATED_FFN,
    T("norm", "output_norm"),
    HEAD,
};

// ---- gemma3: norms times weight + 1, before and after each half of a layer

static const struct nb_hf_key gemma3_keys[] = {
    DECODER_KEYS,
    IS("hidden_activation", "\"gelu_pytorch_tanh\"", "another activation"),
    IS("hidden_act", "\"gelu_pytorch_tanh\"", "another activation"),
    READ("query_pre_attn_scalar"),
    READ("sliding_window"),
    READ("sliding_window_pattern"),
    READ("_sliding_window_pattern"),
    READ("layer_types"),
    READ("rope_local_base_freq"),
    IS("use_bidirectional_attention", "false", "attention to what comes after"),
    IS("attn_logit_softcapping", NULL, "capped attention"),
    IS("final_logit_softcapping", NULL, "capped logits"),
};

static const struct nb_hf_tensor gemma3_tensors[] = {
    EMBEDDING,
    T_IS("layers.%.input_layernorm", "blk.%.attn_norm", NB_HF_PLUS_ONE),
    T("layers.%.self_attn.q_proj", "blk.%.attn_q"),
    T_IS("layers.%.self_attn.q_norm", "blk.%.attn_q_norm", NB_HF_PLUS_ONE),
    T("layers.%.self_attn.k_proj", "blk.%.attn_k"),
    T_IS("layers.%.self_attn.k_norm", "blk.%.attn_k_norm", NB_HF_PLUS_ONE),
    T("layers.%.self_attn.v_proj", "blk.%.attn_v"),
    T("layers.%.self_attn.o_proj", "blk.%.attn_output"),
    T_IS("layers.%.post_attention_layernorm", "blk.%.post_attention_norm", NB_HF_PLUS_ONE),
    T_IS("layers.%.pre_feedforward_layernorm", "blk.%.ffn_norm", NB_HF_PLUS_ONE),
    GATED_FFN,
    T_IS("layers.%.post_feedforward_layernorm", "blk.%.post_ffw_norm", NB_HF_PLUS_ONE),
    T_IS("norm", "output_norm", NB_HF_PLUS_ONE),
    HEAD,
};

// ---- phi3: q, k and v in one matrix, gate and up in another

static const struct nb_hf_key phi3_keys[] = {
    DECODER_KEYS,
    SILU,
    READ("original_max_position_embeddings"),
    READ("partial_rotary_factor"),
    READ("sliding_window"),
    IS("lm_head_bias", "false", "a head with a bias"),
    IS("full_attn_mod", "1", "attention of two kinds"),
    IS("interpolate_factor", "1", "positions that are interpolated"),
    IGNORED("embd_pdrop"),
    IGNORED("resid_pdrop"),
};

static const struct nb_hf_tensor phi3_tensors[] = {
    EMBEDDING,
    T("layers.%.input_layernorm", "blk.%.attn_norm"),
    T("layers.%.self_attn.qkv_proj", "blk.%.attn_qkv"),
    T("layers.%.self_attn.o_proj", "blk.%.attn_output"),
    T("layers.%.post_attention_layernorm", "blk.%.ffn_norm"),
    T("layers.%.mlp.gate_up_proj", "blk.%.ffn_up"),
    T("layers.%.mlp.down_proj", "blk.%.ffn_down"),
    T("norm", "output_norm"),
    HEAD,
};

// ---- bert

static const struct nb_hf_key bert_keys[] = {
    IS("hidden_act", "\"gelu\"", "another activation"),
    IS("position_embedding_type", "\"absolute\"", "relative positions"),
    IS("is_decoder", "false", "an encoder used as a decoder"),
    F32("layer_norm_eps", "attention.layer_norm_epsilon"),
    READ_REQUIRED("type_vocab_size"),
    IGNORED("attention_probs_dropout_prob"),
    IGNORED("hidden_dropout_prob"),
    IGNORED("classifier_dropout"),
    IGNORED("directionality"),
    IGNORED("pooler_fc_size"),
    IGNORED("pooler_num_attention_heads"),
    IGNORED("pooler_num_fc_layers"),
    IGNORED("pooler_size_per_head"),
    IGNORED("pooler_type"),
};

static const struct nb_hf_tensor bert_tensors[] = {
    T("embeddings.word_embeddings", "token_embd"),
    T_IS("embeddings.position_embeddings", "position_embd", NB_HF_SINGLE),
    T_IS("embeddings.token_type_embeddings", "token_types", NB_HF_SINGLE),
    T_IS("embeddings.LayerNorm", "token_embd_norm", NB_HF_BIAS),
    T_IS("encoder.layer.%.attention.self.query", "blk.%.attn_q", NB_HF_BIAS),
    T_IS("encoder.layer.%.attention.self.key", "blk.%.attn_k", NB_HF_BIAS),
    T_IS("encoder.layer.%.attention.self.value", "blk.%.attn_v", NB_HF_BIAS),
    T_IS("encoder.layer.%.attention.output.dense", "blk.%.attn_output", NB_HF_BIAS),
    T_IS("encoder.layer.%.attention.output.LayerNorm", "blk.%.attn_output_norm", NB_HF_BIAS),
    T_IS("encoder.layer.%.intermediate.dense", "blk.%.ffn_up", NB_HF_BIAS),
    T_IS("encoder.layer.%.output.dense", "blk.%.ffn_down", NB_HF_BIAS),
    T_IS("encoder.layer.%.output.LayerNorm", "blk.%.layer_output_norm", NB_HF_BIAS),
};

// The pooler and the heads of its training are no part of the embedding.
static const char *const bert_ignored[] = {"*embeddings.position_ids", "pooler.*", "bert.pooler.*",
                                           "cls.*", NULL};

#define KEYS(a)    .keys = a, .n_keys = COUNT(a)
#define TENSORS(a) .tensors = a, .n_tensors = COUNT(a)

const struct nb_hf_family nb_hf_families[] = {
    {.names = {"LlamaForCausalLM", "LLaMAForCausalLM"},
     .architecture = "llama",
     .prefix = "model.",
     KEYS(llama_keys),
     TENSORS(llama_tensors),
     .ignored = decoder_ignored,
     .extra = nb_hf_llama},
    {.names = {"MistralForCausalLM"},
     .architecture = "llama",
     .prefix = "model.",
     KEYS(llama_keys),
     TENSORS(llama_tensors),
     .ignored = decoder_ignored,
     .extra = nb_hf_llama},
    {.names = {"MixtralForCausalLM"},
     .architecture = "llama",
     .prefix = "model.",
     KEYS(mixtral_keys),
     TENSORS(mixtral_tensors),
     .ignored = decoder_ignored,
     .extra = nb_hf_llama},
    {.names = {"Qwen2ForCausalLM", "Qwen2Model"},
     .architecture = "qwen2",
     .prefix = "model.",
     KEYS(qwen_keys),
     TENSORS(qwen2_tensors),
     .ignored = decoder_ignored,
     .extra = nb_hf_qwen},
    {.names = {"Qwen3ForCausalLM", "Qwen3Model"},
     .architecture = "qwen3",
     .prefix = "model.",
     .head_dim = 128,
     KEYS(qwen_keys),
     TENSORS(qwen3_tensors),
     .ignored = decoder_ignored,
     .extra = nb_hf_qwen},
    {.names = {"Gemma3ForCausalLM"},
     .architecture = "gemma3",
     .prefix = "model.",
     .head_dim = 256,
     .tied = true,
     KEYS(gemma3_keys),
     TENSORS(gemma3_tensors),
     .ignored = decoder_ignored,
     .extra = nb_hf_gemma3},
    {.names = {"Phi3ForCausalLM"},
     .architecture = "phi3",
     .prefix = "model.",
     KEYS(phi3_keys),
     TENSORS(phi3_tensors),
     .ignored = decoder_ignored,
     .extra = nb_hf_phi3},
    {.names = {"BertModel", "BertForMaskedLM"},
     .architecture = "bert",
     .prefix = "bert.",
     .tied = true,
     KEYS(bert_keys),
     TENSORS(bert_tensors),
     .ignored = bert_ignored,
     .extra = nb_hf_bert},
};
const uint32_t nb_hf_n_families = COUNT(nb_hf_families);
