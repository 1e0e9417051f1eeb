// tokenizer.json and what stands beside it, of a GGUF's keys. What the result would not be read
// back as is refused. See write.h.
#include "tensor/hf/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/hf/modules.h"
#include "tensor/hf/tokenizer_private.h"
#include "tensor/hf/write_private.h"

#define FAIL(code, ...) nb_fail(ret_error, code, __VA_ARGS__)
#define KEY(name)       "tokenizer.ggml." name
#define MARK            "\xe2\x96\x81"
#define JOINED_MAX      256

struct saying {
    const struct nb_gguf *g;
    const struct nb_hf_pipeline *pipeline;
    uint64_t n;    // tokens
    json_t *vocab; // token to id
    bool wordpiece;
};

static struct nb_str token(const struct saying *s, uint64_t id)
{
    struct nb_str text = {"", 0};
    (void)nb_gguf_array_str(s->g, KEY("tokens"), id, &text);
    return text;
}

static int64_t type_of(const struct saying *s, uint64_t id)
{
    int64_t type = NB_HF_NORMAL;
    (void)nb_gguf_array_i64(s->g, KEY("token_type"), id, &type);
    return type;
}

static bool flag(const struct saying *s, const char *key, bool absent)
{
    (void)nb_gguf_bool(s->g, key, &absent);
    return absent;
}

static bool id_of(const struct saying *s, const char *key, uint64_t *ret)
{
    return nb_gguf_u64(s->g, key, ret) == 0 && *ret < s->n;
}

static bool is_added(int64_t type)
{
    return type == NB_HF_CONTROL || type == NB_HF_USER_DEFINED;
}

// ---- The vocabulary

// WordPiece marks what goes on with a word, a GGUF what begins one.
static json_t *spelled(const struct saying *s, uint64_t id, char room[NB_HF_TOKEN_BYTES_MAX])
{
    const struct nb_str t = token(s, id);
    if (!s->wordpiece || is_added(type_of(s, id)))
        return json_stringn(t.data, t.len);
    if (t.len >= 3 && !memcmp(t.data, MARK, 3))
        return json_stringn(t.data + 3, t.len - 3);
    const int n = snprintf(room, NB_HF_TOKEN_BYTES_MAX, "##%.*s", (int)t.len, t.data);
    return json_stringn(room, (size_t)n);
}

static int make_vocab(struct saying *s, json_t *added, struct nb_error *ret_error)
{
    char room[NB_HF_TOKEN_BYTES_MAX];
    for (uint64_t id = 0; id < s->n; id++) {
        const int64_t type = type_of(s, id);
        json_t *text = type == NB_HF_UNUSED ? NULL : spelled(s, id, room);
        if (type == NB_HF_UNUSED)
            continue;
        if (!text || token(s, id).len + 3 > sizeof(room))
            return FAIL(-ENOTSUP, "token %llu is no text of UTF-8, which a tokenizer.json is",
                        (unsigned long long)id);
        if (is_added(type))
            json_array_append_new(added, json_pack("{s:I, s:O, s:b, s:b, s:b, s:b, s:b}", "id",
                                                   (json_int_t)id, "content", text, "single_word",
                                                   0, "lstrip", 0, "rstrip", 0, "normalized", 0,
                                                   "special", type == NB_HF_CONTROL));
        if (type != NB_HF_USER_DEFINED)
            json_object_setn_new(s->vocab, json_string_value(text), json_string_length(text),
                                 json_integer((json_int_t)id));
        json_decref(text);
    }
    return 0;
}

// ---- Merges

static json_t *copy_merges(const struct saying *s)
{
    enum nb_gguf_type type;
    uint64_t n = 0;
    struct nb_str merge = {"", 0};
    json_t *merges = json_array();
    (void)nb_gguf_array(s->g, KEY("merges"), &type, &n);
    for (uint64_t i = 0; i < n; i++)
        if (nb_gguf_array_str(s->g, KEY("merges"), i, &merge) == 0)
            json_array_append_new(merges, json_stringn(merge.data, merge.len));
    return merges;
}

struct scored {
    uint64_t id;
    double score;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

// Each way to join a token of two others.
static void add_merges(const struct saying *s, struct nb_str t, json_t *merges)
{
    for (size_t i = 1; i < t.len && t.len <= JOINED_MAX; i++)
        if (((uint8_t)t.data[i] & 0xc0) != 0x80 && json_object_getn(s->vocab, t.data, i) &&
            json_object_getn(s->vocab, t.data + i, t.len - i))
            json_array_append_new(merges, json_pack("[s%, s%]", t.data, i, t.data + i, t.len - i));
}

// SentencePiece joins what has the best score: as merges, all ways to make a token, the best first.
static json_t *merges_of_scores(const struct saying *s)
{
    struct scored *list = calloc(s->n, sizeof(*list));
    json_t *merges = json_array();
    uint64_t n = 0;
    for (uint64_t id = 0; list && id < s->n; id++)
        if (type_of(s, id) == NB_HF_NORMAL) {
            list[n].id = id;
            (void)nb_gguf_array_f64(s->g, KEY("scores"), id, &list[n++].score);
        }
    if (list)
        qsort(list, n, sizeof(*list), by_score);
    for (uint64_t i = 0; i < n; i++)
        add_merges(s, token(s, list[i].id), merges);
    free(list);
    return merges;
}

static json_t *make_model(const struct saying *s)
{
    uint64_t unknown;
    json_t *unk = json_null();
    if (id_of(s, KEY("unknown_token_id"), &unknown))
        unk = json_stringn(token(s, unknown).data, token(s, unknown).len);
    if (s->wordpiece)
        return json_pack("{s:s, s:o, s:s, s:i, s:O}", "type", "WordPiece", "unk_token", unk,
                         "continuing_subword_prefix", "##", "max_input_chars_per_word", 100,
                         "vocab", s->vocab);
    return json_pack("{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:O, s:o}", "type", "BPE", "dropout",
                     "unk_token", unk, "continuing_subword_prefix", "end_of_word_suffix",
                     "fuse_unk", s->pipeline->sentencepiece, "byte_fallback",
                     s->pipeline->byte_fallback, "ignore_merges", s->pipeline->ignore_merges,
                     "vocab", s->vocab, "merges",
                     s->pipeline->sentencepiece ? merges_of_scores(s) : copy_merges(s));
}

// ---- Around the model

static json_t *make_decoder(const struct saying *s)
{
    if (s->wordpiece)
        return json_pack("{s:s, s:s, s:b}", "type", "WordPiece", "prefix", "##", "cleanup", 1);
    if (!s->pipeline->sentencepiece)
        return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 1,
                         "trim_offsets", 1, "use_regex", 1);
    json_t *list =
        json_pack("[{s:s, s:{s:s}, s:s}, {s:s}, {s:s}]", "type", "Replace", "pattern", "String",
                  MARK, "content", " ", "type", "ByteFallback", "type", "Fuse");
    if (s->pipeline->space_prefix)
        json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content",
                                              " ", "start", 1, "stop", 0));
    return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", list);
}

static void add_special(const struct saying *s, json_t *single, json_t *specials, uint64_t id)
{
    const struct nb_str t = token(s, id);
    json_t *name = json_stringn(t.data, t.len);
    json_array_append_new(single,
                          json_pack("{s:{s:O, s:i}}", "SpecialToken", "id", name, "type_id", 0));
    json_object_setn_new(
        specials, t.data, t.len,
        json_pack("{s:O, s:[I], s:[O]}", "id", name, "ids", (json_int_t)id, "tokens", name));
    json_decref(name);
}

// What goes before and behind a text.
static json_t *make_processor(const struct saying *s)
{
    uint64_t first, last;
    const bool bos =
        flag(s, KEY("add_bos_token"), s->wordpiece || s->pipeline->sentencepiece) &&
        (id_of(s, KEY("bos_token_id"), &first) || id_of(s, KEY("cls_token_id"), &first));
    const bool eos =
        s->wordpiece ? id_of(s, KEY("seperator_token_id"), &last)
                     : flag(s, KEY("add_eos_token"), false) && id_of(s, KEY("eos_token_id"), &last);
    if (!bos && !eos)
        return json_null();
    json_t *single = json_array(), *specials = json_object();
    if (bos)
        add_special(s, single, specials, first);
    json_array_append_new(single, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "A", "type_id", 0));
    if (eos)
        add_special(s, single, specials, last);
    json_t *pair = json_deep_copy(single);
    json_array_append_new(pair, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "B", "type_id", 1));
    if (s->wordpiece && eos)
        add_special(s, pair, specials, last);
    return json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single", single, "pair",
                     pair, "special_tokens", specials);
}

static int make_normalizers(const struct saying *s, json_t **ret_normalizer, json_t **ret_pre)
{
    bool strip;
    int rc = nb_hf_pipeline_json(s->pipeline, ret_normalizer, ret_pre);
    if (rc < 0 || !s->wordpiece)
        return rc;
    json_t *n = *ret_normalizer;
    json_object_set_new(n, "lowercase", json_boolean(flag(s, KEY("normalizer.lowercase"), true)));
    json_object_set_new(n, "strip_accents",
                        nb_gguf_bool(s->g, KEY("normalizer.strip_accents"), &strip) == 0
                            ? json_boolean(strip)
                            : json_null());
    return 0;
}

static int make_tokenizer(struct saying *s, json_t **ret, struct nb_error *ret_error)
{
    json_t *added = json_array(), *normalizer = NULL, *pre = NULL;
    s->vocab = json_object();
    int rc = make_vocab(s, added, ret_error);
    if (rc == 0 && make_normalizers(s, &normalizer, &pre) < 0)
        rc = FAIL(-ENOMEM, "no memory for tokenizer.json");
    if (rc == 0)
        *ret = json_pack("{s:s, s:n, s:n, s:O, s:O, s:O, s:o, s:o, s:o}", "version", "1.0",
                         "truncation", "padding", "added_tokens", added, "normalizer", normalizer,
                         "pre_tokenizer", pre, "post_processor", make_processor(s), "decoder",
                         make_decoder(s), "model", make_model(s));
    json_decref(added);
    json_decref(normalizer);
    json_decref(pre);
    json_decref(s->vocab);
    return rc < 0 || *ret ? rc : FAIL(-ENOTSUP, "the model's tokens are no texts of UTF-8");
}

static json_t *make_settings(const struct saying *s)
{
    static const char *const roles[][2] = {
        {"bos_token", "bos_token_id"},     {"eos_token", "eos_token_id"},
        {"unk_token", "unknown_token_id"}, {"sep_token", "seperator_token_id"},
        {"pad_token", "padding_token_id"}, {"mask_token", "mask_token_id"},
        {"cls_token", "cls_token_id"},
    };
    char key[64];
    uint64_t id;
    struct nb_str text;
    json_t *root = json_pack("{s:s}", "tokenizer_class",
                             s->wordpiece ? "BertTokenizer" : "PreTrainedTokenizerFast");
    for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++) {
        snprintf(key, sizeof(key), "tokenizer.ggml.%s", roles[i][1]);
        if (!id_of(s, key, &id))
            continue;
        text = token(s, id);
        json_object_set_new(root, roles[i][0], json_stringn(text.data, text.len));
    }
    json_object_set_new(root, "add_bos_token", json_boolean(flag(s, KEY("add_bos_token"), false)));
    json_object_set_new(root, "add_eos_token", json_boolean(flag(s, KEY("add_eos_token"), false)));
    if (nb_gguf_str(s->g, "tokenizer.chat_template", &text) == 0)
        json_object_set_new(root, "chat_template", json_stringn(text.data, text.len));
    return root;
}

// ---- An encoder's pooling

static int write_modules(struct nb_hf_writer *w, const char *architecture,
                         struct nb_error *ret_error)
{
    static const char *const modes[] = {NULL, "mean", "cls", "lasttoken"};
    char key[128];
    uint64_t pooling = 0;
    bool normalize = false;
    double width = 0;
    snprintf(key, sizeof(key), "%s.pooling_type", architecture);
    if (nb_gguf_u64(w->s->metadata, key, &pooling) < 0 || pooling < 1 || pooling > 3)
        return 0;
    snprintf(key, sizeof(key), "%s.embedding_length", architecture);
    (void)nb_gguf_f64(w->s->metadata, key, &width);
    (void)nb_gguf_bool(w->s->metadata, "nibble.embedding.normalize", &normalize);
    json_t *list =
        json_pack("[{s:i, s:s, s:s, s:s}, {s:i, s:s, s:s, s:s}]", "idx", 0, "name", "0", "path", "",
                  "type", "sentence_transformers.models.Transformer", "idx", 1, "name", "1", "path",
                  "1_Pooling", "type", "sentence_transformers.models.Pooling");
    if (normalize)
        json_array_append_new(list, json_pack("{s:i, s:s, s:s, s:s}", "idx", 2, "name", "2", "path",
                                              "2_Normalize", "type",
                                              "sentence_transformers.models.Normalize"));
    int rc = nb_hf_write_json(w, "modules.json", list, ret_error);
    json_t *how =
        json_pack("{s:I, s:b, s:b, s:b, s:b}", "word_embedding_dimension", (json_int_t)width,
                  "pooling_mode_cls_token", pooling == 2, "pooling_mode_mean_tokens", pooling == 1,
                  "pooling_mode_max_tokens", 0, "pooling_mode_mean_sqrt_len_tokens", 0);
    if (pooling == 3)
        json_object_set_new(how, "pooling_mode", json_string(modes[3]));
    if (rc < 0)
        json_decref(how);
    return rc < 0 ? rc : nb_hf_write_json(w, "1_Pooling/config.json", how, ret_error);
}

// ---- The files

static struct nb_str text_of(const struct nb_hf_writer *w, const char *name)
{
    for (uint32_t i = 0; i < w->n_texts; i++)
        if (!strcmp(w->texts[i].name, name))
            return (struct nb_str){w->texts[i].text, w->texts[i].len};
    return (struct nb_str){NULL, 0};
}

static int check(const struct nb_hf_writer *w, uint64_t n, struct nb_error *ret_error)
{
    const struct nb_hf_texts texts = {.tokenizer = text_of(w, "tokenizer.json"),
                                      .tokenizer_config = text_of(w, "tokenizer_config.json"),
                                      .config = text_of(w, "config.json")};
    struct nb_gguf_kvs kvs = {0};
    int rc = nb_hf_tokenizer(&texts, (uint32_t)n, &kvs, ret_error);
    if (rc == 0)
        rc = nb_hf_write_check(w, &kvs, "tokenizer", ret_error);
    nb_gguf_kvs_finish(&kvs);
    return rc;
}

int nb_hf_write_tokenizer(struct nb_hf_writer *w, struct nb_error *ret_error)
{
    const struct nb_gguf *g = w->s->metadata;
    struct saying s = {.g = g};
    struct nb_str model = {"", 0}, pre = {"default", 7};
    enum nb_gguf_type type;
    char a[NB_HF_SHOWN_MAX], b[NB_HF_SHOWN_MAX];
    bool prefix = true;
    json_t *root = NULL;
    (void)nb_gguf_str(g, KEY("model"), &model);
    (void)nb_gguf_str(g, KEY("pre"), &pre);
    (void)nb_gguf_bool(g, KEY("add_space_prefix"), &prefix);
    if (nb_gguf_array(g, KEY("tokens"), &type, &s.n) < 0 || s.n > 1u << 20)
        return FAIL(-EINVAL, "the model has no tokens, or more than a million");
    s.pipeline = nb_hf_pipeline_of(model, pre, prefix);
    s.wordpiece = nb_hf_is(model, "bert");
    if (!s.pipeline)
        return FAIL(
            -ENOTSUP,
            "the model's tokenizer is %s with the pre-tokenizer %s, which no tokenizer.json "
            "is written for",
            nb_hf_shown(model, a), nb_hf_shown(pre, b));
    int rc = make_tokenizer(&s, &root, ret_error);
    if (rc == 0)
        rc = nb_hf_write_json(w, "tokenizer.json", root, ret_error);
    if (rc == 0)
        rc = nb_hf_write_json(w, "tokenizer_config.json", make_settings(&s), ret_error);
    if (rc == 0)
        rc = check(w, s.n, ret_error);
    return rc == 0 ? write_modules(w, w->family->architecture, ret_error) : rc;
}
