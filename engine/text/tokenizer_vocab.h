// A tokenizer's inside: what its metadata became. For tokenizer*.c alone.
#pragma once

#include "engine/text/tokenizer.h"
#include "engine/text/tokenizer_pre.h"
#include "engine/text/tokenizer_symbols.h"
#include "tensor/fail.h"

enum nb_token_attr {
    NB_TOKEN_NORMAL = 1,
    NB_TOKEN_UNKNOWN = 2,
    NB_TOKEN_CONTROL = 4,
    NB_TOKEN_USER_DEFINED = 8,
    NB_TOKEN_BYTE = 16,
    NB_TOKEN_EOG = 32,
    NB_TOKEN_STRIP_RIGHT = 64, // white space after it is no text
};

enum nb_token_role {
    NB_ROLE_BOS,
    NB_ROLE_EOS,
    NB_ROLE_EOT,
    NB_ROLE_EOM,
    NB_ROLE_UNKNOWN,
    NB_ROLE_SEPARATOR,
    NB_ROLE_PADDING,
    NB_ROLE_CLS,
    NB_ROLE_MASK,
    NB_ROLE_FIM_PREFIX,
    NB_ROLE_FIM_SUFFIX,
    NB_ROLE_FIM_MIDDLE,
    NB_ROLE_FIM_PAD,
    NB_ROLE_FIM_REPO,
    NB_ROLE_FIM_FILE,
    NB_ROLES,
};

struct nb_merge {
    uint32_t left, right; // symbols; left is NB_SYMBOL_NONE in an empty slot
    uint32_t rank, result;
};

enum nb_tokenizer_kind {
    NB_TOKENIZER_BPE, // byte-level
    NB_TOKENIZER_SENTENCEPIECE,
    NB_TOKENIZER_WORDPIECE,
};

struct nb_tokenizer {
    enum nb_tokenizer_kind kind;
    bool add_bos, add_eos, space_prefix, ignore_merges;
    bool lowercase, strip_accents; // WordPiece
    enum nb_token_role last;       // what add_eos puts behind a text
    int32_t role[NB_ROLES];        // or NB_TOKEN_NONE
    uint32_t n_vocab;
    struct nb_symbols symbols; // the first n_vocab are the tokens
    uint8_t *attr;
    uint32_t *rank; // SentencePiece: of a token's score, the best first
    uint32_t max_token_bytes;
    struct nb_merge *merge; // BPE: by hash
    uint32_t merge_mask;
    uint32_t byte_symbol[256]; // BPE: of a byte of text
    int32_t byte_token[256];   // for a byte of a symbol that is no token, or NB_TOKEN_NONE
    struct nb_splitter *splitter;
    uint32_t *special; // tokens that are cut out of a text first, the longest first
    uint32_t n_special;
    char *pieces; // the bytes that each token stands for
    uint32_t *piece_start;
};

const struct nb_merge *nb_tokenizer_find_merge(const struct nb_tokenizer *t, uint32_t left,
                                               uint32_t right);
// A token that plain text may become.
static inline bool nb_token_is_plain(const struct nb_tokenizer *t, uint32_t symbol)
{
    return symbol < t->n_vocab && !(t->attr[symbol] & (NB_TOKEN_CONTROL | NB_TOKEN_UNKNOWN));
}
// Whether two neighbours merge, how urgently, and into which symbol. `both`: their texts in a row.
static inline bool nb_tokenizer_joins(const struct nb_tokenizer *t, uint32_t left, uint32_t right,
                                      struct nb_str both, uint32_t *ret_rank, uint32_t *ret_result)
{
    if (t->kind == NB_TOKENIZER_SENTENCEPIECE) {
        if (both.len > t->max_token_bytes)
            return false;
        *ret_result = nb_symbols_find(&t->symbols, both.data, both.len);
        if (!nb_token_is_plain(t, *ret_result))
            return false;
        *ret_rank = t->rank[*ret_result];
        return true;
    }
    const struct nb_merge *m = nb_tokenizer_find_merge(t, left, right);
    if (!m)
        return false;
    *ret_rank = m->rank;
    *ret_result = m->result;
    return true;
}
// Such a token by its text, or NB_TOKEN_NONE.
int32_t nb_tokenizer_find_plain(const struct nb_tokenizer *t, const char *text, size_t len);
// The character that stands for a byte in byte-level BPE's alphabet, as UTF-8; returns its length.
size_t nb_byte_alphabet(uint8_t byte, char out[4]);

// Parts of creation: tokens and their attributes; merges; what each token stands for. 0 or a
// negative errno with a line.
int nb_vocab_load(struct nb_tokenizer *t, const struct nb_gguf *meta, struct nb_error *ret_error);
int nb_vocab_load_merges(struct nb_tokenizer *t, const struct nb_gguf *meta,
                         struct nb_error *ret_error);
int nb_vocab_make_pieces(struct nb_tokenizer *t, struct nb_error *ret_error);
