// A tokenizer on its way from JSON to key-values. Private to tensor/hf/tokenizer*.c.
#pragma once

#include "tensor/fail.h"
#include "tensor/hf/pipeline.h"
#include "tensor/hf/tokenizer.h"

#define NB_HF_TOKEN_BYTES_MAX 4096

// The numbers of tokenizer.ggml.token_type.
enum nb_hf_type {
    NB_HF_NORMAL = 1,
    NB_HF_UNKNOWN,
    NB_HF_CONTROL,
    NB_HF_USER_DEFINED,
    NB_HF_UNUSED,
    NB_HF_BYTE,
};

struct nb_hf_tokens {
    const struct nb_hf_texts *texts;
    const struct nb_hf_pipeline *pipeline;
    json_t *root;        // tokenizer.json
    const json_t *model; // of it
    const json_t *vocab; // of the model: token to id
    uint32_t n;          // ids
    struct nb_str *text; // [n]: data is NULL for an id without a token
    int32_t *type;       // [n] enum nb_hf_type
    char *spelled;       // texts that the GGUF spells in another way
    size_t spelled_len, spelled_max;
    struct nb_gguf_kvs *kvs;
    struct nb_error *error;
};

// The code once more, so that analyzers see that it is negative.
#define NB_HF_FAIL(t, code, ...) (nb_fail((t)->error, code, __VA_ARGS__), (code))

// The id of a token of the model's own vocabulary, or -1.
int64_t nb_hf_vocab_id(const struct nb_hf_tokens *t, struct nb_str token);

// Fills text and type of all n ids: the model's vocabulary, added tokens, and the padding.
int nb_hf_tokens_load(struct nb_hf_tokens *t);
// Puts tokenizer.ggml.merges.
int nb_hf_put_merges(struct nb_hf_tokens *t);
// Puts tokenizer.ggml.scores, which make SentencePiece's algorithm do what the merges say. -ENOTSUP
// where no scores do.
int nb_hf_put_scores(struct nb_hf_tokens *t);
// Puts ids of special tokens, what goes before and after a text, and the chat template.
int nb_hf_put_specials(struct nb_hf_tokens *t);
