// What a recipe makes of a tensor: its rules in their order, then the rest.
#include "quant/recipe_private.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "engine/arch.h"
#include "quant/rounding.h"
#include "tensor/convert.h"
#include "tensor/type.h"

#define STR(s) (int)(s).len, (s).data

static bool is_named(const struct nb_source_tensor *t, const char *name)
{
    return t->name.len == strlen(name) && !memcmp(t->name.data, name, t->name.len);
}

// The first rule that matches, of those that name a type or of those that name a sparsity. 1 and
// the rule, or 0.
static int find_rule(struct nb_recipe *r, const struct nb_source_tensor *t, bool of_types,
                     const struct nb_recipe_rule **ret, struct nb_error *ret_error)
{
    for (uint32_t i = 0; i < r->n_rules; i++) {
        if (of_types ? !r->rules[i].to : !r->rules[i].sparse)
            continue;
        int rc = pcre2_match(r->rules[i].code, (PCRE2_SPTR)t->name.data, t->name.len, 0, 0,
                             r->match, r->context);
        if (rc >= 0) {
            *ret = &r->rules[i];
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

static int find_wanted(struct nb_recipe *r, const struct nb_source_tensor *t,
                       const struct nb_scheme **ret, bool *ret_fixed, struct nb_error *ret_error)
{
    const struct nb_recipe_rule *rule = NULL;
    int rc = find_rule(r, t, true, &rule, ret_error);
    *ret_fixed = rc != 0 || r->target.kind == NB_TARGET_NONE;
    if (rule)
        *ret = rule->to;
    if (rc != 0)
        return rc < 0 ? rc : 0;
    const bool embedding = r->embedding && is_named(t, "token_embd.weight");
    const bool output = r->output && is_named(t, "output.weight");
    *ret = embedding ? r->embedding : output ? r->output : r->to;
    *ret_fixed |= embedding || output;
    return 0;
}

static bool fits(const struct nb_source_tensor *t, const struct nb_scheme *s)
{
    return t->dims[0] % nb_type_info(s->type)->block == 0;
}

// What takes a k-quant's place where rows are no whole blocks of 256: a type of blocks of 32 with
// at least as many bits.
static const struct nb_scheme *of_smaller_blocks(uint32_t type)
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
            return nb_scheme_of_type(table[i].instead);
    return NULL;
}

static int refuse_shape(const struct nb_recipe *r, const struct nb_source_tensor *t, uint32_t type,
                        struct nb_error *ret_error)
{
    return nb_fail(ret_error, -EINVAL,
                   "tensor %.*s has rows of %" PRIu64 ", no whole blocks of %u as %s%s%s takes: "
                   "name another type for such tensors (--else F16, \"else\" in a recipe)",
                   STR(t->name), t->dims[0], nb_type_info(type)->block, nb_type_name(type),
                   !r->otherwise ? "" : " or the recipe's \"else\" ",
                   !r->otherwise ? "" : nb_type_name(r->otherwise->type));
}

// Embeddings, the head, vectors and routers stay dense.
static bool may_be_sparse(const struct nb_source_tensor *t)
{
    struct nb_str rest;
    return !nb_convert_is_single(t) && nb_arch_layer(t->name, &rest) != NB_NO_LAYER;
}

static const char *list_with_zero(char ret[NB_ROUNDING_LIST])
{
    size_t n, at = 0;
    const struct nb_scheme *s = nb_schemes(&n);
    ret[0] = 0;
    for (size_t i = 0; i < n; i++)
        if (s[i].exact && nb_rounding_has(s[i].type) && nb_scheme_has_zero(&s[i]))
            at += (size_t)snprintf(ret + at, NB_ROUNDING_LIST - at, "%s%s", at ? ", " : "",
                                   nb_type_name(s[i].type));
    return ret;
}

static int check_sparse(const struct nb_source_tensor *t, const struct nb_choice *c,
                        struct nb_error *ret_error)
{
    char list[NB_ROUNDING_LIST];
    if (c->sparse.of && t->dims[0] % c->sparse.of)
        return nb_fail(ret_error, -EINVAL,
                       "tensor %.*s has rows of %" PRIu64 ", no whole patterns of %u:%u: exempt it "
                       "by a rule (\"sparse\": 0)",
                       STR(t->name), t->dims[0], c->sparse.keep, c->sparse.of);
    if (nb_scheme_has_zero(nb_choice_scheme(c)))
        return 0;
    return nb_fail(ret_error, -EINVAL,
                   "tensor %.*s is to be sparse, and no code of %s is exactly zero: name another "
                   "type (%s), or exempt it by a rule (\"sparse\": 0)",
                   STR(t->name), nb_type_name(c->type), list_with_zero(list));
}

static int choose_sparse(struct nb_recipe *r, const struct nb_source_tensor *t, struct nb_choice *c,
                         struct nb_error *ret_error)
{
    const struct nb_recipe_rule *rule = NULL;
    if (!r->sparse || !may_be_sparse(t))
        return 0;
    int rc = find_rule(r, t, false, &rule, ret_error);
    if (rc < 0)
        return rc;
    c->sparse = rule ? rule->sparsity : r->sparsity;
    c->sparse.by = r->sparsity.by;
    return nb_sparsity_any(&c->sparse) ? check_sparse(t, c, ret_error) : 0;
}

int nb_recipe_choose(struct nb_recipe *r, const struct nb_source_tensor *t, struct nb_choice *ret,
                     struct nb_error *ret_error)
{
    const struct nb_scheme *wanted = nb_scheme_of_type(NB_TYPE_F32), *s;
    bool fixed = nb_convert_is_single(t);
    int rc = fixed ? 0 : find_wanted(r, t, &wanted, &fixed, ret_error);
    if (rc < 0)
        return rc;
    s = wanted;
    if (!fits(t, s))
        s = r->otherwise ? r->otherwise : s->exact ? of_smaller_blocks(s->type) : NULL;
    if (!s || !fits(t, s))
        return refuse_shape(r, t, wanted->type, ret_error);
    *ret = (struct nb_choice){s->type, wanted->type, fixed, s, {0}};
    return choose_sparse(r, t, ret, ret_error);
}

const char *nb_recipe_idle(const struct nb_recipe *r, uint32_t *at)
{
    while (*at < r->n_rules) {
        const struct nb_recipe_rule *rule = &r->rules[(*at)++];
        if (!rule->used)
            return rule->text;
    }
    return NULL;
}
