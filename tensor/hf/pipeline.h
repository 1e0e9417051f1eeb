// What a tokenizer.json does to a text before its model sees it, and what a GGUF calls that.
// Private to tensor/hf.
#pragma once

#include "tensor/hf/json.h"
#include "tensor/fail.h"

struct nb_hf_pipeline {
    const char *steps;  // normalizers and pre-tokenizers, in the words of pipeline.c
    const char *type;   // of the model in tokenizer.json
    const char *model;  // tokenizer.ggml.model
    const char *pre;    // tokenizer.ggml.pre
    bool ignore_merges; // of the model in tokenizer.json
    bool byte_fallback; // likewise
    bool sentencepiece; // scores instead of merges
    bool space_prefix;  // a space goes before the text
};

// -ENOTSUP, with a line that names the steps, where no row fits `root`, the whole tokenizer.json.
int nb_hf_pipeline_find(const json_t *root, const struct nb_hf_pipeline **ret,
                        struct nb_error *ret_error);

// The row that these keys of a GGUF mean, or NULL; space_prefix counts where it is SentencePiece's.
const struct nb_hf_pipeline *nb_hf_pipeline_of(struct nb_str model, struct nb_str pre,
                                               bool space_prefix);
// Its steps as tokenizer.json has them: the inverse of nb_hf_pipeline_find. Each is null where the
// row has none of its kind. 0 or -ENOMEM.
int nb_hf_pipeline_json(const struct nb_hf_pipeline *p, json_t **ret_normalizer,
                        json_t **ret_pre_tokenizer);
