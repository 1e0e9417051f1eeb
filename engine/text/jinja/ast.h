// A parsed template: nodes in an arena that many renderings may read at once.
#pragma once

#include "engine/text/jinja/lex.h"
#include "engine/text/jinja/value.h"

enum nb_jnode_kind {
    // Expressions: what they use of a node's fields.
    NB_JN_CONST,    // value
    NB_JN_NAME,     // name
    NB_JN_TUPLE,    // list
    NB_JN_LIST,     // list
    NB_JN_DICT,     // list of keys, each with its value in b
    NB_JN_CONCAT,   // list
    NB_JN_BINARY,   // a op b
    NB_JN_UNARY,    // op a
    NB_JN_AND,      // a and b
    NB_JN_OR,       // a or b
    NB_JN_NOT,      // not a
    NB_JN_COMPARE,  // a, then list of operands with op
    NB_JN_COND,     // b if a else c (or NULL)
    NB_JN_ATTR,     // a.name
    NB_JN_ITEM,     // a[b]
    NB_JN_SLICE,    // [a:b:c], inside an item alone
    NB_JN_CALL,     // a(args)
    NB_JN_FILTER,   // a|name(args)
    NB_JN_TEST,     // a is name(args)
    NB_JN_CAPTURED, // what a filter or set block has captured
    NB_JN_EXPRESSIONS,
    // Statements.
    NB_JN_DATA = NB_JN_EXPRESSIONS, // value
    NB_JN_OUTPUT,                   // a
    NB_JN_IF,                       // a, body, other (an NB_JN_IF alone is an elif)
    NB_JN_FOR,                      // target a, iterable b, test c, body, other
    NB_JN_SET,                      // target a, value b
    NB_JN_SET_BLOCK,                // target a, filters b (or NULL), body
    NB_JN_MACRO,                    // name, params, body
    NB_JN_CALL_BLOCK,               // call a, params, body
    NB_JN_FILTER_BLOCK,             // filters b, body
    NB_JN_WITH,                     // list of targets, each with its value in b; body
    NB_JN_SCOPE,                    // body, in a scope of its own
    NB_JN_BREAK,
    NB_JN_CONTINUE,
    NB_JN_KINDS,
};

// Operators of comparison that are words.
#define NB_JOP_IN     ((unsigned)'i')
#define NB_JOP_NOT_IN ((unsigned)'n')

struct nb_jargs {
    struct nb_jnode *positional; // list
    struct nb_jnode *keyword;    // list; each has a name, and its value in a
    struct nb_jnode *star, *star_star;
};

struct nb_jnode {
    uint8_t kind;
    uint16_t op;
    uint32_t line;
    // An attribute target (of a namespace) where a name is a target; a loop that is recursive; a
    // macro that uses `caller`, `varargs` or `kwargs`.
    bool attribute, recursive, caller, varargs, kwargs;
    const struct nb_jstr *name;
    struct nb_jv value;
    struct nb_jnode *a, *b, *c;
    struct nb_jnode *list, *next;
    struct nb_jnode *body, *other;
    struct nb_jnode *params; // list of names; each has its default in a
    struct nb_jargs *args;
    const void *entry; // of the table of filters or tests; NULL: no such, which fails when reached
};

struct nb_jmacro {
    const struct nb_jnode *node;
    struct nb_jscope *scope; // where it was defined
};

// Names are interned: equal ones are the same pointer, and these are those.
extern const struct nb_jstr nb_jname_loop, nb_jname_caller, nb_jname_varargs, nb_jname_kwargs;

struct nb_jparser {
    struct nb_jmem *m;
    struct nb_jtoken *t; // the current one
    struct nb_jdict *names;
    unsigned loops; // that enclose it, within the same macro
    // An unknown filter or test, which fails at once unless it stands right in a condition.
    bool conditional;
    const char *unknown_kind;
    const struct nb_jstr *unknown;
    unsigned unknown_line;
    struct nb_jnode *macro; // the innermost
};

// The statements of a template. `m` keeps all of it.
struct nb_jnode *nb_jparse(struct nb_jmem *m, const char *text, size_t len);

// Shared by the parser's parts: statements in parse.c, expressions in parse_expr.c, what stands
// behind them in parse_postfix.c.
struct nb_jnode *nb_jnode_new(struct nb_jparser *p, enum nb_jnode_kind kind)
    __attribute__((returns_nonnull));
// One with operands, and the line of the first.
struct nb_jnode *nb_jnode_of(struct nb_jparser *p, enum nb_jnode_kind kind, struct nb_jnode *a,
                             struct nb_jnode *b) __attribute__((returns_nonnull));
bool nb_jparse_is_op(const struct nb_jparser *p, unsigned op);
bool nb_jparse_is_name(const struct nb_jparser *p, const char *name);
bool nb_jparse_skip_op(struct nb_jparser *p, unsigned op);
bool nb_jparse_skip_name(struct nb_jparser *p, const char *name);
void nb_jparse_expect_op(struct nb_jparser *p, unsigned op);
const struct nb_jstr *nb_jparse_name(struct nb_jparser *p);
_Noreturn void nb_jparse_unexpected(struct nb_jparser *p, const char *wanted);
struct nb_jnode *nb_jparse_expression(struct nb_jparser *p, bool with_condition);
// `end`: a word that may end it ("in"), or NULL.
struct nb_jnode *nb_jparse_tuple(struct nb_jparser *p, bool with_condition, const char *end,
                                 bool parenthesized);
struct nb_jnode *nb_jparse_primary(struct nb_jparser *p, bool with_attribute);
// Attributes, items and calls after `a`; filters, tests and calls after it.
struct nb_jnode *nb_jparse_postfix(struct nb_jparser *p, struct nb_jnode *a);
struct nb_jnode *nb_jparse_applied(struct nb_jparser *p, struct nb_jnode *a);
struct nb_jnode *nb_jparse_target(struct nb_jparser *p, const char *end, bool with_attribute);
// Filters after `a`; `inline_first`: the first without its bar.
struct nb_jnode *nb_jparse_filters(struct nb_jparser *p, struct nb_jnode *a, bool inline_first);
