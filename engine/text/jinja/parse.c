// Statements, and what the parser's two halves share. Tells what is wrong by the template's line.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/text/jinja/ast.h"

const struct nb_jstr nb_jname_loop = NB_JSTR_INIT("loop"), nb_jname_caller = NB_JSTR_INIT("caller"),
                     nb_jname_varargs = NB_JSTR_INIT("varargs"),
                     nb_jname_kwargs = NB_JSTR_INIT("kwargs");

// --- Tokens.

struct nb_jnode *nb_jnode_new(struct nb_jparser *p, enum nb_jnode_kind kind)
{
    struct nb_jnode *n = nb_jalloc(p->m, sizeof(*n));

    n->kind = (uint8_t)kind;
    n->line = p->t->line;
    return n;
}

struct nb_jnode *nb_jnode_of(struct nb_jparser *p, enum nb_jnode_kind kind, struct nb_jnode *a,
                             struct nb_jnode *b)
{
    struct nb_jnode *n = nb_jnode_new(p, kind);

    n->line = a->line;
    n->a = a;
    n->b = b;
    return n;
}

static void advance(struct nb_jparser *p)
{
    nb_jstep(p->m, 1);
    p->t++;
    p->m->line = p->t->line;
}

bool nb_jparse_is_op(const struct nb_jparser *p, unsigned op)
{
    return p->t->kind == NB_JT_OP && p->t->op == op;
}

bool nb_jparse_is_name(const struct nb_jparser *p, const char *name)
{
    return p->t->kind == NB_JT_NAME && nb_jstr_is(p->t->s, name);
}

bool nb_jparse_skip_op(struct nb_jparser *p, unsigned op)
{
    bool is = nb_jparse_is_op(p, op);

    if (is)
        advance(p);
    return is;
}

bool nb_jparse_skip_name(struct nb_jparser *p, const char *name)
{
    bool is = nb_jparse_is_name(p, name);

    if (is)
        advance(p);
    return is;
}

static const char *token_words(const struct nb_jparser *p, char buffer[80])
{
    static const char *const words[] = {
        [NB_JT_END] = "the template's end", [NB_JT_DATA] = "text",    [NB_JT_PRINT] = "'{{'",
        [NB_JT_PRINT_END] = "'}}'",         [NB_JT_BLOCK] = "'{%'",   [NB_JT_BLOCK_END] = "'%}'",
        [NB_JT_STRING] = "a string",        [NB_JT_INT] = "a number", [NB_JT_FLOAT] = "a number",
    };
    const struct nb_jtoken *t = p->t;

    if (t->kind == NB_JT_NAME)
        snprintf(buffer, 80, "'%.*s'", (int)(t->s->len < 60 ? t->s->len : 60), t->s->data);
    else if (t->kind == NB_JT_OP)
        snprintf(buffer, 80, "'%c%c'", t->op & 0xff, t->op >> 8);
    if (t->kind == NB_JT_OP && t->op < 0x100)
        snprintf(buffer, 80, "'%c'", t->op);
    return t->kind == NB_JT_NAME || t->kind == NB_JT_OP ? buffer : words[t->kind];
}

_Noreturn void nb_jparse_unexpected(struct nb_jparser *p, const char *wanted)
{
    char buffer[80];

    nb_jfail(p->m, -EINVAL, "expected %s, found %s", wanted, token_words(p, buffer));
}

void nb_jparse_expect_op(struct nb_jparser *p, unsigned op)
{
    char wanted[4] = {'\'', (char)op, '\'', '\0'};

    if (!nb_jparse_skip_op(p, op))
        nb_jparse_unexpected(p, wanted);
}

static void expect(struct nb_jparser *p, enum nb_jtoken_kind kind, const char *wanted)
{
    if (p->t->kind != kind)
        nb_jparse_unexpected(p, wanted);
    advance(p);
}

// The name's one copy.
static const struct nb_jstr *intern(struct nb_jparser *p, const struct nb_jstr *s)
{
    struct nb_jv key = nb_jv_str(s), *there = nb_jdict_get(p->m, p->names, key);

    if (there)
        return there->s;
    nb_jdict_set(p->m, p->names, key, key);
    return s;
}

const struct nb_jstr *nb_jparse_name(struct nb_jparser *p)
{
    if (p->t->kind != NB_JT_NAME)
        nb_jparse_unexpected(p, "a name");
    const struct nb_jstr *s = intern(p, p->t->s);
    advance(p);
    return s;
}

// --- Statements.

static struct nb_jnode *parse_until(struct nb_jparser *p, const char *const *ends);

// The rest of a tag, then statements until one of the words (up to three), which is next then.
static struct nb_jnode *parse_body(struct nb_jparser *p, const char *a, const char *b,
                                   const char *c)
{
    const char *ends[] = {a, b, c, NULL};

    nb_jparse_skip_op(p, ':');
    expect(p, NB_JT_BLOCK_END, "'%}'");
    return parse_until(p, ends);
}

static struct nb_jnode *parse_if(struct nb_jparser *p)
{
    struct nb_jnode *first = NULL, **at = &first;
    bool conditional = p->conditional;

    p->conditional = true;
    for (;;) {
        struct nb_jnode *n = *at = nb_jnode_new(p, NB_JN_IF);
        n->a = nb_jparse_tuple(p, false, NULL, false);
        n->body = parse_body(p, "elif", "else", "endif");
        at = &n->other;
        if (!nb_jparse_skip_name(p, "elif"))
            break;
    }
    if (nb_jparse_skip_name(p, "else"))
        *at = parse_body(p, "endif", NULL, NULL);
    nb_jparse_skip_name(p, "endif");
    p->conditional = conditional;
    return first;
}

static struct nb_jnode *parse_for(struct nb_jparser *p)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_FOR);

    n->a = nb_jparse_target(p, "in", false);
    if (!nb_jparse_skip_name(p, "in"))
        nb_jparse_unexpected(p, "'in'");
    n->b = nb_jparse_tuple(p, false, "recursive", false);
    if (nb_jparse_skip_name(p, "if"))
        n->c = nb_jparse_expression(p, true);
    n->recursive = nb_jparse_skip_name(p, "recursive");
    p->loops++;
    n->body = parse_body(p, "endfor", "else", NULL);
    p->loops--;
    if (nb_jparse_skip_name(p, "else"))
        n->other = parse_body(p, "endfor", NULL, NULL);
    nb_jparse_skip_name(p, "endfor");
    return n;
}

static struct nb_jnode *parse_set(struct nb_jparser *p)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_SET);

    n->a = nb_jparse_target(p, NULL, true);
    if (nb_jparse_skip_op(p, '=')) {
        n->b = nb_jparse_tuple(p, true, NULL, false);
        return n;
    }
    n->kind = NB_JN_SET_BLOCK;
    if (nb_jparse_is_op(p, '|'))
        n->b = nb_jparse_filters(p, nb_jnode_new(p, NB_JN_CAPTURED), false);
    n->body = parse_body(p, "endset", NULL, NULL);
    nb_jparse_skip_name(p, "endset");
    return n;
}

static struct nb_jnode *parse_parameters(struct nb_jparser *p)
{
    struct nb_jnode *first = NULL, **at = &first;
    bool defaults = false;

    nb_jparse_expect_op(p, '(');
    while (!nb_jparse_is_op(p, ')')) {
        if (first)
            nb_jparse_expect_op(p, ',');
        struct nb_jnode *n = *at = nb_jnode_new(p, NB_JN_NAME);
        n->name = nb_jparse_name(p);
        if (nb_jparse_skip_op(p, '='))
            n->a = nb_jparse_expression(p, true);
        else if (defaults)
            nb_jfail(p->m, -EINVAL, "non-default argument follows default argument");
        defaults = n->a != NULL;
        at = &n->next;
    }
    nb_jparse_expect_op(p, ')');
    return first;
}

// The body of a macro or a call block; loops outside are none of its.
static void parse_macro_body(struct nb_jparser *p, struct nb_jnode *n, const char *end)
{
    unsigned loops = p->loops;
    struct nb_jnode *macro = p->macro;

    p->loops = 0;
    p->macro = n;
    n->body = parse_body(p, end, NULL, NULL);
    nb_jparse_skip_name(p, end);
    p->loops = loops;
    p->macro = macro;
    if (macro) { // what is used inside is used outside
        macro->caller |= n->caller;
        macro->varargs |= n->varargs;
        macro->kwargs |= n->kwargs;
    }
}

static struct nb_jnode *parse_macro(struct nb_jparser *p)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_MACRO);

    n->name = nb_jparse_name(p);
    n->params = parse_parameters(p);
    parse_macro_body(p, n, "endmacro");
    return n;
}

static struct nb_jnode *parse_call_block(struct nb_jparser *p)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_CALL_BLOCK);

    if (nb_jparse_is_op(p, '('))
        n->params = parse_parameters(p);
    n->a = nb_jparse_expression(p, true);
    if (n->a->kind != NB_JN_CALL)
        nb_jfail(p->m, -EINVAL, "a call block needs a call");
    n->name = &nb_jname_caller;
    parse_macro_body(p, n, "endcall");
    return n;
}

static struct nb_jnode *parse_filter_block(struct nb_jparser *p)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_FILTER_BLOCK);

    n->b = nb_jparse_filters(p, nb_jnode_new(p, NB_JN_CAPTURED), true);
    n->body = parse_body(p, "endfilter", NULL, NULL);
    nb_jparse_skip_name(p, "endfilter");
    return n;
}

static struct nb_jnode *parse_with(struct nb_jparser *p)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_WITH), **at = &n->list;

    while (p->t->kind != NB_JT_BLOCK_END) {
        if (n->list)
            nb_jparse_expect_op(p, ',');
        struct nb_jnode *target = *at = nb_jparse_target(p, NULL, false);
        nb_jparse_expect_op(p, '=');
        target->b = nb_jparse_expression(p, true);
        at = &target->next;
    }
    n->body = parse_body(p, "endwith", NULL, NULL);
    nb_jparse_skip_name(p, "endwith");
    return n;
}

// The marks of what a model was trained on; transformers makes a call of it, so names stay inside.
static struct nb_jnode *parse_generation(struct nb_jparser *p)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_SCOPE);

    n->body = parse_body(p, "endgeneration", NULL, NULL);
    nb_jparse_skip_name(p, "endgeneration");
    return n;
}

static struct nb_jnode *parse_block(struct nb_jparser *p)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_SCOPE);
    const struct nb_jstr *name = nb_jparse_name(p);

    n->body = parse_body(p, "endblock", NULL, NULL);
    nb_jparse_skip_name(p, "endblock");
    if (p->t->kind == NB_JT_NAME && nb_jstr_eq(p->t->s, name))
        advance(p);
    return n;
}

static struct nb_jnode *parse_print(struct nb_jparser *p)
{
    struct nb_jnode *first = NULL, **at = &first;

    while (p->t->kind != NB_JT_BLOCK_END) {
        if (first)
            nb_jparse_expect_op(p, ',');
        struct nb_jnode *n = *at = nb_jnode_new(p, NB_JN_OUTPUT);
        n->a = nb_jparse_expression(p, true);
        at = &n->next;
    }
    return first;
}

static struct nb_jnode *jump(struct nb_jparser *p, enum nb_jnode_kind kind, const char *word)
{
    if (!p->loops)
        nb_jfail(p->m, -EINVAL, "'%s' outside of a loop", word);
    return nb_jnode_new(p, kind);
}

static struct nb_jnode *parse_break(struct nb_jparser *p)
{
    return jump(p, NB_JN_BREAK, "break");
}

static struct nb_jnode *parse_continue(struct nb_jparser *p)
{
    return jump(p, NB_JN_CONTINUE, "continue");
}

static struct nb_jnode *refuse(struct nb_jparser *p)
{
    nb_jfail(p->m, -EINVAL, "there are no other templates that it could read from");
}

static struct nb_jnode *refuse_autoescape(struct nb_jparser *p)
{
    nb_jfail(p->m, -EINVAL, "autoescape is not known: chat templates escape nothing");
}

static const struct {
    const char *word;
    struct nb_jnode *(*parse)(struct nb_jparser *p);
    bool frame; // its body has names of its own
} statements[] = {
    {"if", parse_if, false},
    {"for", parse_for, true},
    {"set", parse_set, false},
    {"macro", parse_macro, true},
    {"call", parse_call_block, true},
    {"filter", parse_filter_block, true},
    {"with", parse_with, true},
    {"generation", parse_generation, true},
    {"block", parse_block, true},
    {"print", parse_print, false},
    {"break", parse_break, false},
    {"continue", parse_continue, false},
    {"include", refuse, false},
    {"import", refuse, false},
    {"from", refuse, false},
    {"extends", refuse, false},
    {"autoescape", refuse_autoescape, false},
};

static struct nb_jnode *parse_statement(struct nb_jparser *p)
{
    char buffer[80];

    for (size_t i = 0; i < sizeof(statements) / sizeof(*statements); i++)
        if (nb_jparse_skip_name(p, statements[i].word)) {
            bool conditional = p->conditional;
            nb_jdown(p->m);
            p->conditional &= !statements[i].frame;
            struct nb_jnode *n = statements[i].parse(p);
            p->conditional = conditional;
            p->m->depth--;
            return n;
        }
    nb_jfail(p->m, -EINVAL, "unknown tag %s", token_words(p, buffer));
}

static bool is_end(const struct nb_jparser *p, const char *const *ends)
{
    for (size_t i = 0; ends && ends[i]; i++)
        if (nb_jparse_is_name(p, ends[i]))
            return true;
    return false;
}

static struct nb_jnode *parse_output(struct nb_jparser *p)
{
    struct nb_jnode *n = nb_jnode_new(p, NB_JN_OUTPUT);

    advance(p);
    n->a = nb_jparse_tuple(p, true, NULL, false);
    expect(p, NB_JT_PRINT_END, "'}}'");
    return n;
}

// ends NULL: up to the template's end.
static struct nb_jnode *parse_until(struct nb_jparser *p, const char *const *ends)
{
    struct nb_jnode *first = NULL, **at = &first;

    while (p->t->kind != NB_JT_END) {
        if (p->t->kind == NB_JT_DATA) {
            *at = nb_jnode_new(p, NB_JN_DATA);
            (*at)->value = nb_jv_str(p->t->s);
            advance(p);
        } else if (p->t->kind == NB_JT_PRINT) {
            *at = parse_output(p);
        } else {
            expect(p, NB_JT_BLOCK, "'{%'");
            if (is_end(p, ends))
                return first;
            *at = parse_statement(p);
            expect(p, NB_JT_BLOCK_END, "'%}'");
        }
        while (*at)
            at = &(*at)->next;
    }
    if (ends)
        nb_jfail(p->m, -EINVAL, "the template ends where '%s' is missing",
                 ends[1] && ends[2] ? ends[2] : ends[0]);
    return first;
}

struct nb_jnode *nb_jparse(struct nb_jmem *m, const char *text, size_t len)
{
    struct nb_jparser p = {.m = m, .t = nb_jlex(m, text, len), .names = nb_jdict_new(m)};

    intern(&p, &nb_jname_loop);
    intern(&p, &nb_jname_caller);
    intern(&p, &nb_jname_varargs);
    intern(&p, &nb_jname_kwargs);
    m->line = p.t->line;
    struct nb_jnode *body = parse_until(&p, NULL);
    if (p.unknown_kind) {
        m->line = p.unknown_line;
        nb_jfail(m, -EINVAL, "no %s named '%.*s'", p.unknown_kind, (int)p.unknown->len,
                 p.unknown->data);
    }
    return body;
}
