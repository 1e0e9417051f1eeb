// Special tokens, what goes before and after a text, and the chat template: what tokenizer.json's
// post-processor and the other files of the folder say. Where they say different things, the
// post-processor is right, and of the files the first in the table.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tensor/hf/tokenizer_private.h"

enum role {
    BOS,
    EOS,
    UNK,
    SEP,
    PAD,
    CLS,
    MASK,
    EOT,
    ROLES,
};

// In a folder NAME_token names the token's text and NAME_token_id its id.
static const struct {
    const char *name;
    const char *key; // tokenizer.ggml.*; NULL: a GGUF has none
} roles[ROLES] = {
    [BOS] = {"bos", "bos_token_id"},     [EOS] = {"eos", "eos_token_id"},
    [UNK] = {"unk", "unknown_token_id"}, [SEP] = {"sep", "seperator_token_id"}, // spelled so
    [PAD] = {"pad", "padding_token_id"}, [CLS] = {"cls", NULL},
    [MASK] = {"mask", "mask_token_id"},  [EOT] = {"eot", "eot_token_id"},
};

static const struct file {
    const char *name;
    size_t offset;
} files[] = {
    {"tokenizer_config.json", offsetof(struct nb_hf_texts, tokenizer_config)},
    {"special_tokens_map.json", offsetof(struct nb_hf_texts, special_tokens_map)},
    {"config.json", offsetof(struct nb_hf_texts, config)},
    {"generation_config.json", offsetof(struct nb_hf_texts, generation_config)},
};
enum { FILES = sizeof(files) / sizeof(*files) };

struct specials {
    struct nb_str token[ROLES]; // texts, or NULL
    int64_t id[ROLES];          // or -1
    bool add_bos, add_eos, add_sep, has_add_sep;
};

static bool same(struct nb_str a, struct nb_str b)
{
    return a.data && b.data && a.len == b.len && memcmp(a.data, b.data, a.len) == 0;
}

// ---- The files

// "bos_token": "<s>", or {"content": "<s>", ...}.
static struct nb_str token_of(const json_t *file, const char *role)
{
    char key[32];

    snprintf(key, sizeof(key), "%s_token", role);
    struct nb_str text = nb_hf_str(file, key);
    return text.data ? text : nb_hf_str(json_object_get(file, key), "content");
}

static int64_t id_of(const json_t *file, const char *role)
{
    char key[32];

    snprintf(key, sizeof(key), "%s_token_id", role);
    return nb_hf_id(file, key);
}

static void read_file(struct specials *s, const json_t *file)
{
    for (size_t i = 0; i < ROLES; i++) {
        if (!s->token[i].data)
            s->token[i] = token_of(file, roles[i].name);
        if (s->id[i] < 0)
            s->id[i] = id_of(file, roles[i].name);
    }
}

// An encoder's folder may call the token before a text CLS alone, and the one after it SEP.
static void fill(struct specials *s, enum role role, enum role other)
{
    if (!s->token[role].data)
        s->token[role] = s->token[other];
}

// ---- The post-processor

static struct nb_str special_at(const json_t *template, size_t i)
{
    return nb_hf_str(json_object_get(json_array_get(template, i), "SpecialToken"), "id");
}

static bool is_sequence(const json_t *template, size_t i, const char *id)
{
    return nb_hf_is(nb_hf_str(json_object_get(json_array_get(template, i), "Sequence"), "id"), id);
}

static void read_single(struct specials *s, const json_t *single)
{
    size_t n = json_array_size(single);
    struct nb_str first = special_at(single, 0), last = special_at(single, n - 1);

    if (n < 2)
        return;
    if (first.data) {
        s->token[BOS] = s->token[BOS].data ? s->token[BOS] : first;
        s->add_bos = same(first, s->token[BOS]) || same(first, s->token[CLS]);
    }
    if (last.data) {
        // The model's end of text is what goes behind a text; its end of turn is another token.
        if (s->token[EOS].data && !same(last, s->token[EOS]))
            s->token[EOT] = s->token[EOS];
        s->token[EOS] = last;
        s->add_eos = true;
    }
}

// A pair without its ends is A, one or two separators, B.
static void read_pair(struct specials *s, const json_t *single, const json_t *pair)
{
    size_t n = json_array_size(pair), from = 0;
    struct nb_str first = special_at(single, 0);
    struct nb_str last = special_at(single, json_array_size(single) - 1);

    if (n && first.data && same(first, special_at(pair, 0)))
        from = 1;
    if (n > from && last.data && same(last, special_at(pair, n - 1)))
        n--;
    if (n < from + 3 || !is_sequence(pair, from, "A") || !is_sequence(pair, n - 1, "B"))
        return;
    struct nb_str one = special_at(pair, from + 1), two = special_at(pair, from + 2);
    bool is_one = same(one, s->token[SEP]) || same(one, s->token[EOS]);
    bool is_two = same(two, s->token[SEP]) || same(two, s->token[EOS]);
    s->has_add_sep = true;
    s->add_sep = (is_one && !last.data) || (n == from + 4 && is_two);
}

// ["[CLS]", 101]
static void read_end(struct specials *s, enum role role, const json_t *end)
{
    const json_t *text = json_array_get(end, 0);

    if (!s->token[role].data)
        s->token[role] = (struct nb_str){json_string_value(text), json_string_length(text)};
}

static void read_processor(struct specials *s, const json_t *processor)
{
    struct nb_str type = nb_hf_str(processor, "type");

    if (nb_hf_is(type, "TemplateProcessing")) {
        const json_t *single = json_object_get(processor, "single");
        read_single(s, single);
        read_pair(s, single, json_object_get(processor, "pair"));
    } else if (nb_hf_is(type, "BertProcessing") || nb_hf_is(type, "RobertaProcessing")) {
        s->add_bos = s->add_eos = true;
        s->add_sep = s->has_add_sep = nb_hf_is(type, "RobertaProcessing");
        read_end(s, BOS, json_object_get(processor, "cls"));
        read_end(s, EOS, json_object_get(processor, "sep"));
    }
}

static void read_post_processor(struct specials *s, const json_t *post)
{
    const json_t *list = json_object_get(post, "processors"), *processor;
    size_t i;

    fill(s, BOS, CLS);
    fill(s, EOS, SEP);
    if (!list)
        read_processor(s, post);
    json_array_foreach(list, i, processor)
        read_processor(s, processor);
}

// ---- Putting

// The id of an added token with that text, or what the files say, or -1.
static int64_t role_id(const struct nb_hf_tokens *t, const struct specials *s, enum role role)
{
    const json_t *added = json_object_get(t->root, "added_tokens"), *token;
    int64_t id = s->id[role];
    size_t i;

    json_array_foreach(added, i, token)
        if (same(nb_hf_str(token, "content"), s->token[role]))
            id = nb_hf_id(token, "id");
    return id < t->n ? id : -1;
}

static int put_bool(const struct nb_hf_tokens *t, const char *key, bool value)
{
    return nb_gguf_kvs_put(t->kvs, key, NB_GGUF_BOOL, &value);
}

static int put_ids(const struct nb_hf_tokens *t, const struct specials *s)
{
    for (size_t i = 0; i < ROLES; i++) {
        char key[64];
        int64_t id = role_id(t, s, (enum role)i);
        if (!roles[i].key || id < 0)
            continue;
        snprintf(key, sizeof(key), "tokenizer.ggml.%s", roles[i].key);
        int rc = nb_gguf_kvs_put(t->kvs, key, NB_GGUF_U32, &(uint32_t){(uint32_t)id});
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int put_policy(const struct nb_hf_tokens *t, const struct specials *s)
{
    int rc = put_bool(t, "tokenizer.ggml.add_bos_token", s->add_bos);

    if (rc == 0)
        rc = put_bool(t, "tokenizer.ggml.add_eos_token", s->add_eos);
    if (rc == 0 && s->has_add_sep)
        rc = put_bool(t, "tokenizer.ggml.add_sep_token", s->add_sep);
    if (rc == 0 && t->pipeline->sentencepiece)
        rc = put_bool(t, "tokenizer.ggml.add_space_prefix", t->pipeline->space_prefix);
    return rc;
}

static int put_normalizer(const struct nb_hf_tokens *t)
{
    const json_t *normalizer = json_object_get(t->root, "normalizer");
    const json_t *strip = json_object_get(normalizer, "strip_accents");

    if (!nb_hf_is(nb_hf_str(normalizer, "type"), "BertNormalizer"))
        return 0;
    int rc = put_bool(t, "tokenizer.ggml.normalizer.lowercase",
                      nb_hf_bool(normalizer, "lowercase", true));
    if (rc == 0 && json_is_boolean(strip))
        rc = put_bool(t, "tokenizer.ggml.normalizer.strip_accents", json_is_true(strip));
    return rc;
}

// One template, or a list of them with names.
static int put_template(const struct nb_hf_tokens *t, const json_t *config)
{
    const json_t *value = json_object_get(config, "chat_template"), *item;
    struct nb_str text = nb_hf_str(config, "chat_template");
    size_t i;

    json_array_foreach(value, i, item)
        if (nb_hf_is(nb_hf_str(item, "name"), "default"))
            text = nb_hf_str(item, "template");
    if (!text.data)
        text = t->texts->chat_template;
    return text.data ? nb_gguf_kvs_put_str(t->kvs, "tokenizer.chat_template", text) : 0;
}

static int put_found(const struct nb_hf_tokens *t, const struct specials *s, const json_t *config)
{
    int rc = put_ids(t, s);

    if (rc == 0)
        rc = put_policy(t, s);
    if (rc == 0)
        rc = put_template(t, config);
    if (rc == 0)
        rc = put_normalizer(t);
    return rc < 0 ? NB_HF_FAIL(t, rc, "no memory for the tokenizer's keys") : 0;
}

static int put_all(const struct nb_hf_tokens *t, struct specials *s, json_t *const *file)
{
    for (size_t i = 0; i < FILES; i++) {
        read_file(s, file[i]);
        // A model of text inside another one.
        read_file(s, json_object_get(file[i], "text_config"));
    }
    // Some configurations ask for a token that they do not name.
    s->add_bos = nb_hf_bool(file[0], "add_bos_token", false) && role_id(t, s, BOS) >= 0;
    s->add_eos = nb_hf_bool(file[0], "add_eos_token", false) && role_id(t, s, EOS) >= 0;
    if (!s->token[UNK].data)
        s->token[UNK] = nb_hf_str(t->model, "unk_token");
    read_post_processor(s, json_object_get(t->root, "post_processor"));
    // WordPiece ends a text with its separator.
    if (strcmp(t->pipeline->type, "WordPiece") == 0 && role_id(t, s, SEP) < 0)
        s->id[SEP] = role_id(t, s, EOS);
    if ((s->add_bos && role_id(t, s, BOS) < 0) || (s->add_eos && role_id(t, s, EOS) < 0))
        return NB_HF_FAIL(t, -EINVAL,
                          "tokenizer.json: its post_processor puts a token before or behind a text "
                          "that added_tokens has not");
    return put_found(t, s, file[0]);
}

int nb_hf_put_specials(struct nb_hf_tokens *t)
{
    struct specials s = {.add_bos = false};
    json_t *file[FILES] = {NULL};
    int rc = 0;

    for (size_t i = 0; i < ROLES; i++)
        s.id[i] = -1;
    for (size_t i = 0; rc == 0 && i < FILES; i++) {
        struct nb_str text = *(const struct nb_str *)((const char *)t->texts + files[i].offset);
        if (text.data)
            rc = nb_hf_json(text, files[i].name, &file[i], t->error);
    }
    if (rc == 0)
        rc = put_all(t, &s, file);
    for (size_t i = 0; i < FILES; i++)
        json_decref(file[i]);
    return rc;
}
