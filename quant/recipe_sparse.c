// The recipe's "sparse", {"share": 0.5} or {"pattern": "2:4"} with a "by", and a rule's, 0.5 or
// "2:4"; and what either goes with.
#include "quant/recipe_private.h"

#include <errno.h>
#include <string.h>

#define SHARE_MOST 0.99

const struct nb_sparsity *nb_recipe_sparsity(const struct nb_recipe *r)
{
    return r->sparse ? &r->sparsity : NULL;
}

static bool read_share(const json_t *value, struct nb_sparsity *ret)
{
    ret->share = json_number_value(value);
    return json_is_number(value) && ret->share >= 0 && ret->share <= SHARE_MOST;
}

// "N:M": N of each M stay.
static bool read_pattern(const json_t *value, struct nb_sparsity *ret)
{
    const char *text = json_string_value(value);
    if (!text || strlen(text) != 3 || text[1] != ':' || (text[2] != '4' && text[2] != '8'))
        return false;
    ret->keep = (uint32_t)(text[0] - '0');
    ret->of = (uint32_t)(text[2] - '0');
    return text[0] >= '1' && ret->keep < ret->of;
}

static int fail_zeros(struct nb_error *ret_error)
{
    return nb_fail(
        ret_error, -EINVAL,
        "the recipe's \"sparse\": a share of zeros is from 0 to %g, and a pattern N:4 or "
        "N:8, of which N stay, as \"2:4\"",
        SHARE_MOST);
}

int nb_recipe_read_zeros(struct nb_recipe_rule *rule, const json_t *value,
                         struct nb_error *ret_error)
{
    rule->sparse = json_is_string(value) ? read_pattern(value, &rule->sparsity)
                                         : read_share(value, &rule->sparsity);
    return rule->sparse ? 0 : fail_zeros(ret_error);
}

static int read_by(const json_t *value, enum nb_sparse_by *ret, struct nb_error *ret_error)
{
    const char *name = json_string_value(value);
    for (uint32_t i = 0; name && nb_sparse_names[i]; i++)
        if (!strcmp(name, nb_sparse_names[i])) {
            *ret = (enum nb_sparse_by)i;
            return 0;
        }
    return nb_fail(ret_error, -EINVAL,
                   "the recipe's \"sparse\": its \"by\" is magnitude, wanda or sparsegpt");
}

int nb_recipe_read_sparse(struct nb_recipe *r, const json_t *object, struct nb_error *ret_error)
{
    const json_t *share = json_object_get(object, "share");
    const json_t *pattern = json_object_get(object, "pattern");
    const json_t *by = json_object_get(object, "by");
    if (!json_is_object(object) || (share != NULL) + (pattern != NULL) != 1 ||
        json_object_size(object) != 1 + (size_t)(by != NULL))
        return nb_fail(
            ret_error, -EINVAL,
            "the recipe's \"sparse\" has a \"share\" or a \"pattern\", perhaps a \"by\", "
            "and nothing else");
    r->sparse = share ? read_share(share, &r->sparsity) : read_pattern(pattern, &r->sparsity);
    if (!r->sparse)
        return fail_zeros(ret_error);
    return by ? read_by(by, &r->sparsity.by, ret_error) : 0;
}

static bool has_rule(const struct nb_recipe *r)
{
    for (uint32_t i = 0; i < r->n_rules; i++)
        if (r->rules[i].sparse)
            return true;
    return false;
}

int nb_recipe_check_sparse(const struct nb_recipe *r, struct nb_error *ret_error)
{
    const bool feeds = r->sparsity.by == NB_SPARSE_SPARSEGPT;
    const char *why = NULL;
    if (!r->sparse)
        why = has_rule(r) ? "a rule's goes with the recipe's own, which says by what" : NULL;
    else if (r->target.kind)
        why = "it goes with a \"to\": a target knows no zeros";
    else if (r->automatic)
        why = "the method auto judges methods of rounding alone: name one (search, gptq or tune)";
    else if (feeds && !r->feedback.on)
        why = "sparsegpt is a part of error feedback: with method gptq or tune";
    else if (!feeds && r->feedback.on)
        why = "error feedback finds its own zeros: by sparsegpt, or with method search";
    else if (r->tuning.code_rate > 0)
        why = "tuning that moves codes would move zeros too: \"tune\" with \"code\": 0";
    return why ? nb_fail(ret_error, -EINVAL, "the recipe's \"sparse\": %s", why) : 0;
}
