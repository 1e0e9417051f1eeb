// Small vocabularies for tests of the text side, through the real writer and reader of GGUF.
#pragma once

#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"

// What a vocabulary is made of. Strings are C strings; lists end with NULL.
struct text_model {
    const char *model, *pre; // tokenizer.ggml.model and .pre; NULL: no such key
    const char *const
        *extra; // tokens after the alphabet (BPE: 256 characters; SentencePiece: see the .c)
    const int32_t *extra_type; // one for each extra; NULL: all normal
    const float *extra_score;  // SentencePiece: one for each extra
    const char *const *merges; // BPE
    const char *chat_template;
    int bos, eos; // -1: no such key
    int add_bos;  // -1: no such key
};

#define TEXT_ALPHABET 259 // the first extra token's id: <unk>, <s>, </s>, then 256 bytes

struct nb_gguf *text_model_metadata(const struct text_model *m);
struct nb_tokenizer *text_model_tokenizer(const struct text_model *m);
