// What stands behind an expression: calls, attributes and items, filters and tests.
#include <errno.h>
#include <string.h>

#include "engine/text/jinja/ast.h"
#include "engine/text/jinja/builtins.h"

// There is no filter or test of this name. That fails at once, unless a condition decides whether
// it is reached (as in Jinja: a condition outside of a loop or macro does not count for what is
// inside).
static void note_unknown(struct nb_jparser *p, const char *kind, const struct nb_jnode *n)
{
    if (p->unknown_kind || p->conditional)
        return;
    p->unknown_kind = kind;
    p->unknown = n->name;
    p->unknown_line = n->line;
}

// --- Calls.

static struct nb_jnode *parse_keyword(struct nb_jparser *p)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_NAME);

    n->name = nb_jparse_name(p);
    nb_jparse_expect_op(p, '=');
    n->a = nb_jparse_expression(p, true);
    return n;
}

static bool is_keyword(const struct nb_jparser *p)
{
    return p->t->kind == NB_JT_NAME && p->t[1].kind == NB_JT_OP && p->t[1].op == '=';
}

static void parse_argument(struct nb_jparser *p, struct nb_jargs *args, struct nb_jnode ***at,
                           struct nb_jnode ***keyword_at)
{
    struct nb_jnode *n;

    if (!args->star && !args->star_star && nb_jparse_skip_op(p, '*')) {
        args->star = nb_jparse_expression(p, true);
    } else if (!args->star_star && nb_jparse_skip_op(p, NB_JOP('*', '*'))) {
        args->star_star = nb_jparse_expression(p, true);
    } else if (!args->star_star && is_keyword(p)) {
        n = **keyword_at = parse_keyword(p);
        *keyword_at = &n->next;
    } else if (!args->star && !args->star_star && !args->keyword) {
        n = **at = nb_jnode_of(p, NB_JN_TUPLE, nb_jparse_expression(p, true), NULL);
        *at = &n->next;
    } else {
        nb_jfail(p->m, -EINVAL, "arguments of a call in an order that it cannot have");
    }
}

static struct nb_jargs *parse_args(struct nb_jparser *p)
{
    struct nb_jargs *args = nb_jalloc(p->m, sizeof(*args));
    struct nb_jnode **at = &args->positional, **keyword_at = &args->keyword;
    bool any = false;

    nb_jparse_expect_op(p, '(');
    while (!nb_jparse_is_op(p, ')')) {
        if (any)
            nb_jparse_expect_op(p, ',');
        if (any && nb_jparse_is_op(p, ')'))
            break;
        parse_argument(p, args, &at, &keyword_at);
        any = true;
    }
    nb_jparse_expect_op(p, ')');
    return args;
}

static struct nb_jnode *parse_call(struct nb_jparser *p, struct nb_jnode *a)
{
    struct nb_jnode *n = nb_jnode_of(p, NB_JN_CALL, a, NULL);

    n->line = p->t->line;
    n->args = parse_args(p);
    return n;
}

static const struct nb_jargs no_args;

// A name with dots, as filters and tests may have: none of ours does.
static const struct nb_jstr *parse_dotted(struct nb_jparser *p)
{
    static const struct nb_jstr dot = NB_JSTR_INIT(".");
    const struct nb_jstr *name = nb_jparse_name(p);

    while (nb_jparse_skip_op(p, '.')) {
        name = nb_jstr_concat(p->m, name, &dot);
        name = nb_jstr_concat(p->m, name, nb_jparse_name(p));
    }
    return name;
}

struct nb_jnode *nb_jparse_filters(struct nb_jparser *p, struct nb_jnode *a, bool inline_first)
{
    while (inline_first || nb_jparse_skip_op(p, '|')) {
        struct nb_jnode *n = nb_jnode_of(p, NB_JN_FILTER, a, NULL);
        n->line = p->t->line;
        n->name = parse_dotted(p);
        n->args = nb_jparse_is_op(p, '(') ? parse_args(p) : (struct nb_jargs *)&no_args;
        n->entry = nb_jfilter_find(n->name);
        if (!n->entry)
            note_unknown(p, "filter", n);
        inline_first = false;
        a = n;
    }
    return a;
}

static bool begins_test_argument(const struct nb_jparser *p)
{
    if (nb_jparse_is_name(p, "else") || nb_jparse_is_name(p, "or") || nb_jparse_is_name(p, "and"))
        return false;
    return p->t->kind == NB_JT_NAME || p->t->kind == NB_JT_STRING || p->t->kind == NB_JT_INT ||
           p->t->kind == NB_JT_FLOAT || nb_jparse_is_op(p, '[') || nb_jparse_is_op(p, '{');
}

static struct nb_jnode *parse_test(struct nb_jparser *p, struct nb_jnode *a)
{
    bool negated = nb_jparse_skip_name(p, "not");
    struct nb_jnode *n = nb_jnode_of(p, NB_JN_TEST, a, NULL);

    n->line = p->t->line;
    n->name = parse_dotted(p);
    n->args = (struct nb_jargs *)&no_args;
    if (nb_jparse_is_op(p, '(')) {
        n->args = parse_args(p);
    } else if (begins_test_argument(p)) {
        if (nb_jparse_is_name(p, "is"))
            nb_jfail(p->m, -EINVAL, "tests with 'is' cannot be chained");
        n->args = nb_jalloc(p->m, sizeof(*n->args));
        struct nb_jnode *argument = nb_jparse_postfix(p, nb_jparse_primary(p, false));
        n->args->positional = nb_jnode_of(p, NB_JN_TUPLE, argument, NULL);
    }
    n->entry = nb_jtest_find(n->name);
    if (!n->entry)
        note_unknown(p, "test", n);
    return negated ? nb_jnode_of(p, NB_JN_NOT, n, NULL) : n;
}

// --- Postfixes.

static struct nb_jnode *parse_slice_part(struct nb_jparser *p)
{
    bool none = nb_jparse_is_op(p, ':') || nb_jparse_is_op(p, ']') || nb_jparse_is_op(p, ',');

    return none ? NULL : nb_jparse_expression(p, true);
}

static struct nb_jnode *parse_subscript(struct nb_jparser *p)
{
    struct nb_jnode *first = parse_slice_part(p);

    if (!nb_jparse_is_op(p, ':')) {
        if (!first)
            nb_jparse_unexpected(p, "an expression");
        return first;
    }
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_SLICE);
    n->a = first;
    nb_jparse_expect_op(p, ':');
    n->b = parse_slice_part(p);
    if (nb_jparse_skip_op(p, ':'))
        n->c = parse_slice_part(p);
    return n;
}

static struct nb_jnode *parse_item(struct nb_jparser *p, struct nb_jnode *a)
{
    struct nb_jnode *n = nb_jnode_of(p, NB_JN_ITEM, a, NULL);

    n->line = p->t->line;
    nb_jparse_expect_op(p, '[');
    n->b = parse_subscript(p);
    if (nb_jparse_is_op(p, ',')) { // several are a tuple
        struct nb_jnode *tuple = nb_jnode_new(p, NB_JN_TUPLE), **at = &tuple->list;
        *at = nb_jnode_of(p, NB_JN_TUPLE, n->b, NULL);
        while (nb_jparse_skip_op(p, ',')) {
            at = &(*at)->next;
            *at = nb_jnode_of(p, NB_JN_TUPLE, parse_subscript(p), NULL);
        }
        n->b = tuple;
    }
    nb_jparse_expect_op(p, ']');
    return n;
}

static struct nb_jnode *parse_attribute(struct nb_jparser *p, struct nb_jnode *a)
{
    struct nb_jnode *n = nb_jnode_of(p, NB_JN_ATTR, a, NULL);

    n->line = p->t->line;
    nb_jparse_expect_op(p, '.');
    if (p->t->kind == NB_JT_INT) {
        n->kind = NB_JN_ITEM;
        n->b = nb_jparse_primary(p, false);
    } else {
        n->name = nb_jparse_name(p);
    }
    return n;
}

struct nb_jnode *nb_jparse_postfix(struct nb_jparser *p, struct nb_jnode *a)
{
    for (;;) {
        if (nb_jparse_is_op(p, '.'))
            a = parse_attribute(p, a);
        else if (nb_jparse_is_op(p, '['))
            a = parse_item(p, a);
        else if (nb_jparse_is_op(p, '('))
            a = parse_call(p, a);
        else
            return a;
    }
}

struct nb_jnode *nb_jparse_applied(struct nb_jparser *p, struct nb_jnode *a)
{
    for (;;) {
        if (nb_jparse_is_op(p, '|'))
            a = nb_jparse_filters(p, a, false);
        else if (nb_jparse_skip_name(p, "is"))
            a = parse_test(p, a);
        else if (nb_jparse_is_op(p, '('))
            a = parse_call(p, a);
        else
            return a;
    }
}
