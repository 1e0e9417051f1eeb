// Recipes: JSON by jansson, regular expressions by PCRE2. Every count is bounded, and an expression
// has so many steps and no more, because a recipe is hostile input.
#include "quant/recipe_private.h"

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

bool nb_recipe_automatic(const struct nb_recipe *r)
{
    return r->automatic;
}

struct nb_tuning_plan nb_recipe_tuning(const struct nb_recipe *r)
{
    static const uint32_t tokens[] = {
        [NB_PACE_FAST] = 1u << 14, [NB_PACE_NORMAL] = 3u << 15, [NB_PACE_BEST] = 3u << 17};
    struct nb_tuning_plan p = r->tuning;
    p.on &= !r->automatic || r->target.effort > NB_PACE_FAST;
    p.tokens = p.tokens ? p.tokens : tokens[r->target.effort];
    return p;
}

const struct nb_recipe_target *nb_recipe_target(const struct nb_recipe *r)
{
    return &r->target;
}

bool nb_recipe_folder(const struct nb_recipe *r)
{
    return r->folder;
}

uint32_t nb_recipe_folds(const struct nb_recipe *r)
{
    return r->folds;
}

struct nb_activations nb_recipe_activations(const struct nb_recipe *r)
{
    return r->activations;
}

const struct nb_scheme *nb_recipe_to(const struct nb_recipe *r)
{
    return r->to;
}

// ---- Reading

static int read_scheme(const struct nb_recipe *r, const char *key, const json_t *value,
                       const struct nb_scheme **ret, struct nb_error *ret_error)
{
    char known[NB_ROUNDING_LIST];
    const char *name = json_string_value(value);
    const struct nb_scheme *scheme = name ? nb_scheme_by_name(name) : NULL;
    if (!name)
        return nb_fail(ret_error, -EINVAL, "the recipe's \"%s\" is no type's name", key);
    const bool of_folder = scheme && scheme->instead;
    if (of_folder && !r->folder)
        return nb_fail(ret_error, -EINVAL, "the recipe's \"%s\": no type of GGUF holds %s: %s", key,
                       scheme->name, scheme->instead);
    if (!scheme || (!of_folder && !nb_rounding_has(scheme->type)))
        return nb_fail(ret_error, -EINVAL,
                       "the recipe's \"%s\": \"%.32s\" is no type that Nibble writes; these are: "
                       "%s; nor a scheme as int8-channel or int4-g128-min",
                       key, name, nb_rounding_list(known));
    *ret = scheme;
    return 0;
}

static int compile(struct nb_recipe_rule *rule, struct nb_error *ret_error)
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
    struct nb_recipe_rule *rule = &r->rules[r->n_rules];
    const json_t *match = json_object_get(object, "match"), *to = json_object_get(object, "to");
    const json_t *sparse = json_object_get(object, "sparse");
    const size_t says = (to != NULL) + (size_t)(sparse != NULL);
    if (!json_is_string(match) || !says || json_object_size(object) != 1 + says)
        return nb_fail(ret_error, -EINVAL,
                       "each of the recipe's \"tensors\" has a \"match\", and a \"to\" or a "
                       "\"sparse\" or both, and nothing else");
    rule->text = json_string_value(match);
    int rc = to ? read_scheme(r, "to", to, &rule->to, ret_error) : 0;
    if (rc == 0 && sparse)
        rc = nb_recipe_read_zeros(rule, sparse, ret_error);
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
    r->automatic = name && !strcmp(name, "auto");
    r->tuning.on = name && (r->automatic || !strcmp(name, "tune"));
    r->feedback.on = name && (r->tuning.on || !strcmp(name, "gptq"));
    if (!r->feedback.on && !(name && !strcmp(name, "search")))
        return nb_fail(ret_error, -EINVAL,
                       "the recipe's \"method\" is \"search\" (of scales), \"gptq\" (error "
                       "feedback), \"tune\" (that, and then descent) or \"auto\" (what of these "
                       "is seen to gain)");
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
        uint32_t least;
    } counts[] = {{"tokens", &r->tuning.tokens, 8},
                  {"batch", &r->tuning.batch, 8},
                  {"layer_steps", &r->tuning.layer_steps, 0}};
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
        good &= !value || (json_is_integer(value) && x >= counts[i].least && x <= 1 << 20);
        *counts[i].count = value ? (uint32_t)x : *counts[i].count;
    }
    if (!good || n != json_object_size(object))
        return nb_fail(ret_error, -EINVAL,
                       "the recipe's \"tune\" has numbers of \"tokens\", of those of a \"batch\" "
                       "and of \"layer_steps\", 1048576 at most, and rates from 0 to 1: \"code\", "
                       "\"scale\", \"vector\"");
    return 0;
}

// What is not said is.
static bool is_within(const json_t *value, double least, double most)
{
    const double x = json_number_value(value);
    return !value || (json_is_number(value) && x >= least && x <= most);
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
    if (!is_within(damping, 1e-6, 1) || !is_within(mismatch, 0, 1) || !is_within(passes, 0, 16) ||
        (passes && !json_is_integer(passes)))
        return nb_fail(
            ret_error, -EINVAL,
            "the recipe's \"gptq\": \"damping\" is from 0.000001 to 1, \"mismatch\" from "
            "0 to 1, \"passes\" a whole number from 0 to 16");
    f->damping = damping ? (float)json_number_value(damping) : f->damping;
    f->mismatch = mismatch ? (float)json_number_value(mismatch) : f->mismatch;
    f->passes = passes ? (uint32_t)json_integer_value(passes) : f->passes;
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
    for (size_t i = 0; i < n && rc == 0; i++) {
        const struct nb_scheme *scheme = NULL;
        rc = read_scheme(r, "types", json_array_get(array, i), &scheme, ret_error);
        if (rc == 0 && scheme && !scheme->exact)
            rc = nb_fail(ret_error, -EINVAL, "the recipe's \"types\": %s is no type", scheme->name);
        r->target.types[i] = rc == 0 && scheme ? scheme->type : 0;
    }
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

// Windows to learn from, where the recipe does not say: more text is what gains most.
static void choose_samples(struct nb_recipe *r)
{
    static const uint32_t windows[] = {128, 128, 512};
    if (!r->calibration.samples)
        r->calibration.samples = windows[r->target.effort];
}

// Windows for so many tokens, beside those of the calibration: what is judged, is judged on these.
static void hold_out(struct nb_recipe *r)
{
    static const uint32_t tokens[] = {1536, 2048, 4096};
    uint32_t n = tokens[r->target.effort] / r->calibration.length;
    if (!r->target.kind && n > r->calibration.samples / 2) // it asks for no more text than it must
        n = r->calibration.samples / 2;
    if (r->target.kind || r->tuning.on)
        r->calibration.held_out = n < 4 ? 4 : n;
}

static int check_target(struct nb_recipe *r, struct nb_error *ret_error)
{
    if (!r->target.kind)
        return r->target.n_types
                   ? nb_fail(ret_error, -EINVAL, "the recipe's \"types\" goes with a \"target\"")
                   : 0;
    if (r->to)
        return nb_fail(ret_error, -EINVAL,
                       "a recipe has either a \"to\" or a \"target\": what is to have a certain "
                       "type is named in \"tensors\"");
    uint32_t to = r->target.n_types ? r->target.types[0] : (uint32_t)NB_TYPE_Q8_0; // the largest
    for (uint32_t i = 1; i < r->target.n_types; i++)
        if (nb_type_bits(r->target.types[i]) > nb_type_bits(to))
            to = r->target.types[i];
    r->to = nb_scheme_of_type(to);
    r->otherwise = r->otherwise ? r->otherwise : nb_scheme_of_type(NB_TYPE_F16);
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

// One of `words`, of which the last is NULL; without a value *ret stays.
static int read_word(const json_t *value, const char *key, const char *const *words,
                     const char *listed, uint32_t *ret, struct nb_error *ret_error)
{
    const char *word = json_string_value(value);
    uint32_t i = 0;
    if (!value)
        return 0;
    while (words[i] && (!word || strcmp(word, words[i]) != 0))
        i++;
    if (!words[i])
        return nb_fail(ret_error, -EINVAL, "the recipe's \"activations\": its \"%s\" is one of %s",
                       key, listed);
    *ret = i;
    return 0;
}

// Of static ones. `value` NULL: *ret stays.
static int read_number(const json_t *value, const char *key, double least, double most, double *ret,
                       struct nb_error *ret_error)
{
    const double number = json_number_value(value);
    if (!value)
        return 0;
    if (!json_is_number(value) || !(number >= least && number <= most))
        return nb_fail(ret_error, -EINVAL,
                       "the recipe's \"activations\": its \"%s\" is a number from %g to %g", key,
                       least, most);
    *ret = number;
    return 0;
}

static int read_static(struct nb_activations *a, const json_t *object, struct nb_error *ret_error)
{
    static const char *const ranges[] = {"minmax", "percentile", "mse", NULL};
    const json_t *percentile = json_object_get(object, "percentile");
    uint32_t range = a->range;
    int rc = read_word(json_object_get(object, "range"), "range", ranges, "minmax, percentile, mse",
                       &range, ret_error);
    a->range = (enum nb_range)range;
    if (rc == 0 && percentile && a->range != NB_RANGE_PERCENTILE)
        rc = nb_fail(
            ret_error, -EINVAL,
            "the recipe's \"activations\": a \"percentile\" is of the \"range\" percentile");
    if (rc == 0)
        rc = read_number(percentile, "percentile", 50, 100, &a->percentile, ret_error);
    return rc == 0 ? read_number(json_object_get(object, "spread"), "spread", 0, 1e9, &a->spread,
                                 ret_error)
                   : rc;
}

static int read_activations(struct nb_recipe *r, const json_t *object, struct nb_error *ret_error)
{
    static const char *const schemes[] = {"block", "dynamic", "static", NULL};
    static const char *const keys[] = {"scheme", "range", "percentile", "spread"};
    uint32_t scale = NB_INPUT_BLOCK;
    size_t n = 0;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        n += json_object_get(object, keys[i]) != NULL;
    if (!json_object_get(object, "scheme") || n != json_object_size(object))
        return nb_fail(ret_error, -EINVAL,
                       "the recipe's \"activations\" has a \"scheme\", and a static one a "
                       "\"range\", a \"percentile\" and a \"spread\"");
    int rc = read_word(json_object_get(object, "scheme"), "scheme", schemes,
                       "block, dynamic, static", &scale, ret_error);
    r->activations.scale = (enum nb_input_scale)scale;
    if (rc == 0 && n > 1 && scale != NB_INPUT_FIXED)
        rc = nb_fail(
            ret_error, -EINVAL,
            "the recipe's \"activations\": what is beside the \"scheme\" is of a static one");
    return rc == 0 ? read_static(&r->activations, object, ret_error) : rc;
}

static int read_key(struct nb_recipe *r, const char *key, const json_t *value,
                    struct nb_error *ret_error)
{
    const struct {
        const char *key;
        const struct nb_scheme **scheme;
    } schemes[] = {{"to", &r->to},
                   {"embedding", &r->embedding},
                   {"output", &r->output},
                   {"else", &r->otherwise}};
    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
        if (!strcmp(key, schemes[i].key))
            return read_scheme(r, key, value, schemes[i].scheme, ret_error);
    const struct {
        const char *key;
        int (*read)(struct nb_recipe *r, const json_t *value, struct nb_error *ret_error);
    } others[] = {{"tensors", read_rules},
                  {"calibration", read_calibration},
                  {"target", read_target},
                  {"method", read_method},
                  {"gptq", read_gptq},
                  {"types", read_types},
                  {"effort", read_effort},
                  {"fold", read_fold},
                  {"tune", read_tune},
                  {"activations", read_activations},
                  {"sparse", nb_recipe_read_sparse}};
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        if (!strcmp(key, others[i].key))
            return others[i].read(r, value, ret_error);
    return nb_fail(ret_error, -EINVAL,
                   "the recipe has a key \"%.64s\", which is none of to, tensors, embedding, "
                   "output, else, calibration, method, gptq, target, types, effort, fold, "
                   "tune, activations, sparse",
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
    if (rc == 0)
        rc = nb_recipe_check_sparse(r, ret_error);
    choose_samples(r);
    hold_out(r);
    if (rc == 0 && !r->to)
        rc = nb_fail(ret_error, -EINVAL,
                     "the recipe has no \"to\", the type of most tensors, and no \"target\"");
    return rc == 0 ? prepare(r, ret_error) : rc;
}

int nb_recipe_parse(const char *text, size_t len, bool folder, struct nb_recipe **ret,
                    struct nb_error *ret_error)
{
    json_error_t e;
    if (len > NB_RECIPE_MAX)
        return nb_fail(ret_error, -EINVAL, "a recipe has %u bytes at most", NB_RECIPE_MAX);
    struct nb_recipe *r = calloc(1, sizeof(*r));
    if (!r)
        return nb_fail(ret_error, -ENOMEM, "no memory for the recipe");
    r->folder = folder;
    r->calibration = (struct nb_sampling_plan){.length = 256, .seed = 1};
    r->feedback = (struct nb_feedback_plan){false, 0.03f, -1.0f, 2};
    // What gains after error feedback (docs/numbers.md): higher rates, and codes that flip, undo
    // what it has fitted. Each layer by itself is fitted already.
    r->tuning = (struct nb_tuning_plan){.batch = 1024, .scale_rate = 2e-4f, .vector_rate = 2e-4f};
    r->target.effort = NB_PACE_NORMAL;
    r->activations = (struct nb_activations){NB_INPUT_BLOCK, NB_RANGE_MSE, 99.99, 6};
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
