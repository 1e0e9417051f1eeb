// The pipelines that we know, as data: the steps of a tokenizer.json in words, compared whole. So a
// pattern that differs in one character is another pipeline, and is refused.
#include "tensor/hf/pipeline.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tensor/fail.h"

#define TEXT_MAX 4096
#define FIELDS   3
#define CUT      "Cut "

// ---- Steps in words

// The fields of a step that decide about ids, and their values where a file does not say.
static const struct component {
    const char *type;
    struct {
        const char *name, *absent;
    } fields[FIELDS];
} components[] = {
    {"NFC", {{NULL, NULL}}},
    {"Prepend", {{"prepend", "-"}}},
    {"Replace", {{"pattern", "-"}, {"content", "-"}}},
    {"BertNormalizer", {{"clean_text", "-"}, {"handle_chinese_chars", "-"}}},
    {"BertPreTokenizer", {{NULL, NULL}}},
    {"ByteLevel", {{"add_prefix_space", "yes"}, {"use_regex", "yes"}}},
    {"Digits", {{"individual_digits", "-"}}},
    {"Metaspace", {{"replacement", "-"}, {"prepend_scheme", "always"}, {"split", "yes"}}},
    {"Split", {{"behavior", "-"}, {"invert", "-"}, {"pattern", "-"}}},
};

// Cut to TEXT_MAX; what is cut is no pipeline of ours.
struct words {
    char text[TEXT_MAX];
    size_t len;
};

static void add(struct words *w, struct nb_str s)
{
    size_t n = s.len < TEXT_MAX - 1 - w->len ? s.len : TEXT_MAX - 1 - w->len;

    if (n)
        memcpy(w->text + w->len, s.data, n);
    w->len += n;
    w->text[w->len] = '\0';
}

static void add_text(struct words *w, const char *text)
{
    add(w, (struct nb_str){text, strlen(text)});
}

static void add_value(struct words *w, const json_t *value, const char *absent)
{
    const json_t *pattern = json_object_get(value, "Regex");

    if (json_is_object(value) && !pattern)
        pattern = json_object_get(value, "String");
    if (pattern)
        value = pattern;
    if (json_is_string(value))
        add(w, (struct nb_str){json_string_value(value), json_string_length(value)});
    else if (json_is_boolean(value))
        add_text(w, json_is_true(value) ? "yes" : "no");
    else
        add_text(w, absent);
}

static const struct component *component_of(struct nb_str type)
{
    for (size_t i = 0; i < sizeof(components) / sizeof(*components); i++)
        if (nb_hf_is(type, components[i].type))
            return &components[i];
    return NULL;
}

// Each match of the pattern is a piece, and so is each stretch between two matches. There are two
// spellings of that.
static bool is_cut(const json_t *step)
{
    struct nb_str behavior = nb_hf_str(step, "behavior");

    return nb_hf_is(nb_hf_str(step, "type"), "Split") &&
           (nb_hf_is(behavior, "Isolated") ||
            (nb_hf_is(behavior, "Removed") && nb_hf_bool(step, "invert", false)));
}

static void add_step(struct words *w, const json_t *step)
{
    struct nb_str type = nb_hf_str(step, "type");
    const struct component *c = component_of(type);

    add_text(w, w->len ? "; " : "");
    if (is_cut(step)) {
        add_text(w, CUT);
        add_value(w, json_object_get(step, "pattern"), "-");
        return;
    }
    if (type.data)
        add(w, type);
    else
        add_text(w, "a step without a type");
    for (size_t i = 0; c && i < FIELDS && c->fields[i].name; i++) {
        add_text(w, " ");
        add_value(w, json_object_get(step, c->fields[i].name), c->fields[i].absent);
    }
}

static void add_steps(struct words *w, const json_t *steps, const char *list)
{
    const json_t *items = json_object_get(steps, list), *item;
    size_t i;

    if (json_is_object(steps) && !nb_hf_is(nb_hf_str(steps, "type"), "Sequence"))
        add_step(w, steps);
    json_array_foreach(items, i, item)
        add_step(w, item);
}

// ---- The rows

#define BYTES        "; ByteLevel no no"
#define WORDS        "ByteLevel no yes" // cut by GPT-2's pattern, which it has inside
#define CONTRACTION  "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define OTHERS       "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
#define LINES        "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define BY_CLASS(n)  CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" n OTHERS LINES
#define BEFORE       "[^\\r\\n\\p{L}\\p{N}]?"
#define UPPER        "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER        "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define BY_CASE(end) BEFORE UPPER "*" LOWER "+" end "|" BEFORE UPPER "+" LOWER "*" end "|"
#define PATHS        "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*"
#define MARK         "\xe2\x96\x81" // U+2581, SentencePiece's space
#define MARKED       "Replace   " MARK

#define GPT2(pre_, steps_)                                                                         \
    {                                                                                              \
        .type = "BPE", .model = "gpt2", .pre = pre_, .steps = steps_                               \
    }
#define GPT2_WHOLE(pre_, steps_)                                                                   \
    {                                                                                              \
        .type = "BPE", .model = "gpt2", .pre = pre_, .steps = steps_, .ignore_merges = true        \
    }
#define LLAMA(prefix_, steps_)                                                                     \
    {                                                                                              \
        .type = "BPE", .model = "llama", .pre = "default", .steps = steps_, .byte_fallback = true, \
        .sentencepiece = true, .space_prefix = prefix_                                             \
    }

// Where several names of a GGUF mean the same pipeline, one of them.
static const struct nb_hf_pipeline rows[] = {
    GPT2("gpt-2", WORDS),
    GPT2("smollm", "Digits yes; " WORDS),
    GPT2("qwen2", CUT BY_CLASS("\\p{N}") BYTES),
    GPT2("dbrx", CUT BY_CLASS("\\p{N}{1,3}") BYTES),
    GPT2_WHOLE("llama-bpe", CUT BY_CLASS("\\p{N}{1,3}") BYTES),
    GPT2("qwen35", CUT CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}"
                                   "| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" LINES BYTES),
    GPT2("gpt-4o", CUT BY_CASE(CONTRACTION "?") "\\p{N}{1,3}" PATHS LINES BYTES),
    GPT2_WHOLE("tekken", CUT BY_CASE("") "\\p{N}" PATHS LINES BYTES),
    LLAMA(true, "Prepend " MARK "; " MARKED),
    LLAMA(true, "Metaspace " MARK " always no"),
    LLAMA(true, "Metaspace " MARK " first no"),
    LLAMA(false, "Metaspace " MARK " never no"),
    LLAMA(false, MARKED),
    LLAMA(false, MARKED "; Split MergedWithPrevious no  "),
    {.type = "WordPiece",
     .model = "bert",
     .pre = "bert-bge",
     .steps = "BertNormalizer yes yes; BertPreTokenizer"},
};

int nb_hf_pipeline_find(const json_t *root, const struct nb_hf_pipeline **ret,
                        struct nb_error *ret_error)
{
    const json_t *model = json_object_get(root, "model");
    struct nb_str type = nb_hf_str(model, "type");
    bool ignore_merges = nb_hf_bool(model, "ignore_merges", false);
    bool byte_fallback = nb_hf_bool(model, "byte_fallback", false);
    struct words w = {.len = 0};
    char shown[NB_HF_SHOWN_MAX];

    add_steps(&w, json_object_get(root, "normalizer"), "normalizers");
    add_steps(&w, json_object_get(root, "pre_tokenizer"), "pretokenizers");
    // No GGUF says that a text is composed first. It changes no text that is composed already.
    const char *steps = strncmp(w.text, "NFC; ", 5) == 0 ? w.text + 5 : w.text;
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        const struct nb_hf_pipeline *p = &rows[i];
        if (strcmp(p->steps, steps) == 0 && nb_hf_is(type, p->type) &&
            p->ignore_merges == ignore_merges && p->byte_fallback == byte_fallback) {
            *ret = p;
            return 0;
        }
    }
    return nb_fail(
        ret_error, -ENOTSUP, "tokenizer.json: no GGUF has its pre-tokenizer: %s%s%s",
        w.len ? nb_hf_shown((struct nb_str){steps, strlen(steps)}, shown) : "of no steps",
        ignore_merges ? " with ignore_merges" : "", byte_fallback ? " with byte_fallback" : "");
}

// ---- Back to JSON

const struct nb_hf_pipeline *nb_hf_pipeline_of(struct nb_str model, struct nb_str pre,
                                               bool space_prefix)
{
    // Other names of a row.
    static const char *const same[][2] = {{"llama3", "llama-bpe"},    {"llama-v3", "llama-bpe"},
                                          {"falcon3", "llama-bpe"},   {"deepseek-r1-qwen", "qwen2"},
                                          {"jina-v2-en", "bert-bge"}, {"megrez", "qwen2"}};
    for (size_t i = 0; i < sizeof(same) / sizeof(*same); i++)
        if (nb_hf_is(pre, same[i][0]))
            pre = (struct nb_str){same[i][1], strlen(same[i][1])};
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        const struct nb_hf_pipeline *p = &rows[i];
        const bool other = p->sentencepiece
                               ? p->space_prefix != space_prefix
                               : strcmp(p->model, "bert") != 0 && !nb_hf_is(pre, p->pre);
        if (nb_hf_is(model, p->model) && !other)
            return p;
    }
    return NULL;
}

static json_t *json_of_word(struct nb_str word, const char *field)
{
    if (nb_hf_is(word, "yes") || nb_hf_is(word, "no"))
        return json_boolean(word.data[0] == 'y');
    if (!strcmp(field, "pattern"))
        return json_pack("{s:s%}", "String", word.data, word.len);
    return json_stringn(word.data, word.len);
}

// A step of `len` bytes of words. A field's words are one character, "yes", "no" or a name.
static json_t *json_of_step(const char *text, size_t len)
{
    const size_t cut = strlen(CUT);
    if (len > cut && !memcmp(text, CUT, cut))
        return json_pack("{s:s, s:{s:s%}, s:s, s:b}", "type", "Split", "pattern", "Regex",
                         text + cut, len - cut, "behavior", "Isolated", "invert", 0);
    const char *end = memchr(text, ' ', len), *at = end ? end : text + len;
    const struct component *c = component_of((struct nb_str){text, (size_t)(at - text)});
    if (!c)
        return NULL;
    json_t *step = json_pack("{s:s}", "type", c->type);
    for (size_t i = 0; i < FIELDS && c->fields[i].name && at < text + len; i++) {
        const char *word = at + 1, *stop = word;
        while (stop < text + len && (stop == word || *stop != ' '))
            stop++;
        json_object_set_new(
            step, c->fields[i].name,
            json_of_word((struct nb_str){word, (size_t)(stop - word)}, c->fields[i].name));
        at = stop;
    }
    return step;
}

// Which steps change a text before it is cut.
static bool is_normalizer(const json_t *step)
{
    static const char *const types[] = {"Prepend", "Replace", "BertNormalizer"};
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (nb_hf_is(nb_hf_str(step, "type"), types[i]))
            return true;
    return false;
}

static json_t *sequence_of(json_t *steps, const char *list)
{
    const size_t n = json_array_size(steps);
    json_t *whole = n == 1 ? json_incref(json_array_get(steps, 0))
                    : n    ? json_pack("{s:s, s:O}", "type", "Sequence", list, steps)
                           : json_null();
    json_decref(steps);
    return whole;
}

int nb_hf_pipeline_json(const struct nb_hf_pipeline *p, json_t **ret_normalizer,
                        json_t **ret_pre_tokenizer)
{
    json_t *normalizers = json_array(), *cutters = json_array();
    for (const char *at = p->steps, *end; *at; at = *end ? end + 2 : end) {
        end = strstr(at, "; ");
        end = end ? end : at + strlen(at);
        json_t *step = json_of_step(at, (size_t)(end - at));
        json_array_append_new(is_normalizer(step) ? normalizers : cutters, step);
    }
    *ret_normalizer = sequence_of(normalizers, "normalizers");
    *ret_pre_tokenizer = sequence_of(cutters, "pretokenizers");
    return *ret_normalizer && *ret_pre_tokenizer ? 0 : -ENOMEM;
}
