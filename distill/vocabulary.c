// See vocabulary.h: which tokens stay.
#include "distill/vocabulary.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TYPES "tokenizer.ggml.token_type"
#define SPACE "\xe2\x96\x81" // SentencePiece's, without which it would be three bytes

enum { UNDEFINED = 0, NORMAL = 1, UNUSED = 5 }; // of tokenizer.ggml.token_type

struct choosing {
    const struct nb_gguf *meta;
    const struct nb_tokenizer *t;
    uint32_t all, n, most;
    bool *kept; // [all]
    struct nb_error *error;
};

static void keep(struct choosing *c, int32_t id)
{
    if (id < 0 || (uint32_t)id >= c->all || c->kept[id])
        return;
    c->kept[id] = true;
    c->n++;
}

// --- What any text needs

bool nb_vocabulary_names_token(const char *key)
{
    static const char first[] = "tokenizer.ggml.", last[] = "_token_id";
    const size_t len = strlen(key), ends = sizeof(last) - 1;
    return len >= sizeof(first) + ends && !strncmp(key, first, sizeof(first) - 1) &&
           !strcmp(key + len - ends, last);
}

static void keep_named(struct choosing *c)
{
    for (uint64_t i = 0; i < nb_gguf_n_keys(c->meta); i++) {
        enum nb_gguf_type type;
        char key[96];
        uint64_t id;
        const struct nb_str name = nb_gguf_key(c->meta, i, &type);
        if (name.len >= sizeof(key))
            continue;
        snprintf(key, sizeof(key), "%.*s", (int)name.len, name.data);
        if (nb_vocabulary_names_token(key) && nb_gguf_u64(c->meta, key, &id) == 0)
            keep(c, id < c->all ? (int32_t)id : NB_TOKEN_NONE);
    }
    for (int i = 0; i < NB_SPECIALS; i++)
        keep(c, nb_tokenizer_special(c->t, (enum nb_special)i));
}

static void keep_marked(struct choosing *c)
{
    for (uint32_t i = 0; i < c->all; i++) {
        int64_t type = NORMAL;
        (void)nb_gguf_array_i64(c->meta, TYPES, i, &type); // without it all are normal
        const bool plain = type == NORMAL || type == UNDEFINED || type == UNUSED;
        if (!plain || nb_tokenizer_is_control(c->t, (int32_t)i) ||
            nb_tokenizer_is_eog(c->t, (int32_t)i))
            keep(c, (int32_t)i);
    }
}

// Of byte-level BPE those of one byte; of SentencePiece bytes have a type of their own.
static void keep_bytes(struct choosing *c)
{
    for (uint32_t i = 0; i < c->all; i++)
        if (nb_tokenizer_piece(c->t, (int32_t)i, false).len == 1)
            keep(c, (int32_t)i);
    keep(c, nb_tokenizer_find(c->t, SPACE, strlen(SPACE)));
}

static int check_kind(const struct choosing *c)
{
    struct nb_str kind = {"", 0};
    (void)nb_gguf_str(c->meta, "tokenizer.ggml.model", &kind);
    if (kind.len == 4 && !memcmp(kind.data, "gpt2", 4))
        return 0;
    if (kind.len != 5 || memcmp(kind.data, "llama", 5) != 0)
        return nb_fail(c->error, -ENOTSUP,
                       "the vocabulary of a tokenizer of the kind \"%.*s\" is not cut, of \"gpt2\" "
                       "and \"llama\" alone: leave out \"vocabulary\"",
                       (int)(kind.len < 64 ? kind.len : 64), kind.data);
    for (unsigned b = 0; b < 256; b++) {
        char text[8];
        snprintf(text, sizeof(text), "<0x%02X>", b);
        if (nb_tokenizer_find(c->t, text, 6) == NB_TOKEN_NONE)
            return nb_fail(c->error, -ENOTSUP,
                           "the tokenizer has no token %s, so that fewer tokens could not write "
                           "any text: leave out \"vocabulary\"",
                           text);
    }
    return 0;
}

// --- What the text uses

struct use {
    uint64_t n;
    uint32_t token;
};

static int more_first(const void *a, const void *b)
{
    const struct use *x = a, *y = b;
    return x->n != y->n ? (x->n < y->n ? 1 : -1) : (x->token > y->token) - (x->token < y->token);
}

// The token with what it is made of. 1: there is no room for them.
static int take(struct choosing *c, uint32_t token, struct nb_tokens *parts)
{
    uint32_t more = 0;
    parts->n = 0;
    int rc = nb_tokenizer_parts(c->t, (int32_t)token, parts);
    for (size_t i = 0; i < parts->n && rc == 0; i++)
        more += !c->kept[parts->id[i]];
    if (rc < 0 || c->n + more > c->most) // some of them twice, perhaps
        return rc < 0 ? rc : 1;
    for (size_t i = 0; i < parts->n; i++)
        keep(c, parts->id[i]);
    return 0;
}

static int take_used(struct choosing *c, const uint64_t *uses)
{
    struct use *use = calloc(c->all, sizeof(*use));
    struct nb_tokens parts = {0};
    uint32_t n = 0;
    int rc = use ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < c->all && rc == 0; i++)
        if (uses[i] && !c->kept[i])
            use[n++] = (struct use){uses[i], i};
    if (rc == 0)
        qsort(use, n, sizeof(*use), more_first);
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = take(c, use[i].token, &parts);
    nb_tokens_finish(&parts);
    free(use);
    return rc < 0 ? rc : 0;
}

static int choose(struct choosing *c, const uint64_t *uses, struct nb_vocabulary *ret)
{
    keep_named(c);
    keep_marked(c);
    keep_bytes(c);
    if (c->n > c->most)
        return nb_fail(c->error, -EINVAL,
                       "a vocabulary of %u tokens is not to be had: control, byte and special "
                       "tokens are %u of the model's %u",
                       c->most, c->n, c->all);
    if (take_used(c, uses) < 0 || !(ret->of = calloc(c->n + 1, sizeof(*ret->of))))
        return nb_fail(c->error, -ENOMEM, "no memory for the vocabulary");
    for (uint32_t i = 0; i < c->all; i++)
        if (c->kept[i])
            ret->of[ret->n++] = i;
    return 0;
}

int nb_vocabulary_choose(const struct nb_gguf *meta, const struct nb_tokenizer *t,
                         const uint64_t *uses, double asked, struct nb_vocabulary *ret,
                         struct nb_error *ret_error)
{
    struct choosing c = {.meta = meta, .t = t, .all = nb_tokenizer_vocab(t), .error = ret_error};
    const double most = asked > 1 ? asked : asked * c.all;
    *ret = (struct nb_vocabulary){0};
    c.most = most < c.all ? (uint32_t)most : c.all;
    int rc = check_kind(&c);
    if (rc < 0)
        return rc;
    c.kept = calloc(c.all + 1, sizeof(*c.kept));
    rc = c.kept ? choose(&c, uses, ret)
                : nb_fail(ret_error, -ENOMEM, "no memory for the vocabulary");
    free(c.kept);
    return rc;
}

void nb_vocabulary_finish(struct nb_vocabulary *v)
{
    free(v->of);
    *v = (struct nb_vocabulary){0};
}
