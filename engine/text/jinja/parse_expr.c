// Expressions, by Jinja's ladder of precedence.
#include <errno.h>
#include <string.h>

#include "engine/text/jinja/ast.h"

static struct nb_jnode *parse_unary(struct nb_jparser *p, bool with_filters);

// --- Primaries.

static struct nb_jnode *constant(struct nb_jparser *p, struct nb_jv v)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_CONST);

    n->value = v;
    return n;
}

static void note_special_names(struct nb_jparser *p, const struct nb_jstr *name)
{
    if (!p->macro)
        return;
    p->macro->caller |= nb_jstr_is(name, "caller");
    p->macro->varargs |= nb_jstr_is(name, "varargs");
    p->macro->kwargs |= nb_jstr_is(name, "kwargs");
}

static struct nb_jnode *parse_name(struct nb_jparser *p, bool with_attribute)
{
    static const struct {
        const char *name;
        struct nb_jv value;
    } constants[] = {
        {"true", {.kind = NB_J_BOOL, .b = true}},
        {"True", {.kind = NB_J_BOOL, .b = true}},
        {"false", {.kind = NB_J_BOOL, .b = false}},
        {"False", {.kind = NB_J_BOOL, .b = false}},
        {"none", {.kind = NB_J_NONE}},
        {"None", {.kind = NB_J_NONE}},
    };

    for (size_t i = 0; i < sizeof(constants) / sizeof(*constants); i++)
        if (nb_jparse_is_name(p, constants[i].name)) {
            struct nb_jnode *n = constant(p, constants[i].value);
            nb_jparse_name(p);
            return n;
        }
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_NAME);
    n->name = nb_jparse_name(p);
    note_special_names(p, n->name);
    if (with_attribute && nb_jparse_skip_op(p, '.')) {
        n->attribute = true;
        n->a = nb_jnode_new(p, NB_JN_NAME);
        n->a->name = nb_jparse_name(p);
    }
    return n;
}

// Strings side by side are one.
static struct nb_jnode *parse_string(struct nb_jparser *p)
{
    struct nb_jnode *n = constant(p, nb_jv_str(p->t->s));

    while ((++p->t)->kind == NB_JT_STRING)
        n->value.s = nb_jstr_concat(p->m, n->value.s, p->t->s);
    struct nb_jstr *s = nb_jalloc(p->m, sizeof(*s));
    *s = *n->value.s;
    s->tail = NULL; // renderings share it and add nothing to it in place
    s->chars = nb_jstr_chars(p->m, s);
    n->value.s = s;
    return n;
}

static void add_node(struct nb_jnode **first, struct nb_jnode **last, struct nb_jnode *n)
{
    if (*last)
        (*last)->next = n;
    else
        *first = n;
    *last = n;
}

static struct nb_jnode *parse_list(struct nb_jparser *p)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_LIST), *first = NULL, *last = NULL;

    nb_jparse_expect_op(p, '[');
    while (!nb_jparse_is_op(p, ']')) {
        if (first)
            nb_jparse_expect_op(p, ',');
        if (nb_jparse_is_op(p, ']'))
            break;
        struct nb_jnode *item = nb_jparse_expression(p, true);
        add_node(&first, &last, nb_jnode_of(p, NB_JN_TUPLE, item, NULL));
    }
    nb_jparse_expect_op(p, ']');
    n->list = first;
    return n;
}

static struct nb_jnode *parse_dict(struct nb_jparser *p)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_DICT), *first = NULL, **at = &first;

    nb_jparse_expect_op(p, '{');
    while (!nb_jparse_is_op(p, '}')) {
        if (first)
            nb_jparse_expect_op(p, ',');
        if (nb_jparse_is_op(p, '}'))
            break;
        *at = nb_jnode_of(p, NB_JN_TUPLE, nb_jparse_expression(p, true), NULL);
        nb_jparse_expect_op(p, ':');
        (*at)->b = nb_jparse_expression(p, true);
        at = &(*at)->next;
    }
    nb_jparse_expect_op(p, '}');
    n->list = first;
    return n;
}

static struct nb_jnode *parse_number(struct nb_jparser *p)
{
    struct nb_jnode *n =
        constant(p, p->t->kind == NB_JT_INT ? nb_jv_int(p->t->i) : nb_jv_float(p->t->f));

    p->t++;
    return n;
}

struct nb_jnode *nb_jparse_primary(struct nb_jparser *p, bool with_attribute)
{
    struct nb_jnode *n = NULL;

    nb_jdown(p->m);
    if (p->t->kind == NB_JT_NAME)
        n = parse_name(p, with_attribute);
    else if (p->t->kind == NB_JT_STRING)
        n = parse_string(p);
    else if (p->t->kind == NB_JT_INT || p->t->kind == NB_JT_FLOAT)
        n = parse_number(p);
    else if (nb_jparse_is_op(p, '['))
        n = parse_list(p);
    else if (nb_jparse_is_op(p, '{'))
        n = parse_dict(p);
    else if (nb_jparse_skip_op(p, '(')) {
        n = nb_jparse_tuple(p, true, NULL, true);
        nb_jparse_expect_op(p, ')');
    } else
        nb_jparse_unexpected(p, "an expression");
    p->m->depth--;
    return n;
}

// --- The ladder.

static struct nb_jnode *parse_unary(struct nb_jparser *p, bool with_filters)
{
    struct nb_jnode *n;

    nb_jdown(p->m);
    if (nb_jparse_is_op(p, '-') || nb_jparse_is_op(p, '+')) {
        unsigned op = p->t->op;
        nb_jparse_skip_op(p, op);
        n = nb_jnode_of(p, NB_JN_UNARY, parse_unary(p, false), NULL);
        n->op = (uint16_t)op;
    } else {
        n = nb_jparse_primary(p, false);
    }
    n = nb_jparse_postfix(p, n);
    if (with_filters)
        n = nb_jparse_applied(p, n);
    p->m->depth--;
    return n;
}

static struct nb_jnode *binary(struct nb_jparser *p, unsigned op, struct nb_jnode *a,
                               struct nb_jnode *b)
{
    struct nb_jnode *n = nb_jnode_of(p, NB_JN_BINARY, a, b);

    n->op = (uint16_t)op;
    return n;
}

static struct nb_jnode *parse_power(struct nb_jparser *p)
{
    struct nb_jnode *n = parse_unary(p, true);

    while (nb_jparse_skip_op(p, NB_JOP('*', '*')))
        n = binary(p, NB_JOP('*', '*'), n, parse_unary(p, true));
    return n;
}

static struct nb_jnode *parse_product(struct nb_jparser *p)
{
    static const unsigned ops[] = {'*', '/', NB_JOP('/', '/'), '%'};
    struct nb_jnode *n = parse_power(p);

    for (size_t i = 0; i < 4; i++)
        if (nb_jparse_skip_op(p, ops[i])) {
            n = binary(p, ops[i], n, parse_power(p));
            i = (size_t)-1; // again from the first
        }
    return n;
}

static struct nb_jnode *parse_concat(struct nb_jparser *p)
{
    struct nb_jnode *first = parse_product(p);

    if (!nb_jparse_is_op(p, '~'))
        return first;
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_CONCAT), **at = &n->list;
    *at = nb_jnode_of(p, NB_JN_TUPLE, first, NULL);
    while (nb_jparse_skip_op(p, '~')) {
        at = &(*at)->next;
        *at = nb_jnode_of(p, NB_JN_TUPLE, parse_product(p), NULL);
    }
    return n;
}

static struct nb_jnode *parse_sum(struct nb_jparser *p)
{
    struct nb_jnode *n = parse_concat(p);

    for (;;) {
        if (nb_jparse_skip_op(p, '+'))
            n = binary(p, '+', n, parse_concat(p));
        else if (nb_jparse_skip_op(p, '-'))
            n = binary(p, '-', n, parse_concat(p));
        else
            return n;
    }
}

// The operator of comparison here, taken, or 0.
static unsigned skip_comparison(struct nb_jparser *p)
{
    static const unsigned ops[] = {NB_JOP('=', '='), NB_JOP('!', '='), '<', '>',
                                   NB_JOP('<', '='), NB_JOP('>', '=')};

    for (size_t i = 0; i < sizeof(ops) / sizeof(*ops); i++)
        if (nb_jparse_skip_op(p, ops[i]))
            return ops[i];
    if (nb_jparse_skip_name(p, "in"))
        return NB_JOP_IN;
    if (nb_jparse_is_name(p, "not") && p->t[1].kind == NB_JT_NAME && nb_jstr_is(p->t[1].s, "in")) {
        p->t += 2;
        return NB_JOP_NOT_IN;
    }
    return 0;
}

static struct nb_jnode *parse_comparison(struct nb_jparser *p)
{
    struct nb_jnode *first = parse_sum(p), *operands = NULL, **at = &operands;

    for (unsigned op; (op = skip_comparison(p));) {
        *at = nb_jnode_of(p, NB_JN_TUPLE, parse_sum(p), NULL);
        (*at)->op = (uint16_t)op;
        at = &(*at)->next;
    }
    if (!operands)
        return first;
    struct nb_jnode *n = nb_jnode_of(p, NB_JN_COMPARE, first, NULL);
    n->list = operands;
    return n;
}

static struct nb_jnode *parse_not(struct nb_jparser *p)
{
    if (!nb_jparse_skip_name(p, "not"))
        return parse_comparison(p);
    nb_jdown(p->m);
    struct nb_jnode *n = nb_jnode_of(p, NB_JN_NOT, parse_not(p), NULL);
    p->m->depth--;
    return n;
}

static struct nb_jnode *parse_and(struct nb_jparser *p)
{
    struct nb_jnode *n = parse_not(p);

    while (nb_jparse_skip_name(p, "and"))
        n = nb_jnode_of(p, NB_JN_AND, n, parse_not(p));
    return n;
}

static struct nb_jnode *parse_or(struct nb_jparser *p)
{
    struct nb_jnode *n = parse_and(p);

    while (nb_jparse_skip_name(p, "or"))
        n = nb_jnode_of(p, NB_JN_OR, n, parse_and(p));
    return n;
}

struct nb_jnode *nb_jparse_expression(struct nb_jparser *p, bool with_condition)
{
    const char *unknown_kind = p->unknown_kind;

    nb_jdown(p->m);
    struct nb_jnode *n = parse_or(p);
    while (with_condition && nb_jparse_skip_name(p, "if")) {
        n = nb_jnode_of(p, NB_JN_COND, parse_or(p), n);
        if (nb_jparse_skip_name(p, "else"))
            n->c = nb_jparse_expression(p, true);
        p->unknown_kind = unknown_kind;
    }
    p->m->depth--;
    return n;
}

// --- Tuples and targets.

static bool is_tuple_end(const struct nb_jparser *p, const char *end)
{
    return p->t->kind == NB_JT_PRINT_END || p->t->kind == NB_JT_BLOCK_END ||
           nb_jparse_is_op(p, ')') || (end && nb_jparse_is_name(p, end));
}

static struct nb_jnode *tuple_of(struct nb_jparser *p, bool with_condition, const char *end,
                                 bool parenthesized, bool target, bool with_attribute)
{
    struct nb_jnode *tuple = nb_jnode_new(p, NB_JN_TUPLE), **at = &tuple->list;
    bool comma = false;

    while (!is_tuple_end(p, end)) {
        struct nb_jnode *n =
            target ? nb_jparse_primary(p, with_attribute) : nb_jparse_expression(p, with_condition);
        if (!comma && !nb_jparse_is_op(p, ','))
            return n;
        struct nb_jnode *item = nb_jnode_of(p, NB_JN_TUPLE, n, NULL);
        *at = item;
        at = &item->next;
        comma = nb_jparse_skip_op(p, ',');
        if (!comma)
            return tuple;
    }
    if (!comma && !parenthesized)
        nb_jparse_unexpected(p, "an expression");
    return tuple;
}

struct nb_jnode *nb_jparse_tuple(struct nb_jparser *p, bool with_condition, const char *end,
                                 bool parenthesized)
{
    return tuple_of(p, with_condition, end, parenthesized, false, false);
}

static void check_target(struct nb_jparser *p, const struct nb_jnode *n)
{
    if (n->kind == NB_JN_TUPLE)
        for (const struct nb_jnode *item = n->list; item; item = item->next)
            check_target(p, item->a);
    else if (n->kind != NB_JN_NAME)
        nb_jfail(p->m, -EINVAL, "only names, and attributes of a namespace, can be assigned to");
}

struct nb_jnode *nb_jparse_target(struct nb_jparser *p, const char *end, bool with_attribute)
{
    struct nb_jnode *n = tuple_of(p, false, end, false, true, with_attribute);

    check_target(p, n);
    return n;
}
