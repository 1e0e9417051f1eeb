// Reading a vocabulary from a model's metadata: tokens, their attributes and roles.
#include "engine/text/tokenizer_vocab.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"

#define VOCAB_MAX (1u << 24)
#define TOKENS    "tokenizer.ggml.tokens"

// By the number in tokenizer.ggml.token_type. Unused and undefined tokens stand for nothing.
static const uint8_t attr_of_type[] = {
    0, NB_TOKEN_NORMAL, NB_TOKEN_UNKNOWN, NB_TOKEN_CONTROL, NB_TOKEN_USER_DEFINED,
    0, NB_TOKEN_BYTE};

static const struct {
    const char *key;
    enum nb_token_role role;
} role_keys[] = {
    {"bos_token_id", NB_ROLE_BOS},
    {"eos_token_id", NB_ROLE_EOS},
    {"eot_token_id", NB_ROLE_EOT},
    {"eom_token_id", NB_ROLE_EOM},
    {"unknown_token_id", NB_ROLE_UNKNOWN},
    {"seperator_token_id", NB_ROLE_SEPARATOR}, // spelled so in files
    {"padding_token_id", NB_ROLE_PADDING},
    {"cls_token_id", NB_ROLE_CLS},
    {"mask_token_id", NB_ROLE_MASK},
    {"fim_pre_token_id", NB_ROLE_FIM_PREFIX},
    {"fim_suf_token_id", NB_ROLE_FIM_SUFFIX},
    {"fim_mid_token_id", NB_ROLE_FIM_MIDDLE},
    {"fim_pad_token_id", NB_ROLE_FIM_PAD},
    {"fim_rep_token_id", NB_ROLE_FIM_REPO},
    {"fim_sep_token_id", NB_ROLE_FIM_FILE},
    {"prefix_token_id", NB_ROLE_FIM_PREFIX},
    {"suffix_token_id", NB_ROLE_FIM_SUFFIX},
    {"middle_token_id", NB_ROLE_FIM_MIDDLE},
};

// Tokens whose text tells what they are for, where the metadata does not say; role NB_ROLES: none.
// The first in the table wins a role.
static const struct {
    const char *text;
    enum nb_token_role role;
    bool eog;
} known_tokens[] = {
    {"<|eot_id|>", NB_ROLE_EOT, true},
    {"<|im_end|>", NB_ROLE_EOT, true},
    {"<|end|>", NB_ROLE_EOT, true},
    {"<end_of_turn>", NB_ROLE_EOT, true},
    {"<|endoftext|>", NB_ROLE_EOT, true},
    {"<|end_of_text|>", NB_ROLE_EOT, true},
    {"<EOT>", NB_ROLE_EOT, true},
    {"_<EOT>", NB_ROLE_EOT, true},
    {"[EOT]", NB_ROLE_EOT, true},
    {"<｜end▁of▁sentence｜>", NB_ROLE_EOT, true},
    {"<end_of_utterance>", NB_ROLE_EOT, true},
    {"<|eom_id|>", NB_ROLE_EOM, true},
    {"<|return|>", NB_ROLES, true},
    {"<|call|>", NB_ROLES, true},
    {"<|calls|>", NB_ROLES, true},
    {"<|flush|>", NB_ROLES, true},
    {"</s>", NB_ROLES, true},
    {"[EOS]", NB_ROLES, true},
    {"<eos>", NB_ROLES, true},
    {"<turn|>", NB_ROLES, true},
    {"<|tool_response>", NB_ROLES, true},
    {"[e~[", NB_ROLES, true},
    {"<|fim_prefix|>", NB_ROLE_FIM_PREFIX, false},
    {"<fim-prefix>", NB_ROLE_FIM_PREFIX, false},
    {"<fim_prefix>", NB_ROLE_FIM_PREFIX, false},
    {"<｜fim▁begin｜>", NB_ROLE_FIM_PREFIX, false},
    {"<PRE>", NB_ROLE_FIM_PREFIX, false},
    {"▁<PRE>", NB_ROLE_FIM_PREFIX, false},
    {"<|code_prefix|>", NB_ROLE_FIM_PREFIX, false},
    {"<|prefix|>", NB_ROLE_FIM_PREFIX, false},
    {"<|fim_suffix|>", NB_ROLE_FIM_SUFFIX, false},
    {"<fim-suffix>", NB_ROLE_FIM_SUFFIX, false},
    {"<fim_suffix>", NB_ROLE_FIM_SUFFIX, false},
    {"<｜fim▁hole｜>", NB_ROLE_FIM_SUFFIX, false},
    {"<SUF>", NB_ROLE_FIM_SUFFIX, false},
    {"▁<SUF>", NB_ROLE_FIM_SUFFIX, false},
    {"<|code_suffix|>", NB_ROLE_FIM_SUFFIX, false},
    {"<|suffix|>", NB_ROLE_FIM_SUFFIX, false},
    {"<|fim_middle|>", NB_ROLE_FIM_MIDDLE, false},
    {"<fim-middle>", NB_ROLE_FIM_MIDDLE, false},
    {"<fim_middle>", NB_ROLE_FIM_MIDDLE, false},
    {"<｜fim▁end｜>", NB_ROLE_FIM_MIDDLE, false},
    {"<MID>", NB_ROLE_FIM_MIDDLE, false},
    {"▁<MID>", NB_ROLE_FIM_MIDDLE, false},
    {"<|code_middle|>", NB_ROLE_FIM_MIDDLE, false},
    {"<|middle|>", NB_ROLE_FIM_MIDDLE, false},
    {"<|fim_pad|>", NB_ROLE_FIM_PAD, false},
    {"<fim-pad>", NB_ROLE_FIM_PAD, false},
    {"<fim_pad>", NB_ROLE_FIM_PAD, false},
    {"<PAD>", NB_ROLE_FIM_PAD, false},
    {"[PAD]", NB_ROLE_FIM_PAD, false},
    {"<|fim_repo|>", NB_ROLE_FIM_REPO, false},
    {"<|repo_name|>", NB_ROLE_FIM_REPO, false},
    {"<fim-repo>", NB_ROLE_FIM_REPO, false},
    {"<REPO>", NB_ROLE_FIM_REPO, false},
    {"<reponame>", NB_ROLE_FIM_REPO, false},
    {"<|file_sep|>", NB_ROLE_FIM_FILE, false},
};

static int fail(int error, struct nb_error *ret_error, const char *what)
{
    return nb_fail(ret_error, error, "tokenizer: %s", what);
}

static int load_texts(struct nb_tokenizer *t, const struct nb_gguf *meta,
                      struct nb_error *ret_error)
{
    for (uint32_t i = 0; i < t->n_vocab; i++) {
        struct nb_str text = {NULL, 0};
        char empty[32];
        uint32_t symbol;
        int rc = nb_gguf_array_str(meta, TOKENS, i, &text);
        if (rc < 0)
            return fail(rc, ret_error, "cannot read " TOKENS);
        if (text.len == 0) // distinct texts all the same; no text becomes them
            text = (struct nb_str){empty, (size_t)snprintf(empty, sizeof(empty), "[EMPTY_%u]", i)};
        rc = nb_symbols_add(&t->symbols, text.data, text.len, &symbol);
        if (rc < 0)
            return fail(rc, ret_error, "the texts of the tokens take too much memory");
        if (symbol != i) {
            return nb_fail(ret_error, -EINVAL, "tokenizer: tokens %u and %u have the same text",
                           symbol, i);
        }
        if (text.len > t->max_token_bytes)
            t->max_token_bytes = (uint32_t)text.len;
    }
    return 0;
}

static int load_types(struct nb_tokenizer *t, const struct nb_gguf *meta,
                      struct nb_error *ret_error)
{
    static const char key[] = "tokenizer.ggml.token_type";
    enum nb_gguf_type type;
    uint64_t n;
    int rc = nb_gguf_array(meta, key, &type, &n);

    memset(t->attr, NB_TOKEN_NORMAL, t->n_vocab);
    if (rc == -ENOENT)
        return 0;
    if (rc < 0 || n < t->n_vocab)
        return fail(-EINVAL, ret_error, "tokenizer.ggml.token_type does not fit the tokens");
    for (uint32_t i = 0; i < t->n_vocab; i++) {
        int64_t value;
        rc = nb_gguf_array_i64(meta, key, i, &value);
        if (rc < 0)
            return fail(rc, ret_error, "tokenizer.ggml.token_type is not of integers");
        bool known = value >= 0 && value < (int64_t)sizeof(attr_of_type);
        t->attr[i] = known ? attr_of_type[value] : 0;
    }
    return 0;
}

// Scores become ranks that sort as unsigned numbers, the highest score first.
static uint32_t rank_of_score(float score)
{
    uint32_t bits;

    score += 0.0f; // -0 equals 0
    memcpy(&bits, &score, sizeof(bits));
    return bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
}

static int load_scores(struct nb_tokenizer *t, const struct nb_gguf *meta,
                       struct nb_error *ret_error)
{
    static const char key[] = "tokenizer.ggml.scores";
    enum nb_gguf_type type;
    uint64_t n;
    int rc = nb_gguf_array(meta, key, &type, &n);

    if (rc < 0 || n < t->n_vocab)
        return fail(-EINVAL, ret_error,
                    "tokenizer.ggml.scores is missing or does not fit the tokens");
    t->rank = malloc(t->n_vocab * sizeof(*t->rank));
    if (!t->rank)
        return fail(-ENOMEM, ret_error, "no memory for scores");
    for (uint32_t i = 0; i < t->n_vocab; i++) {
        double score;
        rc = nb_gguf_array_f64(meta, key, i, &score);
        if (rc < 0 || isnan(score))
            return fail(-EINVAL, ret_error, "tokenizer.ggml.scores has an entry that is no number");
        t->rank[i] = rank_of_score((float)score);
    }
    return 0;
}

static void load_roles(struct nb_tokenizer *t, const struct nb_gguf *meta)
{
    for (size_t i = 0; i < NB_ROLES; i++)
        if (t->role[i] >= (int32_t)t->n_vocab)
            t->role[i] = NB_TOKEN_NONE;
    for (size_t i = 0; i < sizeof(role_keys) / sizeof(*role_keys); i++) {
        char key[64];
        uint64_t id;
        snprintf(key, sizeof(key), "tokenizer.ggml.%s", role_keys[i].key);
        if (nb_gguf_u64(meta, key, &id) == 0 && id < t->n_vocab)
            t->role[role_keys[i].role] = (int32_t)id;
    }
}

static void add_eog(struct nb_tokenizer *t, enum nb_token_role role)
{
    if (t->role[role] != NB_TOKEN_NONE)
        t->attr[t->role[role]] |= NB_TOKEN_EOG;
}

static bool has_token(const struct nb_tokenizer *t, const char *text)
{
    return nb_tokenizer_find(t, text, strlen(text)) != NB_TOKEN_NONE;
}

static void detect_roles(struct nb_tokenizer *t)
{
    bool given[NB_ROLES + 1] = {[NB_ROLES] = true};

    for (size_t i = 0; i < NB_ROLES; i++)
        given[i] = t->role[i] != NB_TOKEN_NONE;
    for (size_t i = 0; i < sizeof(known_tokens) / sizeof(*known_tokens); i++) {
        const char *text = known_tokens[i].text;
        enum nb_token_role role = known_tokens[i].role;
        int32_t id = nb_tokenizer_find(t, text, strlen(text));
        if (id == NB_TOKEN_NONE)
            continue;
        if (!given[role])
            t->role[role] = id;
        if (!given[role] || known_tokens[i].eog)
            t->attr[id] |= NB_TOKEN_CONTROL;
        if (known_tokens[i].eog)
            t->attr[id] |= NB_TOKEN_EOG;
        given[role] = true;
    }
    static const enum nb_token_role ends[] = {NB_ROLE_EOS,     NB_ROLE_EOT,      NB_ROLE_EOM,
                                              NB_ROLE_FIM_PAD, NB_ROLE_FIM_REPO, NB_ROLE_FIM_FILE};
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++)
        add_eog(t, ends[i]);
    // In the formats with channels, <|end|> ends a message and not the turn.
    bool channels = (has_token(t, "<|return|>") && has_token(t, "<|call|>")) ||
                    (has_token(t, "<|calls|>") && has_token(t, "<|flush|>"));
    int32_t end = nb_tokenizer_find(t, "<|end|>", 7);
    if (channels && end != NB_TOKEN_NONE)
        t->attr[end] &= (uint8_t)~NB_TOKEN_EOG;
}

// Phi-3's tokenizer drops white space after its special tokens, which the metadata does not say.
static void strip_after_specials(struct nb_tokenizer *t, const struct nb_gguf *meta)
{
    static const char *const kept[] = {"<unk>", "<s>", "<|endoftext|>"};
    struct nb_str name;
    char lower[128];

    if (nb_gguf_str(meta, "general.name", &name) < 0)
        return;
    size_t n = name.len < sizeof(lower) - 1 ? name.len : sizeof(lower) - 1;
    for (size_t i = 0; i < n; i++)
        lower[i] = (char)tolower((unsigned char)name.data[i]);
    lower[n] = '\0';
    if (!strstr(lower, "phi-3") && !strstr(lower, "phi3"))
        return;
    for (uint32_t i = 0; i < t->n_special; i++)
        t->attr[t->special[i]] |= NB_TOKEN_STRIP_RIGHT;
    int32_t end = nb_tokenizer_find(t, "</s>", 4);
    if (end != NB_TOKEN_NONE)
        t->attr[end] |= NB_TOKEN_STRIP_RIGHT;
    for (size_t i = 0; i < sizeof(kept) / sizeof(*kept); i++) {
        int32_t id = nb_tokenizer_find(t, kept[i], strlen(kept[i]));
        if (id != NB_TOKEN_NONE)
            t->attr[id] &= (uint8_t)~NB_TOKEN_STRIP_RIGHT;
    }
}

static int longer_first(const void *a, const void *b, void *tokenizer)
{
    const struct nb_tokenizer *t = tokenizer;
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    size_t nx = nb_symbols_text(&t->symbols, x).len, ny = nb_symbols_text(&t->symbols, y).len;

    return nx != ny ? (nx < ny ? 1 : -1) : (x > y) - (x < y);
}

static int list_specials(struct nb_tokenizer *t, struct nb_error *ret_error)
{
    t->special = malloc(t->n_vocab * sizeof(*t->special));
    if (!t->special)
        return fail(-ENOMEM, ret_error, "no memory for special tokens");
    for (uint32_t i = 0; i < t->n_vocab; i++)
        if (t->attr[i] & (NB_TOKEN_CONTROL | NB_TOKEN_USER_DEFINED | NB_TOKEN_UNKNOWN))
            t->special[t->n_special++] = i;
    qsort_r(t->special, t->n_special, sizeof(*t->special), longer_first, t);
    return 0;
}

int nb_vocab_load(struct nb_tokenizer *t, const struct nb_gguf *meta, struct nb_error *ret_error)
{
    enum nb_gguf_type type;
    uint64_t n;

    if (nb_gguf_array(meta, TOKENS, &type, &n) < 0 || type != NB_GGUF_STRING || n == 0)
        return fail(-EINVAL, ret_error, TOKENS " is missing or is no list of strings");
    if (n > VOCAB_MAX)
        return fail(-EFBIG, ret_error, TOKENS " has more than 2^24 entries");
    t->n_vocab = (uint32_t)n;
    t->attr = malloc(n);
    if (!t->attr || nb_symbols_init(&t->symbols, t->n_vocab) < 0)
        return fail(-ENOMEM, ret_error, "no memory for the vocabulary");
    int rc = load_texts(t, meta, ret_error);
    if (rc == 0)
        rc = load_types(t, meta, ret_error);
    if (rc == 0 && t->kind == NB_TOKENIZER_SENTENCEPIECE)
        rc = load_scores(t, meta, ret_error);
    if (rc < 0)
        return rc;
    load_roles(t, meta);
    detect_roles(t);
    rc = list_specials(t, ret_error);
    if (rc == 0)
        strip_after_specials(t, meta);
    return rc;
}
