// Tokenizers as their users see them: creation, and what is known of each token. Encoding is in
// tokenizer_encode.c.
#include "engine/text/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/tokenizer_vocab.h"
#include "tensor/fail.h"

int nb_tokens_push(struct nb_tokens *t, int32_t id)
{
    if (t->n == t->capacity) {
        size_t capacity = t->capacity ? t->capacity * 2 : 64;
        int32_t *p = realloc(t->id, capacity * sizeof(*p));
        if (!p)
            return -ENOMEM;
        t->id = p;
        t->capacity = capacity;
    }
    t->id[t->n++] = id;
    return 0;
}

void nb_tokens_finish(struct nb_tokens *t)
{
    free(t->id);
    *t = (struct nb_tokens){0};
}

static void optional_bool(const struct nb_gguf *meta, const char *key, bool *value)
{
    (void)nb_gguf_bool(meta, key, value); // absent: as it was
}

static int create_bpe(struct nb_tokenizer *t, const struct nb_gguf *meta,
                      struct nb_error *ret_error)
{
    struct nb_str name = {"default",
                          7}; // what files from before the key was invented are taken for

    (void)nb_gguf_str(meta, "tokenizer.ggml.pre", &name);
    const struct nb_pre *pre = nb_pre_find(name.data, name.len);
    if (!pre) {
        return nb_fail(ret_error, -ENOTSUP, "tokenizer: unknown pre-tokenizer \"%.*s\"",
                       (int)(name.len < 64 ? name.len : 64), name.data);
    }
    t->role[NB_ROLE_BOS] = pre->no_bos ? NB_TOKEN_NONE : 11;
    t->role[NB_ROLE_EOS] = 11;
    t->add_bos = pre->add_bos;
    t->ignore_merges = pre->ignore_merges;
    int rc = nb_vocab_load(t, meta, ret_error);
    if (rc == 0)
        rc = nb_vocab_load_merges(t, meta, ret_error);
    if (rc == 0 && (rc = nb_splitter_create(pre, &t->splitter)) < 0)
        nb_fail(ret_error, 0, "tokenizer: cannot compile the patterns of \"%.*s\"", (int)name.len,
                name.data);
    return rc;
}

// A byte without a token of its own is the unknown token.
static int create_sentencepiece(struct nb_tokenizer *t, const struct nb_gguf *meta,
                                struct nb_error *ret_error)
{
    t->kind = NB_TOKENIZER_SENTENCEPIECE;
    t->space_prefix = t->add_bos = true;
    t->role[NB_ROLE_BOS] = 1;
    t->role[NB_ROLE_EOS] = 2;
    t->role[NB_ROLE_UNKNOWN] = 0;
    int rc = nb_vocab_load(t, meta, ret_error);
    if (rc < 0)
        return rc;
    optional_bool(meta, "tokenizer.ggml.add_space_prefix", &t->space_prefix);
    for (int b = 0; b < 256; b++) {
        char text[8], byte = (char)b;
        snprintf(text, sizeof(text), "<0x%02X>", (unsigned)b);
        int32_t id = nb_tokenizer_find_plain(t, text, 6);
        if (id == NB_TOKEN_NONE)
            id = nb_tokenizer_find_plain(t, &byte, 1);
        t->byte_token[b] = id == NB_TOKEN_NONE ? t->role[NB_ROLE_UNKNOWN] : id;
    }
    return 0;
}

static int create_wordpiece(struct nb_tokenizer *t, const struct nb_gguf *meta,
                            struct nb_error *ret_error)
{
    t->kind = NB_TOKENIZER_WORDPIECE;
    t->last = NB_ROLE_SEPARATOR;
    t->add_bos = t->add_eos = t->lowercase = true;
    t->role[NB_ROLE_BOS] = 101;
    t->role[NB_ROLE_UNKNOWN] = 100;
    t->role[NB_ROLE_SEPARATOR] = 102;
    t->role[NB_ROLE_PADDING] = 0;
    t->role[NB_ROLE_MASK] = 103;
    optional_bool(meta, "tokenizer.ggml.normalizer.lowercase", &t->lowercase);
    t->strip_accents = t->lowercase;
    optional_bool(meta, "tokenizer.ggml.normalizer.strip_accents", &t->strip_accents);
    return nb_vocab_load(t, meta, ret_error);
}

static const struct {
    const char *model; // tokenizer.ggml.model
    int (*create)(struct nb_tokenizer *t, const struct nb_gguf *meta, struct nb_error *ret_error);
} kinds[] = {{"gpt2", create_bpe}, {"llama", create_sentencepiece}, {"bert", create_wordpiece}};

static int create(struct nb_tokenizer *t, const struct nb_gguf *meta, struct nb_error *ret_error)
{
    struct nb_str model = {NULL, 0};

    if (nb_gguf_str(meta, "tokenizer.ggml.model", &model) < 0) {
        return nb_fail(ret_error, -EINVAL, "tokenizer: the file names none (tokenizer.ggml.model)");
    }
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
        if (strlen(kinds[i].model) == model.len &&
            memcmp(kinds[i].model, model.data, model.len) == 0)
            return kinds[i].create(t, meta, ret_error);
    return nb_fail(ret_error, -ENOTSUP,
                   "tokenizer: unknown kind \"%.*s\" (known: gpt2, llama, bert)",
                   (int)(model.len < 64 ? model.len : 64), model.data);
}

static int check_policy(const struct nb_tokenizer *t, struct nb_error *ret_error)
{
    bool no_bos = t->add_bos && t->role[NB_ROLE_BOS] == NB_TOKEN_NONE;
    bool no_last = t->add_eos && t->role[t->last] == NB_TOKEN_NONE;

    if (!no_bos && !no_last)
        return 0;
    return nb_fail(ret_error, -EINVAL, "tokenizer: asks for %s token but has none",
                   no_bos                   ? "a BOS"
                   : t->last == NB_ROLE_EOS ? "an EOS"
                                            : "a separator");
}

int nb_tokenizer_create(const struct nb_gguf *meta, struct nb_tokenizer **ret,
                        struct nb_error *ret_error)
{
    struct nb_tokenizer *t = calloc(1, sizeof(*t));

    if (!t) {
        return nb_fail(ret_error, -ENOMEM, "tokenizer: no memory");
    }
    for (size_t i = 0; i < NB_ROLES; i++)
        t->role[i] = NB_TOKEN_NONE;
    t->last = NB_ROLE_EOS;
    int rc = create(t, meta, ret_error);
    if (rc == 0)
        rc = nb_vocab_make_pieces(t, ret_error);
    if (rc == 0) {
        optional_bool(meta, "tokenizer.ggml.add_bos_token", &t->add_bos);
        optional_bool(meta, "tokenizer.ggml.add_eos_token", &t->add_eos);
        rc = check_policy(t, ret_error);
    }
    if (rc < 0) {
        nb_tokenizer_destroy(t);
        return rc;
    }
    *ret = t;
    return 0;
}

void nb_tokenizer_destroy(struct nb_tokenizer *t)
{
    if (!t)
        return;
    nb_symbols_finish(&t->symbols);
    nb_splitter_destroy(t->splitter);
    free(t->attr);
    free(t->rank);
    free(t->merge);
    free(t->special);
    free(t->pieces);
    free(t->piece_start);
    free(t);
}

static bool is_token(const struct nb_tokenizer *t, int32_t id)
{
    return id >= 0 && (uint32_t)id < t->n_vocab;
}

struct nb_str nb_tokenizer_piece(const struct nb_tokenizer *t, int32_t id, bool special)
{
    if (!is_token(t, id) || (!special && (t->attr[id] & (NB_TOKEN_CONTROL | NB_TOKEN_UNKNOWN))))
        return (struct nb_str){"", 0};
    return (struct nb_str){t->pieces + t->piece_start[id],
                           t->piece_start[id + 1] - t->piece_start[id]};
}

struct nb_str nb_tokenizer_text(const struct nb_tokenizer *t, int32_t id)
{
    return is_token(t, id) ? nb_symbols_text(&t->symbols, (uint32_t)id) : (struct nb_str){"", 0};
}

int32_t nb_tokenizer_find(const struct nb_tokenizer *t, const char *text, size_t len)
{
    uint32_t symbol = nb_symbols_find(&t->symbols, text, len);

    return symbol < t->n_vocab ? (int32_t)symbol : NB_TOKEN_NONE;
}

int32_t nb_tokenizer_find_plain(const struct nb_tokenizer *t, const char *text, size_t len)
{
    int32_t id = nb_tokenizer_find(t, text, len);

    return id != NB_TOKEN_NONE && nb_token_is_plain(t, (uint32_t)id) ? id : NB_TOKEN_NONE;
}

uint32_t nb_tokenizer_vocab(const struct nb_tokenizer *t)
{
    return t->n_vocab;
}

int32_t nb_tokenizer_bos(const struct nb_tokenizer *t)
{
    return t->role[NB_ROLE_BOS];
}

int32_t nb_tokenizer_eos(const struct nb_tokenizer *t)
{
    return t->role[NB_ROLE_EOS];
}

int32_t nb_tokenizer_eot(const struct nb_tokenizer *t)
{
    return t->role[NB_ROLE_EOT];
}

int32_t nb_tokenizer_special(const struct nb_tokenizer *t, enum nb_special special)
{
    static const enum nb_token_role roles[NB_SPECIALS] = {
        [NB_SPECIAL_BOS] = NB_ROLE_BOS,     [NB_SPECIAL_EOS] = NB_ROLE_EOS,
        [NB_SPECIAL_UNK] = NB_ROLE_UNKNOWN, [NB_SPECIAL_SEP] = NB_ROLE_SEPARATOR,
        [NB_SPECIAL_PAD] = NB_ROLE_PADDING, [NB_SPECIAL_CLS] = NB_ROLE_CLS,
        [NB_SPECIAL_MASK] = NB_ROLE_MASK,
    };

    return t->role[roles[special]];
}

bool nb_tokenizer_add_bos(const struct nb_tokenizer *t)
{
    return t->add_bos;
}

bool nb_tokenizer_add_eos(const struct nb_tokenizer *t)
{
    return t->add_eos;
}

bool nb_tokenizer_is_eog(const struct nb_tokenizer *t, int32_t id)
{
    return is_token(t, id) && (t->attr[id] & NB_TOKEN_EOG);
}

bool nb_tokenizer_is_control(const struct nb_tokenizer *t, int32_t id)
{
    return is_token(t, id) && (t->attr[id] & NB_TOKEN_CONTROL);
}
