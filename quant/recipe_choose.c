// What a recipe makes of a tensor: its rules in their order, then the rest.
#include "quant/recipe_private.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "quant/rounding.h"
#include "tensor/convert.h"
#include "tensor/type.h"

#define STR(s) (int)(s).len, (s).data

static bool is_named(const struct nb_source_tensor *t, const char *name)
{
    return t->name.len == strlen(name) && !memcmp(t->name.data, name, t->name.len);
}

// The first rule that matches. 1 and what it says, or 0.
static int find_rule(struct nb_recipe *r, const struct nb_source_tensor *t,
                     const struct nb_scheme **ret, struct nb_error *ret_error)
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

static int find_wanted(struct nb_recipe *r, const struct nb_source_tensor *t,
                       const struct nb_scheme **ret, bool *ret_fixed, struct nb_error *ret_error)
{
    int rc = find_rule(r, t, ret, ret_error);
    *ret_fixed = rc != 0 || r->target.kind == NB_TARGET_NONE;
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
    *ret = (struct nb_choice){s->type, wanted->type, fixed, s};
    return 0;
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
