// Text to token ids and back, from a model's own metadata: byte-level BPE, SentencePiece,
// WordPiece. Ids equal llama.cpp's, with two exceptions: text that is not a template's literal
// never becomes a control token, which is a promise, and WordPiece's are the original's
// (wordpiece.h). Immutable after creation: any number of threads may use one tokenizer.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/gguf.h"
#include "tensor/fail.h"

#define NB_TOKEN_NONE (-1)
#define NB_TOKENIZE_BYTES_MAX                                                                      \
    (64u << 20) // of one call; it takes up to about 100 bytes of memory for each

struct nb_tokenizer;

// Ids that grow as they come. Zero it first; finish it last.
struct nb_tokens {
    int32_t *id;
    size_t n, capacity;
};
int nb_tokens_push(struct nb_tokens *t, int32_t id); // -ENOMEM
void nb_tokens_finish(struct nb_tokens *t);

// Copies what it needs: `meta` may go afterwards. -ENOTSUP for a tokenizer or pre-tokenizer that we
// do not know, -EINVAL for a malformed one, -ENOMEM; `ret_error` says which in one line.
int nb_tokenizer_create(const struct nb_gguf *meta, struct nb_tokenizer **ret,
                        struct nb_error *ret_error);
void nb_tokenizer_destroy(struct nb_tokenizer *t);

// A part of a text. Control tokens in a literal part become their ids; those in any other part stay
// text. Use literals for what a template says, never for what a user wrote.
struct nb_text_part {
    const char *text;
    size_t len;
    bool literal;
};

// Appends the ids of the parts' bytes, of any content, read as one text: a boundary between parts
// is none to the tokenizer. add_special: a BOS token first and an EOS token last, where the model
// asks for them. Each byte that is no UTF-8 is read as U+FFFD by byte-level BPE, as that byte by
// SentencePiece, and not at all by WordPiece. -E2BIG past NB_TOKENIZE_BYTES_MAX in all, -ENOMEM,
// -EOVERFLOW when a pattern of the pre-tokenizer ran into its limit, -EILSEQ when the vocabulary
// has no token for a byte and none for the unknown. On failure `out` is as it was.
int nb_tokenizer_encode_parts(const struct nb_tokenizer *t, const struct nb_text_part *parts,
                              size_t n_parts, bool add_special, struct nb_tokens *out);
int nb_tokenizer_encode(const struct nb_tokenizer *t, const char *text, size_t len, bool literal,
                        bool add_special, struct nb_tokens *out);

// The bytes that a token stands for, valid as long as the tokenizer. A token may hold part of a
// UTF-8 sequence. Control and unknown tokens are empty unless `special`; so are ids outside the
// vocabulary.
struct nb_str nb_tokenizer_piece(const struct nb_tokenizer *t, int32_t id, bool special);
// The token's text as the vocabulary spells it (byte-level BPE writes a space as U+0120), and the
// id of such a text.
struct nb_str nb_tokenizer_text(const struct nb_tokenizer *t, int32_t id);
int32_t nb_tokenizer_find(const struct nb_tokenizer *t, const char *text,
                          size_t len); // or NB_TOKEN_NONE

// Appends the token, and those that encoding its text makes on the way: characters and what they
// merge to, perhaps some of them twice. Of one of more than 256 characters, and of WordPiece, it
// alone. -ENOMEM.
int nb_tokenizer_parts(const struct nb_tokenizer *t, int32_t id, struct nb_tokens *out);

uint32_t nb_tokenizer_vocab(const struct nb_tokenizer *t);
int32_t nb_tokenizer_bos(const struct nb_tokenizer *t); // these three: or NB_TOKEN_NONE
int32_t nb_tokenizer_eos(const struct nb_tokenizer *t);
int32_t nb_tokenizer_eot(const struct nb_tokenizer *t);
// The tokens that files name for templates: or NB_TOKEN_NONE.
enum nb_special {
    NB_SPECIAL_BOS,
    NB_SPECIAL_EOS,
    NB_SPECIAL_UNK,
    NB_SPECIAL_SEP,
    NB_SPECIAL_PAD,
    NB_SPECIAL_CLS,
    NB_SPECIAL_MASK,
    NB_SPECIALS,
};
int32_t nb_tokenizer_special(const struct nb_tokenizer *t, enum nb_special special);
bool nb_tokenizer_add_bos(const struct nb_tokenizer *t);
bool nb_tokenizer_add_eos(const struct nb_tokenizer *t);
// The model means to stop: end of text, of turn or of message.
bool nb_tokenizer_is_eog(const struct nb_tokenizer *t, int32_t id);
bool nb_tokenizer_is_control(const struct nb_tokenizer *t, int32_t id);
