// A vocabulary of less: the tokens that a text uses most, with those that encoding makes of them on
// the way, and all that any text needs (control, byte, special and user-defined tokens). The model
// with the rows of these tokens alone is a source like any other, so a teacher and a student of one
// such vocabulary have one tokenizer, and the teacher's probabilities are of what is kept.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/text/tokenizer.h"
#include "tensor/source.h"

struct nb_vocabulary {
    uint32_t n;
    uint32_t *of; // [n]: the model's tokens, ascending
};

// uses: [the model's tokens], how often each comes. asked: tokens at most; up to 1: that share of
// the model's. -ENOTSUP: a kind of tokenizer whose vocabulary is not cut (other than byte-level BPE
// and SentencePiece with all bytes), by its name; -EINVAL: what any text needs is more than asked;
// -ENOMEM; with its line.
int nb_vocabulary_choose(const struct nb_gguf *meta, const struct nb_tokenizer *t,
                         const uint64_t *uses, double asked, struct nb_vocabulary *ret,
                         struct nb_error *ret_error);
void nb_vocabulary_finish(struct nb_vocabulary *v); // all zero is fine

// Whether a key of the tokenizer's metadata has a token's number, as tokenizer.ggml.bos_token_id.
bool nb_vocabulary_names_token(const char *key);

// The model with these tokens alone, numbered anew; rows stay in their type. The model must outlive
// it, the other arguments need not. -ENOTSUP: an array of the tokenizer's metadata, or a tensor,
// that cannot be cut, by its name; -EINVAL, -ENOMEM; with its line.
int nb_vocabulary_open(const struct nb_source *model, const struct nb_tokenizer *t,
                       const struct nb_vocabulary *v, struct nb_source **ret,
                       struct nb_error *ret_error);
