// Statements, scopes and loops.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"

// --- Scopes.

void nb_jscope_push(struct nb_jrun *r, struct nb_jscope *parent)
{
    struct nb_jscope *s = nb_jalloc(r->m, sizeof(*s));

    s->parent = parent;
    r->scope = s;
}

// The same scope for the next turn of a loop, empty; another one where a macro keeps it.
static void renew(struct nb_jrun *r, struct nb_jscope **scope, struct nb_jscope *parent)
{
    if (*scope && !(*scope)->kept) {
        (*scope)->n = 0;
        r->scope = *scope;
        return;
    }
    nb_jscope_push(r, parent);
    *scope = r->scope;
}

void nb_jscope_set(struct nb_jrun *r, const struct nb_jstr *name, struct nb_jv v)
{
    struct nb_jscope *s = r->scope;

    nb_jstep(r->m, 1 + s->n / 16);
    for (size_t i = 0; i < s->n; i++)
        if (s->variable[i].name == name) {
            s->variable[i].value = v;
            return;
        }
    if (s->n == s->capacity)
        s->variable = nb_jgrow(r->m, s->variable, s->n, &s->capacity, sizeof(*s->variable));
    s->variable[s->n++] = (struct nb_jvariable){name, v};
}

struct nb_jv nb_jscope_get(struct nb_jrun *r, const struct nb_jstr *name)
{
    for (const struct nb_jscope *s = r->scope; s; s = s->parent) {
        nb_jstep(r->m, 1 + s->n / 16);
        for (size_t i = 0; i < s->n; i++)
            if (s->variable[i].name == name)
                return s->variable[i].value;
    }
    const struct nb_jv *there = nb_jdict_get(r->m, r->context, nb_jv_str(name));
    if (there)
        return *there;
    const struct nb_jfunction *f = nb_jfunction_find(name);
    if (f)
        return (struct nb_jv){.kind = NB_J_FUNCTION, .function = f};
    return nb_jv_missing(r->m, (struct nb_jv){0}, nb_jv_str(name));
}

static void assign(struct nb_jrun *r, const struct nb_jnode *target, struct nb_jv v)
{
    if (target->kind == NB_JN_NAME && !target->attribute) {
        nb_jscope_set(r, target->name, v);
        return;
    }
    if (target->kind == NB_JN_NAME) {
        struct nb_jv space = nb_jscope_get(r, target->name);
        if (space.kind != NB_J_NAMESPACE)
            nb_jfail(r->m, -EINVAL, "cannot assign attribute on non-namespace object");
        nb_jdict_set(r->m, space.dict, nb_jv_str(target->a->name), v);
        return;
    }
    const struct nb_jlist *items = nb_jv_items(r->m, v);
    size_t i = 0;
    for (const struct nb_jnode *t = target->list; t; t = t->next, i++) {
        if (i == items->n)
            nb_jfail(r->m, -EINVAL, "not enough values to unpack (got %zu)", items->n);
        assign(r, t->a, items->v[i]);
    }
    if (i < items->n)
        nb_jfail(r->m, -EINVAL, "too many values to unpack (expected %zu)", i);
}

// --- Output.

static enum nb_jflow exec_data(struct nb_jrun *r, const struct nb_jnode *n)
{
    nb_jbuild_str(r->out, n->value.s);
    return NB_JFLOW_ON;
}

static enum nb_jflow exec_output(struct nb_jrun *r, const struct nb_jnode *n)
{
    nb_jbuild_str(r->out, nb_jv_text(r->m, nb_jeval(r, n->a)));
    return NB_JFLOW_ON;
}

const struct nb_jstr *nb_jcapture(struct nb_jrun *r, const struct nb_jnode *list)
{
    struct nb_jbuild *out = r->out, own;
    struct nb_jscope *scope = r->scope;

    nb_jbuild_init(&own, r->m);
    own.limit = out->limit;
    r->out = &own;
    nb_jscope_push(r, scope);
    nb_jexec(r, list);
    r->scope = scope;
    r->out = out;
    return nb_jbuild_end(&own);
}

// --- Blocks.

static enum nb_jflow exec_if(struct nb_jrun *r, const struct nb_jnode *n)
{
    while (!nb_jv_true(nb_jeval(r, n->a))) {
        if (!n->other || n->other->kind != NB_JN_IF || n->other->next)
            return nb_jexec(r, n->other);
        n = n->other;
    }
    return nb_jexec(r, n->body);
}

static enum nb_jflow exec_set(struct nb_jrun *r, const struct nb_jnode *n)
{
    assign(r, n->a, nb_jeval(r, n->b));
    return NB_JFLOW_ON;
}

static struct nb_jv filtered(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jv outer = r->captured, v = nb_jv_str(nb_jcapture(r, n->body));

    if (!n->b)
        return v;
    r->captured = v;
    v = nb_jeval(r, n->b);
    r->captured = outer;
    return v;
}

static enum nb_jflow exec_set_block(struct nb_jrun *r, const struct nb_jnode *n)
{
    assign(r, n->a, filtered(r, n));
    return NB_JFLOW_ON;
}

static enum nb_jflow exec_filter_block(struct nb_jrun *r, const struct nb_jnode *n)
{
    nb_jbuild_str(r->out, nb_jv_text(r->m, filtered(r, n)));
    return NB_JFLOW_ON;
}

static struct nb_jv macro_value(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jmacro *macro = nb_jalloc(r->m, sizeof(*macro));

    *macro = (struct nb_jmacro){n, r->scope};
    for (struct nb_jscope *s = r->scope; s && !s->kept; s = s->parent)
        s->kept = true;
    return (struct nb_jv){.kind = NB_J_MACRO, .macro = macro};
}

static enum nb_jflow exec_macro(struct nb_jrun *r, const struct nb_jnode *n)
{
    nb_jscope_set(r, n->name, macro_value(r, n));
    return NB_JFLOW_ON;
}

// The call gets the block as its `caller`.
static enum nb_jflow exec_call_block(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jv f = nb_jeval(r, n->a->a);
    struct nb_jcall c = nb_jcall_args(r, n->a->args, (struct nb_jv){0}, true);
    struct nb_jdict *kw = nb_jdict_new(r->m);

    for (size_t i = 0; c.kw && i < c.kw->n; i++)
        nb_jdict_set(r->m, kw, c.kw->key[i], c.kw->value[i]);
    nb_jdict_set(r->m, kw, nb_jv_str(&nb_jname_caller), macro_value(r, n));
    c.kw = kw;
    nb_jbuild_str(r->out, nb_jv_text(r->m, nb_jcall_value(r, f, &c)));
    return NB_JFLOW_ON;
}

static enum nb_jflow exec_with(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jscope *outer = r->scope, *inner;

    nb_jscope_push(r, outer);
    inner = r->scope;
    for (const struct nb_jnode *t = n->list; t; t = t->next) {
        r->scope = outer; // values do not see each other
        struct nb_jv v = nb_jeval(r, t->b);
        r->scope = inner;
        assign(r, t, v);
    }
    enum nb_jflow flow = nb_jexec(r, n->body);
    r->scope = outer;
    return flow;
}

static enum nb_jflow exec_scope(struct nb_jrun *r, const struct nb_jnode *n)
{
    struct nb_jscope *outer = r->scope;

    nb_jscope_push(r, outer);
    enum nb_jflow flow = nb_jexec(r, n->body);
    r->scope = outer;
    return flow;
}

// --- Loops.

// Moves `at` to the next item that the loop's test takes, or to the end.
static bool find_next(struct nb_jrun *r, struct nb_jloop *loop)
{
    struct nb_jscope *scope = r->scope;
    bool found = false;

    while (!found && loop->at < loop->items->n) {
        found = true;
        nb_jstep(r->m, 1);
        if (loop->node->c) {
            renew(r, &loop->test_scope, loop->scope);
            assign(r, loop->node->a, loop->items->v[loop->at]);
            found = nb_jv_true(nb_jeval(r, loop->node->c));
            r->scope = scope;
        }
        loop->at += !found;
    }
    return found;
}

// Of those left, the ones that the test takes; they replace the rest.
static size_t count_rest(struct nb_jrun *r, struct nb_jloop *loop)
{
    struct nb_jlist *left = nb_jlist_new(r->m);

    if (!loop->node->c)
        return loop->items->n - loop->at;
    for (; find_next(r, loop); loop->at++)
        nb_jlist_add(r->m, left, loop->items->v[loop->at]);
    struct nb_jnode *untested = nb_jalloc(r->m, sizeof(*untested));
    *untested = *loop->node;
    untested->c = NULL;
    loop->node = untested;
    loop->items = left;
    loop->at = 0;
    return left->n;
}

struct nb_jv nb_jloop_attr(struct nb_jrun *r, struct nb_jloop *loop, const struct nb_jstr *name)
{
    if (nb_jstr_is(name, "index"))
        return nb_jv_int(loop->index0 + 1);
    if (nb_jstr_is(name, "index0"))
        return nb_jv_int(loop->index0);
    if (nb_jstr_is(name, "first"))
        return nb_jv_bool(loop->index0 == 0);
    if (nb_jstr_is(name, "last"))
        return nb_jv_bool(!find_next(r, loop));
    if (nb_jstr_is(name, "length"))
        return nb_jv_int(loop->index0 + 1 + (int64_t)count_rest(r, loop));
    if (nb_jstr_is(name, "revindex"))
        return nb_jv_int((int64_t)count_rest(r, loop) + 1);
    if (nb_jstr_is(name, "revindex0"))
        return nb_jv_int((int64_t)count_rest(r, loop));
    if (nb_jstr_is(name, "depth"))
        return nb_jv_int(loop->depth + 1);
    if (nb_jstr_is(name, "depth0"))
        return nb_jv_int(loop->depth);
    if (nb_jstr_is(name, "previtem"))
        return loop->index0 ? loop->before : nb_jv_undefined(r->m, "there is no previous item");
    if (nb_jstr_is(name, "nextitem"))
        return find_next(r, loop) ? loop->items->v[loop->at]
                                  : nb_jv_undefined(r->m, "there is no next item");
    return (struct nb_jv){0};
}

// Whether there was any item.
static bool go_through(struct nb_jrun *r, const struct nb_jnode *n, struct nb_jv iterable,
                       unsigned depth)
{
    struct nb_jscope *outer = r->scope, *inner = NULL;
    struct nb_jloop *loop = nb_jalloc(r->m, sizeof(*loop));
    enum nb_jflow flow = NB_JFLOW_ON;

    *loop = (struct nb_jloop){.items = nb_jv_items(r->m, iterable),
                              .node = n,
                              .scope = outer,
                              .index0 = -1,
                              .depth = depth};
    while (flow != NB_JFLOW_BREAK && find_next(r, loop)) {
        loop->before = loop->current;
        loop->current = loop->items->v[loop->at++];
        loop->index0++;
        renew(r, &inner, outer);
        nb_jscope_set(r, &nb_jname_loop, (struct nb_jv){.kind = NB_J_LOOP, .loop = loop});
        assign(r, n->a, loop->current);
        flow = nb_jexec(r, n->body);
    }
    r->scope = outer;
    return loop->index0 >= 0;
}

static enum nb_jflow run_loop(struct nb_jrun *r, const struct nb_jnode *n, struct nb_jv iterable,
                              unsigned depth)
{
    enum nb_jflow flow = NB_JFLOW_ON;

    if (!go_through(r, n, iterable, depth) && n->other) {
        struct nb_jscope *outer = r->scope;
        nb_jscope_push(r, outer);
        flow = nb_jexec(r, n->other);
        r->scope = outer;
    }
    return flow;
}

static enum nb_jflow exec_for(struct nb_jrun *r, const struct nb_jnode *n)
{
    return run_loop(r, n, nb_jeval(r, n->b), 0);
}

// loop(items), in a recursive loop: the body for other items, as text.
struct nb_jv nb_jloop_call(struct nb_jrun *r, struct nb_jloop *loop, const struct nb_jcall *c)
{
    struct nb_jbuild *out = r->out, own;
    struct nb_jscope *scope = r->scope;

    if (!loop->node->recursive)
        nb_jfail(r->m, -EINVAL,
                 "The loop must have the 'recursive' marker to be called recursively.");
    if (c->n != 2 || c->kw)
        nb_jfail(r->m, -EINVAL, "loop() takes one argument");
    nb_jbuild_init(&own, r->m);
    own.limit = out->limit;
    r->out = &own;
    r->scope = loop->scope;
    run_loop(r, loop->node, c->v[1], loop->depth + 1);
    r->scope = scope;
    r->out = out;
    return nb_jv_str(nb_jbuild_end(&own));
}

static enum nb_jflow exec_break(struct nb_jrun *r, const struct nb_jnode *n)
{
    return NB_JFLOW_BREAK;
}

static enum nb_jflow exec_continue(struct nb_jrun *r, const struct nb_jnode *n)
{
    return NB_JFLOW_CONTINUE;
}

enum nb_jflow nb_jexec(struct nb_jrun *r, const struct nb_jnode *list)
{
    static enum nb_jflow (*const exec[NB_JN_KINDS])(struct nb_jrun *, const struct nb_jnode *) = {
        [NB_JN_DATA] = exec_data,
        [NB_JN_OUTPUT] = exec_output,
        [NB_JN_IF] = exec_if,
        [NB_JN_FOR] = exec_for,
        [NB_JN_SET] = exec_set,
        [NB_JN_SET_BLOCK] = exec_set_block,
        [NB_JN_MACRO] = exec_macro,
        [NB_JN_CALL_BLOCK] = exec_call_block,
        [NB_JN_FILTER_BLOCK] = exec_filter_block,
        [NB_JN_WITH] = exec_with,
        [NB_JN_SCOPE] = exec_scope,
        [NB_JN_BREAK] = exec_break,
        [NB_JN_CONTINUE] = exec_continue,
    };
    enum nb_jflow flow = NB_JFLOW_ON;

    nb_jdown(r->m);
    for (; list && flow == NB_JFLOW_ON; list = list->next) {
        nb_jstep(r->m, 1);
        r->m->line = list->line;
        flow = exec[list->kind](r, list);
    }
    r->m->depth--;
    return flow;
}
