// Recipes: JSON by jansson, regular expressions by PCRE2. Every count is bounded, and an expression
// has so many steps and no more, because a recipe is hostile input.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "quant/recipe.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "quant/fold_search.h"
#include "quant/rounding.h"
#include "quant/windows.h"
#include "tensor/convert.h"
#include "tensor/type.h"

#define MATCH_STEPS 100000
#define MATCH_DEPTH 1000
#define MATCH_KIB   1024
#define NONE        UINT32_MAX
#define STR(s)      (int)(s).len, (s).data

struct rule {
    pcre2_code *code;
    const char *text; // in the JSON
    uint32_t to;
    bool used;
};

struct nb_recipe {
    json_t *json;
    uint32_t to, embedding, output, otherwise; // NONE: not said
    struct nb_sampling_plan calibration;
    struct nb_feedback_plan feedback;
    struct nb_tuning_plan tuning;
    struct nb_recipe_target target;
    uint32_t folds;
    struct rule rules[NB_RECIPE_RULES];
    uint32_t n_rules;
    pcre2_match_context *context;
    pcre2_match_data *match;
};

void nb_recipe_free(struct nb_recipe *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; i < r->n_rules; i++)
        pcre2_code_free(r->rules[i].code);
    pcre2_match_data_free(r->match);
    pcre2_match_context_free(r->context);
    json_decref(r->json);
    free(r);
}

struct nb_sampling_plan nb_recipe_calibration(const struct nb_recipe *r)
{
    return r->calibration;
}

struct nb_feedback_plan nb_recipe_feedback(const struct nb_recipe *r)
{
    return r->feedback;
}

struct nb_tuning_plan nb_recipe_tuning(const struct nb_recipe *r)
{
    static const uint32_t tokens[] = {
        [NB_PACE_FAST] = 1u << 14, [NB_PACE_NORMAL] = 3u << 15, [NB_PACE_BEST] = 3u << 18};
    struct nb_tuning_plan p = r->tuning;
    p.tokens = p.tokens ? p.tokens : tokens[r->target.effort];
    return p;
}

const struct nb_recipe_target *nb_recipe_target(const struct nb_recipe *r)
{
    return &r->target;
}

uint32_t nb_recipe_folds(const struct nb_recipe *r)
{
    return r->folds;
}

uint32_t nb_recipe_to(const struct nb_recipe *r)
{
    return r->to;
}

// ---- Reading

static int read_type(const char *key, const json_t *value, uint32_t *ret,
                     struct nb_error *ret_error)
{
    char known[NB_ROUNDING_LIST];
    const char *name = json_string_value(value);
    const struct nb_type_info *info = name ? nb_type_by_name(name) : NULL;
    if (!name)
        return nb_fail(ret_error, -EINVAL, "the recipe's \"%s\" is no type's name", key);
    if (!info || !nb_rounding_has(info->type))
        return nb_fail(
            ret_error, -EINVAL,
            "the recipe's \"%s\": \"%.32s\" is no type that Nibble writes; these are: %s", key,
            name, nb_rounding_list(known));
    *ret = info->type;
    return 0;
}

static int compile(struct rule *rule, struct nb_error *ret_error)
{
    int code;
    PCRE2_SIZE at;
    PCRE2_UCHAR text[128] = "";
    const size_t len = strlen(rule->text);
    if (!len || len > NB_RECIPE_MATCH)
        return nb_fail(ret_error, -EINVAL, "a recipe's \"match\" has 1 to %d bytes",
                       NB_RECIPE_MATCH);
    rule->code = pcre2_compile((PCRE2_SPTR)rule->text, len, PCRE2_NEVER_UTF | PCRE2_NEVER_UCP,
                               &code, &at, NULL);
    if (rule->code)
        return 0;
    pcre2_get_error_message(code, text, sizeof(text));
    return nb_fail(ret_error, -EINVAL, "the recipe's \"match\": \"%.64s\": %s (at %zu)", rule->text,
                   (const char *)text, at);
}

static int read_rule(struct nb_recipe *r, const json_t *object, struct nb_error *ret_error)
{
    struct rule *rule = &r->rules[r->n_rules];
    const json_t *match = json_object_get(object, "match"), *to = json_object_get(object, "to");
    if (!json_is_string(match) || !to || json_object_size(object) != 2)
        return nb_fail(ret_error, -EINVAL,
                       "each of the recipe's \"tensors\" has a \"match\" and a \"to\", and nothing "
                       "else");
    rule->text = json_string_value(match);
    int rc = read_type("to", to, &rule->to, ret_error);
    if (rc == 0)
        rc = compile(rule, ret_error);
    if (rc == 0)
        r->n_rules++;
    return rc;
}

static int read_rules(struct nb_recipe *r, const json_t *array, struct nb_error *ret_error)
{
    const size_t n = json_array_size(array);
    int rc = 0;
    if (!json_is_array(array) || n > NB_RECIPE_RULES)
        return nb_fail(ret_error, -EINVAL, "the recipe's \"tensors\" is a list of %d rules at most",
                       NB_RECIPE_RULES);
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = read_rule(r, json_array_get(array, i), ret_error);
    return rc;
}

static int read_count(const json_t *value, const char *key, uint32_t least, uint32_t most,
                      uint32_t *ret, struct nb_error *ret_error)
{
    const json_int_t n = json_integer_value(value);
    if (!value)
        return 0;
    if (!json_is_integer(value) || n < least || n > most)
        return nb_fail(ret_error, -EINVAL,
                       "the recipe's \"calibration\": its \"%s\" is a number from %u to %u", key,
                       least, most);
    *ret = (uint32_t)n;
    return 1;
}

static int read_calibration(struct nb_recipe *r, const json_t *object, struct nb_error *ret_error)
{
    const json_t *samples = json_object_get(object, "samples");
    const json_t *length = json_object_get(object, "length");
    const json_t *seed = json_object_get(object, "seed");
    if (!json_is_object(object) ||
        json_object_size(object) != (samples != NULL) + (size_t)(length != NULL) + (seed != NULL))
        return nb_fail(ret_error, -EINVAL,
                       "the recipe's \"calibration\" has \"samples\", \"length\" and \"seed\", and "
                       "nothing else");
    int rc = read_count(samples, "samples", 1, NB_WINDOWS_MAX, &r->calibration.samples, ret_error);
    if (rc >= 0)
        rc = read_count(length, "length", NB_WINDOWS_LEAST, NB_WINDOWS_LENGTH,
                        &r->calibration.length, ret_error);
    if (rc >= 0)
        rc = read_count(seed, "seed", 0, UINT32_MAX, &r->calibration.seed, ret_error);
    return rc < 0 ? rc : 0;
}

static int read_method(struct nb_recipe *r, const json_t *value, struct nb_error *ret_error)
{
    const char *name = json_string_value(value);
    r->tuning.on = name && !strcmp(name, "tune");
    r->feedback.on = name && (r->tuning.on || !strcmp(name, "gptq"));
    if (!r->feedback.on && !(name && !strcmp(name, "search")))
        return nb_fail(ret_error, -EINVAL,
                       "the recipe's \"method\" is \"search\" (of scales), \"gptq\" (error "
                       "feedback) or \"tune\" (that, and then descent)");
    return 0;
}

static int read_tune(struct nb_recipe *r, const json_t *object, struct nb_error *ret_error)
{
    const struct {
        const char *key;
        float *rate;
    } rates[] = {{"code", &r->tuning.code_rate},
                 {"scale", &r->tuning.scale_rate},
                 {"vector", &r->tuning.vector_rate}};
    const struct {
        const char *key;
        uint32_t *count;
    } counts[] = {{"tokens", &r->tuning.tokens}, {"batch", &r->tuning.batch}};
    size_t n = 0;
    bool good = json_is_object(object);
    for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
        const json_t *value = json_object_get(object, rates[i].key);
        const double x = json_number_value(value);
        n += value != NULL;
        good &= !value || (json_is_number(value) && x >= 0 && x <= 1);
        *rates[i].rate = value ? (float)x : *rates[i].rate;
    }
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        const json_t *value = json_object_get(object, counts[i].key);
        const json_int_t x = json_integer_value(value);
        n += value != NULL;
        good &= !value || (x >= 8 && x <= 1 << 30);
        *counts[i].count = value ? (uint32_t)x : *counts[i].count;
    }
    if (!good || n != json_object_size(object))
        return nb_fail(
            ret_error, -EINVAL,
            "the recipe's \"tune\" has numbers of \"tokens\" and of a \"batch\", from 8 on, "
            "and rates from 0 to 1, \"code\", \"scale\" and \"vector\"");
    return 0;
}

static int read_gptq(struct nb_recipe *r, const json_t *object, struct nb_error *ret_error)
{
    const json_t *damping = json_object_get(object, "damping");
    const json_t *mismatch = json_object_get(object, "mismatch");
    const json_t *passes = json_object_get(object, "passes");
    struct nb_feedback_plan *f = &r->feedback;
    if (!json_is_object(object) || json_object_size(object) != (damping != NULL) +
                                                                   (size_t)(mismatch != NULL) +
                                                                   (passes != NULL))
        return nb_fail(ret_error, -EINVAL,
                       "the recipe's \"gptq\" has \"damping\", \"mismatch\" and \"passes\", and "
                       "nothing else");
    f->damping = damping ? (float)json_number_value(damping) : f->damping;
    f->mismatch = mismatch ? (float)json_number_value(mismatch) : f->mismatch;
    f->passes = passes ? (uint32_t)json_integer_value(passes) : f->passes;
    if (!(f->damping >= 1e-6f && f->damping <= 1.0f) || !(f->mismatch >= 0 && f->mismatch <= 1) ||
        f->passes > 16 || (passes && json_integer_value(passes) < 0))
        return nb_fail(
            ret_error, -EINVAL,
            "the recipe's \"gptq\": \"damping\" is from 0.000001 to 1, \"mismatch\" from "
            "0 to 1, \"passes\" from 0 to 16");
    return 0;
}

// ---- A target

#define BYTES_MOST (INT64_C(1) << 50)

static int read_target(struct nb_recipe *r, const json_t *object, struct nb_error *ret_error)
{
    static const struct {
        const char *key;
        enum nb_target kind;
        double least, most;
    } kinds[] = {{"size", NB_TARGET_SIZE, 1, (double)BYTES_MOST},
                 {"bits", NB_TARGET_BITS, 1, 32},
                 {"max_kld", NB_TARGET_KLD, 1e-6, 100},
                 {"fit", NB_TARGET_FIT, 1, (double)BYTES_MOST}};
    const json_t *context = json_object_get(object, "context");
    const json_int_t tokens = json_integer_value(context);
    struct nb_recipe_target *t = &r->target;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        const json_t *value = json_object_get(object, kinds[i].key);
        const double x = json_number_value(value);
        if (!value)
            continue;
        if (t->kind || !json_is_number(value) || !(x >= kinds[i].least && x <= kinds[i].most))
            return nb_fail(ret_error, -EINVAL, "the recipe's \"target\": one \"%s\", from %g to %g",
                           kinds[i].key, kinds[i].least, kinds[i].most);
        t->kind = kinds[i].kind;
        t->value = x;
        t->bytes = (uint64_t)x;
    }
    if (!t->kind || json_object_size(object) != 1 + (size_t)(context != NULL) ||
        (context && (t->kind != NB_TARGET_FIT || tokens < 1 || tokens > 1 << 30)))
        return nb_fail(ret_error, -EINVAL,
                       "the recipe's \"target\" has one of size, bits, max_kld and fit (with fit "
                       "perhaps a \"context\", of tokens), and nothing else");
    t->context = (uint32_t)tokens;
    return 0;
}

static int read_types(struct nb_recipe *r, const json_t *array, struct nb_error *ret_error)
{
    const size_t n = json_array_size(array);
    int rc = 0;
    if (!n || n > NB_RECIPE_TYPES)
        return nb_fail(ret_error, -EINVAL, "the recipe's \"types\" is a list of 1 to %d types",
                       NB_RECIPE_TYPES);
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = read_type("types", json_array_get(array, i), &r->target.types[i], ret_error);
    r->target.n_types = (uint32_t)n;
    return rc;
}

static int read_effort(struct nb_recipe *r, const json_t *value, struct nb_error *ret_error)
{
    static const char *const names[] = {"fast", "normal", "best"};
    const char *name = json_string_value(value);
    for (size_t i = 0; name && i < sizeof(names) / sizeof(names[0]); i++)
        if (!strcmp(name, names[i])) {
            r->target.effort = (enum nb_pace)i;
            return 0;
        }
    return nb_fail(ret_error, -EINVAL, "the recipe's \"effort\" is fast, normal or best");
}

static double bits_of(uint32_t type)
{
    const struct nb_type_info *info = nb_type_info(type);
    return 8.0 * info->bytes / info->block;
}

// Windows for so many tokens, beside those of the calibration.
static int check_target(struct nb_recipe *r, struct nb_error *ret_error)
{
    static const uint32_t tokens[] = {1536, 2048, 4096};
    const uint32_t n = tokens[r->target.effort] / r->calibration.length;
    if (!r->target.kind)
        return r->target.n_types
                   ? nb_fail(ret_error, -EINVAL, "the recipe's \"types\" goes with a \"target\"")
                   : 0;
    if (r->to != NONE)
        return nb_fail(ret_error, -EINVAL,
                       "a recipe has either a \"to\" or a \"target\": what is to have a certain "
                       "type is named in \"tensors\"");
    r->to = r->target.n_types ? r->target.types[0] : NB_TYPE_Q8_0; // the largest
    for (uint32_t i = 1; i < r->target.n_types; i++)
        if (bits_of(r->target.types[i]) > bits_of(r->to))
            r->to = r->target.types[i];
    r->otherwise = r->otherwise == NONE ? NB_TYPE_F16 : r->otherwise;
    r->calibration.held_out = n < 4 ? 4 : n;
    return 0;
}

static int read_fold(struct nb_recipe *r, const json_t *value, struct nb_error *ret_error)
{
    const size_t n = json_is_string(value) ? 1 : json_array_size(value);
    bool known = n > 0;
    for (size_t i = 0; i < n && known; i++) {
        const json_t *one = json_is_string(value) ? value : json_array_get(value, i);
        const uint32_t methods = json_is_string(one) ? nb_fold_methods(json_string_value(one)) : 0;
        known = methods != 0;
        r->folds |= methods;
    }
    if (!known || (r->folds & NB_FOLD_AWQ && r->folds & NB_FOLD_SMOOTH))
        return nb_fail(ret_error, -EINVAL,
                       "the recipe's \"fold\" is a list of \"awq\" or \"smooth\", \"permute\", "
                       "and \"rotate\" or \"rotate-values\"");
    return 0;
}

static int read_key(struct nb_recipe *r, const char *key, const json_t *value,
                    struct nb_error *ret_error)
{
    const struct {
        const char *key;
        uint32_t *type;
    } types[] = {{"to", &r->to},
                 {"embedding", &r->embedding},
                 {"output", &r->output},
                 {"else", &r->otherwise}};
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (!strcmp(key, types[i].key))
            return read_type(key, value, types[i].type, ret_error);
    const struct {
        const char *key;
        int (*read)(struct nb_recipe *r, const json_t *value, struct nb_error *ret_error);
    } others[] = {{"tensors", read_rules}, {"calibration", read_calibration},
                  {"target", read_target}, {"method", read_method},
                  {"gptq", read_gptq},     {"types", read_types},
                  {"effort", read_effort}, {"fold", read_fold},
                  {"tune", read_tune}};
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        if (!strcmp(key, others[i].key))
            return others[i].read(r, value, ret_error);
    return nb_fail(ret_error, -EINVAL,
                   "the recipe has a key \"%.64s\", which is none of to, tensors, embedding, "
                   "output, else, calibration, method, gptq, target, types, effort, fold, tune",
                   key);
}

static int prepare(struct nb_recipe *r, struct nb_error *ret_error)
{
    r->context = pcre2_match_context_create(NULL);
    r->match = pcre2_match_data_create(1, NULL);
    if (!r->context || !r->match)
        return nb_fail(ret_error, -ENOMEM, "no memory for the recipe");
    pcre2_set_match_limit(r->context, MATCH_STEPS);
    pcre2_set_depth_limit(r->context, MATCH_DEPTH);
    pcre2_set_heap_limit(r->context, MATCH_KIB);
    return 0;
}

static int read_all(struct nb_recipe *r, struct nb_error *ret_error)
{
    int rc = 0;
    for (void *at = json_object_iter(r->json); at && rc == 0;
         at = json_object_iter_next(r->json, at))
        rc = read_key(r, json_object_iter_key(at), json_object_iter_value(at), ret_error);
    if (rc == 0)
        rc = check_target(r, ret_error);
    if (rc == 0 && r->to == NONE)
        rc = nb_fail(ret_error, -EINVAL,
                     "the recipe has no \"to\", the type of most tensors, and no \"target\"");
    return rc == 0 ? prepare(r, ret_error) : rc;
}

int nb_recipe_parse(const char *text, size_t len, struct nb_recipe **ret,
                    struct nb_error *ret_error)
{
    json_error_t e;
    if (len > NB_RECIPE_MAX)
        return nb_fail(ret_error, -EINVAL, "a recipe has %u bytes at most", NB_RECIPE_MAX);
    struct nb_recipe *r = calloc(1, sizeof(*r));
    if (!r)
        return nb_fail(ret_error, -ENOMEM, "no memory for the recipe");
    r->calibration = (struct nb_sampling_plan){.samples = 128, .length = 256, .seed = 1};
    r->feedback = (struct nb_feedback_plan){false, 0.01f, 1.0f, 2};
    r->tuning = (struct nb_tuning_plan){
        .batch = 1024, .code_rate = 2e-3f, .scale_rate = 1e-3f, .vector_rate = 1e-3f};
    r->target.effort = NB_PACE_NORMAL;
    r->to = r->embedding = r->output = r->otherwise = NONE;
    r->json = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
    int rc;
    if (!r->json)
        rc = nb_fail(ret_error, -EINVAL, "the recipe is no JSON: line %d, column %d: %s", e.line,
                     e.column, e.text);
    else if (!json_is_object(r->json))
        rc = nb_fail(ret_error, -EINVAL, "the recipe is no JSON object");
    else
        rc = read_all(r, ret_error);
    if (rc < 0)
        nb_recipe_free(r);
    else
        *ret = r;
    return rc;
}

// ---- Choosing

static bool is_named(const struct nb_source_tensor *t, const char *name)
{
    return t->name.len == strlen(name) && !memcmp(t->name.data, name, t->name.len);
}

// The first rule that matches. 1 and its type, or 0.
static int find_rule(struct nb_recipe *r, const struct nb_source_tensor *t, uint32_t *ret,
                     struct nb_error *ret_error)
{
    for (uint32_t i = 0; i < r->n_rules; i++) {
        int rc = pcre2_match(r->rules[i].code, (PCRE2_SPTR)t->name.data, t->name.len, 0, 0,
                             r->match, r->context);
        if (rc >= 0) {
            *ret = r->rules[i].to;
            r->rules[i].used = true;
            return 1;
        }
        if (rc != PCRE2_ERROR_NOMATCH)
            return nb_fail(ret_error, -EINVAL,
                           "the recipe's \"match\": \"%.64s\" takes too many steps on tensor %.*s: "
                           "write it more simply",
                           r->rules[i].text, STR(t->name));
    }
    return 0;
}

static int find_wanted(struct nb_recipe *r, const struct nb_source_tensor *t, struct nb_choice *ret,
                       struct nb_error *ret_error)
{
    int rc = find_rule(r, t, &ret->wanted, ret_error);
    ret->fixed = rc != 0 || r->target.kind == NB_TARGET_NONE;
    if (rc != 0)
        return rc < 0 ? rc : 0;
    const bool embedding = r->embedding != NONE && is_named(t, "token_embd.weight");
    const bool output = r->output != NONE && is_named(t, "output.weight");
    ret->wanted = embedding ? r->embedding : output ? r->output : r->to;
    ret->fixed |= embedding || output;
    return 0;
}

static bool fits(const struct nb_source_tensor *t, uint32_t type)
{
    return t->dims[0] % nb_type_info(type)->block == 0;
}

// What takes a k-quant's place where rows are no whole blocks of 256: a type of blocks of 32 with
// at least as many bits.
static uint32_t of_smaller_blocks(uint32_t type)
{
    static const struct {
        uint32_t type, instead;
    } table[] = {
        {NB_TYPE_Q2_K, NB_TYPE_IQ4_NL},   {NB_TYPE_Q3_K, NB_TYPE_IQ4_NL},
        {NB_TYPE_IQ4_XS, NB_TYPE_IQ4_NL}, {NB_TYPE_Q4_K, NB_TYPE_Q5_0},
        {NB_TYPE_Q5_K, NB_TYPE_Q5_1},     {NB_TYPE_Q6_K, NB_TYPE_Q8_0},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (table[i].type == type && nb_rounding_has(table[i].instead))
            return table[i].instead;
    return NONE;
}

static int refuse_shape(const struct nb_recipe *r, const struct nb_source_tensor *t, uint32_t type,
                        struct nb_error *ret_error)
{
    return nb_fail(ret_error, -EINVAL,
                   "tensor %.*s has rows of %" PRIu64 ", no whole blocks of %u as %s%s%s takes: "
                   "name another type for such tensors (--else F16, \"else\" in a recipe)",
                   STR(t->name), t->dims[0], nb_type_info(type)->block, nb_type_name(type),
                   r->otherwise == NONE ? "" : " or the recipe's \"else\" ",
                   r->otherwise == NONE ? "" : nb_type_name(r->otherwise));
}

int nb_recipe_choose(struct nb_recipe *r, const struct nb_source_tensor *t, struct nb_choice *ret,
                     struct nb_error *ret_error)
{
    struct nb_choice c = {NB_TYPE_F32, NB_TYPE_F32, true};
    if (nb_convert_is_single(t)) {
        *ret = c;
        return 0;
    }
    int rc = find_wanted(r, t, &c, ret_error);
    if (rc < 0)
        return rc;
    c.type = c.wanted;
    if (!fits(t, c.type))
        c.type = r->otherwise != NONE ? r->otherwise : of_smaller_blocks(c.wanted);
    if (c.type == NONE || !fits(t, c.type))
        return refuse_shape(r, t, c.wanted, ret_error);
    *ret = c;
    return 0;
}

const char *nb_recipe_idle(const struct nb_recipe *r, uint32_t *at)
{
    while (*at < r->n_rules) {
        const struct rule *rule = &r->rules[(*at)++];
        if (!rule->used)
            return rule->text;
    }
    return NULL;
}
