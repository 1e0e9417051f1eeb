// The tokens of a tokenizer.json by id, as a GGUF spells and types them.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/hf/tokenizer_private.h"
#include "tensor/names.h"

#define MARK "\xe2\x96\x81" // U+2581, SentencePiece's space

int64_t nb_hf_vocab_id(const struct nb_hf_tokens *t, struct nb_str token)
{
    const json_t *id = json_object_getn(t->vocab, token.data, token.len);

    return id ? json_integer_value(id) : -1;
}

// ---- Spelling

static struct nb_str spell(struct nb_hf_tokens *t, struct nb_str before, struct nb_str s)
{
    char *start = t->spelled + t->spelled_len;

    if (before.len)
        memcpy(start, before.data, before.len);
    memcpy(start + before.len, s.data, s.len);
    t->spelled_len += before.len + s.len;
    return (struct nb_str){start, before.len + s.len};
}

// WordPiece marks what goes on with a word, a GGUF what begins one.
static struct nb_str spell_wordpiece(struct nb_hf_tokens *t, struct nb_str s)
{
    bool goes_on = s.len >= 2 && memcmp(s.data, "##", 2) == 0;

    return goes_on ? (struct nb_str){s.data + 2, s.len - 2}
                   : spell(t, (struct nb_str){MARK, sizeof(MARK) - 1}, s);
}

// Tokens that are cut out of a text first are compared with it as it is.
static struct nb_str spell_spaces(struct nb_hf_tokens *t, struct nb_str s)
{
    struct nb_str out = spell(t, (struct nb_str){NULL, 0}, s);
    char *text = (char *)out.data;
    size_t n = 0;

    for (size_t i = 0; i < s.len; n++) {
        bool mark = s.len - i >= 3 && memcmp(s.data + i, MARK, 3) == 0;
        text[n] = s.data[i];
        if (mark)
            text[n] = ' ';
        i += mark ? 3 : 1;
    }
    out.len = n;
    return out;
}

// ---- Placing

static int place(struct nb_hf_tokens *t, int64_t id, struct nb_str text, const char *where)
{
    char shown[NB_HF_SHOWN_MAX];

    if (id < 0 || id >= t->n)
        return NB_HF_FAIL(t, -EINVAL,
                          "tokenizer.json: the id %lld of \"%s\" in %s does not fit the "
                          "embedding, which has %u rows",
                          (long long)id, nb_hf_shown(text, shown), where, t->n);
    if (text.len > NB_HF_TOKEN_BYTES_MAX)
        return NB_HF_FAIL(t, -EFBIG, "tokenizer.json: token %lld has %zu bytes; the limit is %d",
                          (long long)id, text.len, NB_HF_TOKEN_BYTES_MAX);
    struct nb_str *old = &t->text[id];
    if (old->data && (old->len != text.len || memcmp(old->data, text.data, text.len) != 0))
        return NB_HF_FAIL(t, -EINVAL, "tokenizer.json: id %lld has two tokens, one of them \"%s\"",
                          (long long)id, nb_hf_shown(text, shown));
    *old = text;
    return 0;
}

static bool is_byte(const struct nb_hf_tokens *t, struct nb_str s)
{
    return t->pipeline->byte_fallback && s.len == 6 && memcmp(s.data, "<0x", 3) == 0 &&
           strspn(s.data + 3, "0123456789ABCDEFabcdef") == 2 && s.data[5] == '>';
}

static int place_vocab(struct nb_hf_tokens *t)
{
    const char *key;
    json_t *id;

    json_object_foreach((json_t *)t->vocab, key, id) {
        struct nb_str text = {key, strlen(key)};
        int rc =
            place(t, json_is_integer(id) ? json_integer_value(id) : -1, text, "its vocabulary");
        if (rc < 0)
            return rc;
        t->type[json_integer_value(id)] = is_byte(t, text) ? NB_HF_BYTE : NB_HF_NORMAL;
    }
    return 0;
}

static bool between(struct nb_str s, const char *first, const char *last)
{
    size_t a = strlen(first), b = strlen(last);

    return s.len >= a + b && memcmp(s.data, first, a) == 0 &&
           memcmp(s.data + s.len - b, last, b) == 0;
}

// Some files mark tokens that only a template writes as not special; llama.cpp's converter knows
// them by their looks.
static bool looks_special(struct nb_str s)
{
    static const char *const known[] = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"};

    for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
        if (nb_hf_is(s, known[i]))
            return true;
    return between(s, "<|", "|>") || between(s, "<｜", "｜>") || between(s, "<unused", ">");
}

static int place_added(struct nb_hf_tokens *t, const json_t *token)
{
    struct nb_str text = nb_hf_str(token, "content");
    int64_t id = nb_hf_id(token, "id"), other;

    if (!text.len)
        return NB_HF_FAIL(t, -EINVAL, "tokenizer.json: an entry of added_tokens has no content");
    int rc = place(t, id, text, "added_tokens");
    if (rc < 0)
        return rc;
    other = nb_hf_vocab_id(t, text);
    if (other >= 0 && other != id)
        return NB_HF_FAIL(t, -EINVAL, "tokenizer.json: tokens %lld and %lld have the same text",
                          (long long)other, (long long)id);
    bool special = nb_hf_bool(token, "special", false) || looks_special(text);
    t->type[id] = special ? NB_HF_CONTROL : NB_HF_USER_DEFINED;
    return 0;
}

static int place_all(struct nb_hf_tokens *t)
{
    const json_t *added = json_object_get(t->root, "added_tokens"), *token;
    int64_t unknown = nb_hf_vocab_id(t, nb_hf_str(t->model, "unk_token"));
    size_t i;
    int rc = place_vocab(t);

    if (rc == 0 && unknown >= 0 && t->pipeline->sentencepiece)
        t->type[unknown] = NB_HF_UNKNOWN;
    json_array_foreach(added, i, token)
        rc = rc < 0 ? rc : place_added(t, token);
    return rc;
}

// ---- The whole

static void finish_spelling(struct nb_hf_tokens *t)
{
    bool wordpiece = strcmp(t->pipeline->type, "WordPiece") == 0;

    for (uint32_t i = 0; i < t->n; i++) {
        char pad[16];
        if (!t->text[i].data) {
            int len = snprintf(pad, sizeof(pad), "[PAD%u]", i);
            t->text[i] = spell(t, (struct nb_str){NULL, 0}, (struct nb_str){pad, (size_t)len});
            t->type[i] = NB_HF_UNUSED;
        }
        if (t->type[i] == NB_HF_USER_DEFINED)
            t->text[i] = spell_spaces(t, t->text[i]);
        if (wordpiece && t->type[i] != NB_HF_CONTROL)
            t->text[i] = spell_wordpiece(t, t->text[i]);
    }
}

static int check_duplicates(struct nb_hf_tokens *t)
{
    struct nb_names names;
    struct nb_str same;
    char shown[NB_HF_SHOWN_MAX];

    if (nb_names_init(&names, t->n) < 0)
        return NB_HF_FAIL(t, -ENOMEM, "no memory for the tokens of tokenizer.json");
    for (uint32_t i = 0; i < t->n; i++)
        names.items[i].str = t->text[i];
    int rc = nb_names_sort(&names, &same);
    nb_names_finish(&names);
    if (rc < 0)
        return NB_HF_FAIL(t, -EINVAL, "tokenizer.json: two tokens become \"%s\" in a GGUF",
                          nb_hf_shown(same, shown));
    return 0;
}

int nb_hf_tokens_load(struct nb_hf_tokens *t)
{
    // A token is spelled twice at most, and padding is 16 bytes at most before it gets a mark.
    t->spelled_max = 2 * t->texts->tokenizer.len + (size_t)t->n * (2 * 16 + sizeof(MARK));
    t->text = calloc(t->n, sizeof(*t->text));
    t->type = calloc(t->n, sizeof(*t->type));
    t->spelled = malloc(t->spelled_max);
    if (!t->text || !t->type || !t->spelled)
        return NB_HF_FAIL(t, -ENOMEM, "no memory for the tokens of tokenizer.json");
    int rc = place_all(t);
    if (rc < 0)
        return rc;
    finish_spelling(t);
    return check_duplicates(t);
}
