// Expressions.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"

static struct nb_jv eval_const(struct nb_jrun *r, const struct nb_jnode *n)
{
    return n->value;
}

static struct nb_jv eval_name(struct nb_jrun *r, const struct nb_jnode *n)
{
    return nb_jscope_get(r, n->name);
}

static struct nb_jlist *eval_items(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jlist *l = nb_jlist_new(r->m);

    for (const struct nb_jnode *item = n->list; item; item = item->next)
        nb_jlist_add(r->m, l, nb_jeval(r, item->a));
    return l;
}

static struct nb_jv eval_tuple(struct nb_jrun *r, const struct nb_jnode *n)
{
    return nb_jv_tuple(eval_items(r, n));
}

static struct nb_jv eval_list(struct nb_jrun *r, const struct nb_jnode *n)
{
    return nb_jv_list(eval_items(r, n));
}

static struct nb_jv eval_dict(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jdict *d = nb_jdict_new(r->m);

    for (const struct nb_jnode *item = n->list; item; item = item->next) {
        struct nb_jv key = nb_jeval(r, item->a);
        nb_jdict_set(r->m, d, key, nb_jeval(r, item->b));
    }
    return nb_jv_dict(d);
}

static struct nb_jv eval_concat(struct nb_jrun *r, const struct nb_jnode *n)
{
    const struct nb_jstr *s = &nb_jstr_empty;

    for (const struct nb_jnode *item = n->list; item; item = item->next) {
        const struct nb_jstr *more = nb_jv_text(r->m, nb_jeval(r, item->a));
        s = nb_jstr_concat(r->m, s, more);
    }
    return nb_jv_str(nb_jstr_markup(r->m, s, false));
}

static struct nb_jv eval_binary(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jv a = nb_jeval(r, n->a), b = nb_jeval(r, n->b);

    r->m->line = n->line;
    return nb_jbinary(r, n->op, a, b);
}

static struct nb_jv eval_unary(struct nb_jrun *r, const struct nb_jnode *n)
{
    return nb_junary(r, n->op, nb_jeval(r, n->a));
}

static struct nb_jv eval_and(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jv a = nb_jeval(r, n->a);

    return nb_jv_true(a) ? nb_jeval(r, n->b) : a;
}

static struct nb_jv eval_or(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jv a = nb_jeval(r, n->a);

    return nb_jv_true(a) ? a : nb_jeval(r, n->b);
}

static struct nb_jv eval_not(struct nb_jrun *r, const struct nb_jnode *n)
{
    return nb_jv_bool(!nb_jv_true(nb_jeval(r, n->a)));
}

static bool compare(struct nb_jrun *r, unsigned op, struct nb_jv a, struct nb_jv b)
{
    switch (op) {
    case NB_JOP('=', '='):
        return nb_jv_eq(r->m, a, b);
    case NB_JOP('!', '='):
        return !nb_jv_eq(r->m, a, b);
    case NB_JOP_IN:
        return nb_jv_in(r->m, a, b);
    case NB_JOP_NOT_IN:
        return !nb_jv_in(r->m, a, b);
    case '<':
        return nb_jv_cmp(r->m, a, b, "<") == -1;
    case '>':
        return nb_jv_cmp(r->m, a, b, ">") == 1;
    case NB_JOP('<', '='):
        return nb_jv_cmp(r->m, a, b, "<=") <= 0;
    default: {
        int order = nb_jv_cmp(r->m, a, b, ">=");
        return order == 0 || order == 1;
    }
    }
}

static struct nb_jv eval_compare(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jv a = nb_jeval(r, n->a);

    for (const struct nb_jnode *operand = n->list; operand; operand = operand->next) {
        struct nb_jv b = nb_jeval(r, operand->a);
        r->m->line = n->line;
        if (!compare(r, operand->op, a, b))
            return nb_jv_bool(false);
        a = b;
    }
    return nb_jv_bool(true);
}

static struct nb_jv eval_cond(struct nb_jrun *r, const struct nb_jnode *n)
{
    if (nb_jv_true(nb_jeval(r, n->a)))
        return nb_jeval(r, n->b);
    if (n->c)
        return nb_jeval(r, n->c);
    return nb_jv_undefined(r->m, "the inline if-expression evaluated to false and no else section "
                                 "was defined.");
}

static struct nb_jv eval_attr(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jv v = nb_jeval(r, n->a);

    r->m->line = n->line;
    return nb_jattr(r, v, n->name);
}

static struct nb_jv eval_item(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jv v = nb_jeval(r, n->a), bound[3] = {{0}};

    if (n->b->kind != NB_JN_SLICE) {
        struct nb_jv key = nb_jeval(r, n->b);
        r->m->line = n->line;
        return nb_jitem(r, v, key);
    }
    const struct nb_jnode *part[3] = {n->b->a, n->b->b, n->b->c};
    for (size_t i = 0; i < 3; i++)
        if (part[i])
            bound[i] = nb_jeval(r, part[i]);
    r->m->line = n->line;
    return nb_jslice(r, v, bound);
}

static struct nb_jv eval_slice(struct nb_jrun *r, const struct nb_jnode *n)
{
    nb_jfail(r->m, -EINVAL, "a slice stands alone inside its brackets");
}

static struct nb_jv eval_call(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jv f = nb_jeval(r, n->a);
    struct nb_jcall c = nb_jcall_args(r, n->args, (struct nb_jv){0}, true);

    r->m->line = n->line;
    return nb_jcall_value(r, f, &c);
}

static struct nb_jv eval_applied(struct nb_jrun *r, const struct nb_jnode *n, const char *kind)
{
    struct nb_jv v = nb_jeval(r, n->a);
    struct nb_jcall c = nb_jcall_args(r, n->args, v, true);

    r->m->line = n->line;
    if (!n->entry)
        nb_jfail(r->m, -EINVAL, "no %s named '%.*s'", kind, (int)n->name->len, n->name->data);
    return nb_jbuiltin_call(r, n->entry, &c);
}

static struct nb_jv eval_filter(struct nb_jrun *r, const struct nb_jnode *n)
{
    return eval_applied(r, n, "filter");
}

static struct nb_jv eval_test(struct nb_jrun *r, const struct nb_jnode *n)
{
    return eval_applied(r, n, "test");
}

static struct nb_jv eval_captured(struct nb_jrun *r, const struct nb_jnode *n)
{
    return r->captured;
}

struct nb_jv nb_jeval(struct nb_jrun *r, const struct nb_jnode *n)
{
    static struct nb_jv (*const eval[NB_JN_EXPRESSIONS])(struct nb_jrun *,
                                                         const struct nb_jnode *) = {
        [NB_JN_CONST] = eval_const,   [NB_JN_NAME] = eval_name,
        [NB_JN_TUPLE] = eval_tuple,   [NB_JN_LIST] = eval_list,
        [NB_JN_DICT] = eval_dict,     [NB_JN_CONCAT] = eval_concat,
        [NB_JN_BINARY] = eval_binary, [NB_JN_UNARY] = eval_unary,
        [NB_JN_AND] = eval_and,       [NB_JN_OR] = eval_or,
        [NB_JN_NOT] = eval_not,       [NB_JN_COMPARE] = eval_compare,
        [NB_JN_COND] = eval_cond,     [NB_JN_ATTR] = eval_attr,
        [NB_JN_ITEM] = eval_item,     [NB_JN_SLICE] = eval_slice,
        [NB_JN_CALL] = eval_call,     [NB_JN_FILTER] = eval_filter,
        [NB_JN_TEST] = eval_test,     [NB_JN_CAPTURED] = eval_captured,
    };

    nb_jdown(r->m);
    nb_jstep(r->m, 1);
    r->m->line = n->line;
    struct nb_jv v = eval[n->kind](r, n);
    r->m->depth--;
    return v;
}
