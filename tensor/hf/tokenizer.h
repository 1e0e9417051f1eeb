// The tokenizer of a Hugging Face folder as GGUF metadata: the keys that llama.cpp's converter
// writes for it, so that our tokenizers and stock llama.cpp read the same ids out of a text as the
// `tokenizers` package does.
//
// Byte-level BPE becomes "gpt2", BPE of SentencePiece's kind (byte fallback, U+2581 for a space)
// "llama" with scores that rank as its merges do, WordPiece "bert". Anything else is refused by
// name, and so is a pipeline of normalizers and pre-tokenizers that no row of pipeline.c has.
#pragma once

#include "tensor/gguf_kvs.h"
#include "tensor/fail.h"

// The files of the folder, each whole; data is NULL where it is absent. They may be hostile.
struct nb_hf_texts {
    struct nb_str tokenizer;          // tokenizer.json, the only one that must be there
    struct nb_str tokenizer_config;   // tokenizer_config.json
    struct nb_str special_tokens_map; // special_tokens_map.json: names that tokenizer_config lacks
    struct nb_str config;             // config.json: ids of special tokens that nothing else names
    struct nb_str generation_config;  // generation_config.json: the same, the last resort
    struct nb_str chat_template;      // chat_template.jinja, where tokenizer_config has none
};

// Appends the tokenizer's keys to `kvs`. `vocab` is the number of rows of the embedding: ids
// without a token become unused tokens [PADid]. -EINVAL for what is malformed or does not fit,
// -ENOTSUP for what no GGUF says, -EFBIG over a limit, -ENOMEM; `ret_error` says in one line what
// and where. After a failure `kvs` may have some of the keys: finish it.
int nb_hf_tokenizer(const struct nb_hf_texts *texts, uint32_t vocab, struct nb_gguf_kvs *kvs,
                    struct nb_error *ret_error);
