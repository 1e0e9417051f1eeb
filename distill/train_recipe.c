// See train_recipe.h: a table of numbers, and the few keys that are none.
#include "distill/train_recipe.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "distill/prune.h"
#include "quant/windows.h"

struct number {
    const char *key;
    size_t at; // of a double, or of a uint32_t
    double least, most, usual;
    bool whole;              // a uint32_t
    enum nb_train_kind only; // of students of this kind; NB_TRAIN_KINDS: of all
};

#define ALL NB_TRAIN_KINDS
#define REAL(key, least, most, usual, only)                                                        \
    {                                                                                              \
#key, offsetof(struct nb_train_recipe, key), least, most, usual, false, only               \
    }
#define WHOLE(key, least, most, usual)                                                             \
    {                                                                                              \
#key, offsetof(struct nb_train_recipe, key), least, most, usual, true, ALL                 \
    }

static const struct number numbers[] = {
    REAL(tokens, 0, 1e12, 1e6, ALL),
    WHOLE(length, NB_WINDOWS_LEAST, NB_WINDOWS_LENGTH, 256),
    WHOLE(batch, NB_WINDOWS_LEAST, 1 << 20, 0),
    WHOLE(held_out, 1, 4096, 32),
    REAL(rate, 0, 1, -1, ALL),
    REAL(warm, 0, 1, 0.05, ALL),
    REAL(decay, 0, 1, 0.01, ALL),
    REAL(clip, 0, 1e9, 1, ALL),
    REAL(temperature, 0.01, 100, 1, NB_TRAIN_LOGITS),
    REAL(mix, 0, 1, 0, NB_TRAIN_LOGITS),
    REAL(own, 0, 1, 0, NB_TRAIN_LOGITS),
    REAL(hard, 0, 1, 0.1, NB_TRAIN_LOGITS),
    REAL(hidden, 0, 1000, 0, ALL),
    REAL(attention, 0, 1000, 0, ALL),
    REAL(cosine, 0, 1000, 1, NB_TRAIN_VECTORS),
    REAL(relation, 0, 1000, 1, NB_TRAIN_VECTORS),
    WHOLE(seed, 0, UINT32_MAX, 1),
    WHOLE(states, 2, 16, 2),
    REAL(weights, 0, 1e12, 0, ALL),
    REAL(size, 0, 1e15, 0, ALL),
    REAL(vocabulary, 0, 1 << 24, 0, ALL),
    {"heads", offsetof(struct nb_train_recipe, cut[NB_CUT_HEADS]), 1, 1024, 0, true, ALL},
    {"feed_forward", offsetof(struct nb_train_recipe, cut[NB_CUT_FEED_FORWARD]), 1, 1 << 20, 0,
     true, ALL},
    {"width", offsetof(struct nb_train_recipe, cut[NB_CUT_WIDTH]), 1, 1 << 16, 0, true, ALL},
};

// What is usual where the recipe does not say it; a table above has what is no number of it then.
static const struct {
    uint32_t batch;
    double rate;
} usual[NB_TRAIN_KINDS] = {[NB_TRAIN_LOGITS] = {1024, 1e-3}, [NB_TRAIN_VECTORS] = {4096, 5e-4}};

// A key whose value is one of some words, kept as the word's number.
static const struct word {
    const char *key;
    size_t at; // of an enum
    const char *words[4];
} words[] = {
    {"schedule", offsetof(struct nb_train_recipe, schedule), {"cosine", "linear", "constant"}},
    {"start", offsetof(struct nb_train_recipe, start), {"teacher", "random"}},
    {"precision", offsetof(struct nb_train_recipe, precision), {"fp32", "bf16"}},
    {"moments", offsetof(struct nb_train_recipe, moments), {"fp32", "int8"}},
    {"layers_by", offsetof(struct nb_train_recipe, layers_by), {"influence", "evenly"}},
    {"cut_by", offsetof(struct nb_train_recipe, cut_by), {"gradient", "activation"}},
    {"scales", offsetof(struct nb_train_recipe, scales), {"learned", "spanned"}},
    {"activations", offsetof(struct nb_train_recipe, activations), {"block", "dynamic"}},
};

static const struct number adapter_numbers[] = {
    {"rank", offsetof(struct nb_train_recipe, adapter.rank), 1, 65536, 8, true, ALL},
    REAL(alpha, 1e-3, 1e6, 16, ALL),
};

static void set(struct nb_train_recipe *r, const struct number *n, double x)
{
    void *at = (char *)r + n->at;
    if (n->whole)
        *(uint32_t *)at = (uint32_t)x;
    else
        *(double *)at = x;
}

static int read_number(struct nb_train_recipe *r, const struct number *n, const json_t *value,
                       struct nb_error *e)
{
    const double x = json_number_value(value);
    if (!json_is_number(value) || !(x >= n->least && x <= n->most) || (n->whole && x != floor(x)))
        return nb_fail(e, -EINVAL, "the recipe's \"%s\" is a %snumber from %.15g to %.15g", n->key,
                       n->whole ? "whole " : "", n->least, n->most);
    set(r, n, x);
    if (n->only < NB_TRAIN_KINDS)
        r->only[n->only] = n->key;
    return 0;
}

// How many, or which of the teacher's.
static int read_layers(struct nb_train_recipe *r, const json_t *value, struct nb_error *e)
{
    const size_t n = json_is_array(value) ? json_array_size(value) : 0;
    json_int_t last = -1;
    bool good = json_is_array(value) ? n >= 1 && n <= NB_STUDENT_LAYERS
                                     : json_is_integer(value) && json_integer_value(value) >= 1 &&
                                           json_integer_value(value) <= NB_STUDENT_LAYERS;
    for (size_t i = 0; i < n && good; i++) {
        const json_t *layer = json_array_get(value, i);
        good = json_is_integer(layer) && json_integer_value(layer) > last &&
               json_integer_value(layer) < NB_STUDENT_LAYERS;
        last = json_integer_value(layer);
        r->from[i] = (uint32_t)last;
    }
    r->n_from = (uint32_t)n;
    r->layers = n ? (uint32_t)n : (uint32_t)json_integer_value(value);
    return good ? 0
                : nb_fail(e, -EINVAL,
                          "the recipe's \"layers\" is a number from 1 to %d, or a list "
                          "of the teacher's, ascending, from 0 on",
                          NB_STUDENT_LAYERS);
}

static int read_word(struct nb_train_recipe *r, const struct word *w, const json_t *value,
                     struct nb_error *e)
{
    const char *word = json_string_value(value);
    for (uint32_t i = 0; word && w->words[i]; i++)
        if (!strcmp(word, w->words[i])) {
            memcpy((char *)r + w->at, &i, sizeof(i));
            return 0;
        }
    return nb_fail(e, -EINVAL, "the recipe's \"%s\" is %s or %s%s%s", w->key, w->words[0],
                   w->words[1], w->words[2] ? " or " : "", w->words[2] ? w->words[2] : "");
}

static int read_roles(struct nb_adapter_choice *a, const json_t *value, struct nb_error *e)
{
    const size_t n = json_array_size(value);
    bool good = n >= 1 && n <= NB_ADAPTER_ROLES;
    for (size_t i = 0; i < n && good; i++) {
        const json_t *role = json_array_get(value, i);
        const size_t len = json_string_length(role);
        good = len >= 1 && len < NB_ADAPTER_ROLE;
        if (good)
            memcpy(a->roles[i], json_string_value(role), len + 1);
    }
    a->n_roles = (uint32_t)n;
    return good ? 0
                : nb_fail(e, -EINVAL,
                          "the recipe's \"matrices\" of an adapter is a list of 1 to %d names, as "
                          "[\"attn_q\", \"attn_v\"]",
                          NB_ADAPTER_ROLES);
}

static int read_adapter(struct nb_train_recipe *r, const json_t *value, struct nb_error *e)
{
    const size_t n = sizeof(adapter_numbers) / sizeof(adapter_numbers[0]);
    const char *key;
    json_t *of;
    int rc = json_is_object(value)
                 ? 0
                 : nb_fail(e, -EINVAL, "the recipe's \"adapter\" is an object, as {\"rank\": 8}");
    for (size_t i = 0; i < n; i++)
        set(r, &adapter_numbers[i], adapter_numbers[i].usual);
    json_object_foreach((json_t *)value, key, of) {
        size_t i = 0;
        while (i < n && strcmp(key, adapter_numbers[i].key) != 0)
            i++;
        rc = rc < 0                     ? rc
             : i < n                    ? read_number(r, &adapter_numbers[i], of, e)
             : !strcmp(key, "matrices") ? read_roles(&r->adapter, of, e)
                                        : nb_fail(e, -EINVAL,
                                                  "the recipe's \"adapter\" has a key \"%.60s\" "
                                                  "that no adapter knows",
                                                  key);
    }
    r->adapter.alpha = (float)r->alpha;
    return rc;
}

// An adapter is of a whole model as it is.
static int check_adapter(const struct nb_train_recipe *r, struct nb_error *e)
{
    if (r->adapter.rank &&
        (r->layers || nb_prune_measures(r) || r->vocabulary > 0 || r->start == NB_START_RANDOM))
        return nb_fail(e, -EINVAL,
                       "an adapter is trained beside a whole model as it is: leave out \"layers\", "
                       "what cuts it, and \"start\": \"random\"");
    if (r->adapter.rank && (r->qat || r->activations != NB_INPUT_BLOCK))
        return nb_fail(e, -EINVAL,
                       "an adapter is not rounded as it is trained: leave out \"qat\" and "
                       "\"activations\"");
    if (r->adapter.rank && strcmp(r->to, "F32") != 0 && strcmp(r->to, "F16") != 0)
        return nb_fail(e, -EINVAL, "an adapter is written as F32 or F16, not as %s", r->to);
    return 0;
}

static int read_device(struct nb_train_recipe *r, const json_t *value, struct nb_error *e)
{
    static const char kind[] = "vulkan";
    const char *name = json_string_value(value);
    const size_t n = json_string_length(value), before = sizeof(kind) - 1;
    if (name && n == 3 && !strcmp(name, "cpu")) {
        r->device[0] = '\0';
        return 0;
    }
    if (!name || n <= before || n > before + 4 || strncmp(name, kind, before) != 0 ||
        strspn(name + before, "0123456789") != n - before)
        return nb_fail(e, -EINVAL, "the recipe's \"device\" is cpu, or one as vulkan0");
    memcpy(r->device, name, n + 1);
    return 0;
}

// What is trained on the CPU alone.
static int check_device(const struct nb_train_recipe *r, struct nb_error *e)
{
    const struct {
        bool said;
        const char *what;
    } lacks[] = {{r->precision == NB_TRAIN_BF16, "\"precision\": \"bf16\""},
                 {r->adapter.rank > 0, "\"adapter\""},
                 {r->activations != NB_INPUT_BLOCK, "\"activations\": \"dynamic\""},
                 {r->attention > 0, "\"attention\""}};
    for (size_t i = 0; i < sizeof(lacks) / sizeof(lacks[0]) && r->device[0]; i++)
        if (lacks[i].said)
            return nb_fail(e, -EINVAL,
                           "the recipe's %s is trained on the CPU alone: leave it out, or "
                           "\"device\": \"%s\"",
                           lacks[i].what, r->device);
    return 0;
}

// What there is nothing to do for.
static int check_idle(const struct nb_train_recipe *r, const json_t *root, struct nb_error *e)
{
    const bool plain = !r->layers || r->n_from;
    const bool shaped = !plain || r->weights > 0 || r->size > 0;
    const struct {
        const char *key;
        bool idle;
        const char *without;
    } rows[] = {{"mix", r->hard >= 1, "a \"hard\" below 1"},
                {"temperature", r->hard >= 1, "a \"hard\" below 1"},
                {"scales", !r->qat, "\"qat\""},
                {"layers_by", !shaped, "a number of \"layers\", \"weights\" or \"size\""}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        if (rows[i].idle && json_object_get(root, rows[i].key))
            return nb_fail(e, -EINVAL, "the recipe's \"%s\" does nothing without %s: leave it out",
                           rows[i].key, rows[i].without);
    return 0;
}

static int read_flag(bool *ret, const char *key, const json_t *value, struct nb_error *e)
{
    *ret = json_is_true(value);
    return json_is_boolean(value)
               ? 0
               : nb_fail(e, -EINVAL, "the recipe's \"%s\" is true or false", key);
}

static int read_key(struct nb_train_recipe *r, const char *key, const json_t *value,
                    struct nb_error *e)
{
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (!strcmp(key, numbers[i].key))
            return read_number(r, &numbers[i], value, e);
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (!strcmp(key, words[i].key))
            return read_word(r, &words[i], value, e);
    if (!strcmp(key, "layers"))
        return read_layers(r, value, e);
    if (!strcmp(key, "qat"))
        return read_flag(&r->qat, key, value, e);
    if (!strcmp(key, "adapter"))
        return read_adapter(r, value, e);
    if (!strcmp(key, "device"))
        return read_device(r, value, e);
    if (!strcmp(key, "to")) {
        if (!json_is_string(value) || json_string_length(value) >= sizeof(r->to))
            return nb_fail(e, -EINVAL, "the recipe's \"to\" is a type's name, as F16");
        snprintf(r->to, sizeof(r->to), "%s", json_string_value(value));
        return 0;
    }
    return nb_fail(e, -EINVAL, "the recipe has a key \"%.60s\" that a distillation does not know",
                   key);
}

int nb_train_recipe_parse(const char *text, size_t len, struct nb_train_recipe *ret,
                          struct nb_error *ret_error)
{
    json_error_t error;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error), *value;
    const char *key;
    int rc = json_is_object(root)
                 ? 0
                 : nb_fail(ret_error, -EINVAL, "the recipe is no JSON object: %.120s", error.text);
    memset(ret, 0, sizeof(*ret));
    snprintf(ret->to, sizeof(ret->to), "F16");
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        set(ret, &numbers[i], numbers[i].usual);
    if (json_object_get(root, "adapter")) { // its base is its only teacher, and has nothing to say
        snprintf(ret->to, sizeof(ret->to), "F32");
        ret->hard = 1;
    }
    json_object_foreach(root, key, value)
        if (rc == 0)
            rc = read_key(ret, key, value, ret_error);
    if (rc == 0)
        rc = check_adapter(ret, ret_error);
    if (rc == 0)
        rc = check_device(ret, ret_error);
    if (rc == 0)
        rc = check_idle(ret, root, ret_error);
    json_decref(root);
    return rc;
}

int nb_train_recipe_settle(struct nb_train_recipe *r, enum nb_train_kind kind, const char *family,
                           struct nb_error *ret_error)
{
    const bool vectors = kind == NB_TRAIN_VECTORS;
    const char *other = r->only[vectors ? NB_TRAIN_LOGITS : NB_TRAIN_VECTORS];
    r->batch = r->batch ? r->batch : usual[kind].batch;
    r->rate = r->rate < 0 ? usual[kind].rate : r->rate;
    if (other)
        return nb_fail(ret_error, -EINVAL,
                       "the recipe's \"%s\" is of %s, and this %s model learns %s: leave it out",
                       other, vectors ? "logits" : "vectors", family,
                       vectors
                           ? "vectors, by \"cosine\", \"relation\", \"hidden\" and \"attention\""
                           : "logits");
    if (vectors && r->adapter.rank)
        return nb_fail(ret_error, -EINVAL,
                       "an adapter is trained by logits, and this %s model learns vectors: leave "
                       "out \"adapter\"",
                       family);
    if (vectors && !(r->cosine + r->relation + r->hidden + r->attention > 0))
        return nb_fail(
            ret_error, -EINVAL,
            "nothing is learnt: \"cosine\", \"relation\", \"hidden\" and \"attention\" are "
            "all 0");
    return 0;
}
