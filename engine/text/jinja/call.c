// Calls: arguments, macros, builtins, and whatever else a template may call.
#include <errno.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"

// --- Arguments.

static void add_star_star(struct nb_jrun *r, struct nb_jdict *kw, struct nb_jv more)
{
    if (more.kind != NB_J_DICT)
        nb_jfail(r->m, -EINVAL, "argument after ** must be a mapping, not %s", nb_jv_type(more));
    for (size_t i = 0; i < more.dict->n; i++)
        nb_jdict_set(r->m, kw, more.dict->key[i], more.dict->value[i]);
}

struct nb_jcall nb_jcall_args(struct nb_jrun *r, const struct nb_jargs *args, struct nb_jv first,
                              bool with_first)
{
    struct nb_jlist *l = nb_jlist_new(r->m);
    struct nb_jdict *kw = args->keyword || args->star_star ? nb_jdict_new(r->m) : NULL;

    if (with_first)
        nb_jlist_add(r->m, l, first);
    for (const struct nb_jnode *n = args->positional; n; n = n->next)
        nb_jlist_add(r->m, l, nb_jeval(r, n->a));
    if (args->star) {
        const struct nb_jlist *more = nb_jv_items(r->m, nb_jeval(r, args->star));
        for (size_t i = 0; i < more->n; i++)
            nb_jlist_add(r->m, l, more->v[i]);
    }
    for (const struct nb_jnode *n = args->keyword; n; n = n->next)
        nb_jdict_set(r->m, kw, nb_jv_str(n->name), nb_jeval(r, n->a));
    if (args->star_star)
        add_star_star(r, kw, nb_jeval(r, args->star_star));
    return (struct nb_jcall){l->v, l->n, kw};
}

const struct nb_jstr *nb_jparam_str(struct nb_jrun *r, const struct nb_jcall *c, size_t i,
                                    const struct nb_jstr *otherwise)
{
    if (c->v[i].kind == NB_J_ABSENT)
        return otherwise;
    if (c->v[i].kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(r->m, c->v[i]);
    if (c->v[i].kind != NB_J_STR)
        nb_jfail(r->m, -EINVAL, "a string is needed, not %s", nb_jv_type(c->v[i]));
    return c->v[i].s;
}

int64_t nb_jparam_int(struct nb_jrun *r, const struct nb_jcall *c, size_t i, int64_t otherwise)
{
    if (c->v[i].kind == NB_J_ABSENT)
        return otherwise;
    if (c->v[i].kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(r->m, c->v[i]);
    if (!nb_jv_is_int(c->v[i]))
        nb_jfail(r->m, -EINVAL, "an integer is needed, not %s", nb_jv_type(c->v[i]));
    return nb_jv_as_int(c->v[i]);
}

bool nb_jparam_true(const struct nb_jcall *c, size_t i, bool otherwise)
{
    return c->v[i].kind == NB_J_ABSENT ? otherwise : nb_jv_true(c->v[i]);
}

// --- Builtins.

const struct nb_jbuiltin *nb_jbuiltin_in(const struct nb_jbuiltin *table,
                                         const struct nb_jstr *name)
{
    for (; table->name; table++)
        if (nb_jstr_is(name, table->name))
            return table;
    return NULL;
}

// The place of a name among the parameters, from 1; 0 where it is none.
static size_t place_of(const char *params, const struct nb_jstr *name)
{
    size_t i = 1;

    for (const char *p = params; *p; i++) {
        size_t n = strcspn(p, " ");
        if (n == name->len && memcmp(p, name->data, n) == 0)
            return i;
        p += n + (p[n] == ' ');
    }
    return 0;
}

static size_t count_of(const char *params)
{
    size_t n = *params != '\0';

    for (; *params; params++)
        n += *params == ' ';
    return n;
}

static void bind_keyword(struct nb_jrun *r, const struct nb_jbuiltin *b, struct nb_jv *v,
                         struct nb_jv key, struct nb_jv value)
{
    size_t i = key.kind == NB_J_STR ? place_of(b->params, key.s) : 0;

    if (i == 0)
        nb_jfail(r->m, -EINVAL, "%s() got an unexpected keyword argument %s", b->name,
                 nb_jv_repr_c(r->m, key));
    if (v[i].kind != NB_J_ABSENT)
        nb_jfail(r->m, -EINVAL, "%s() got multiple values for argument %s", b->name,
                 nb_jv_repr_c(r->m, key));
    v[i] = value;
}

struct nb_jv nb_jbuiltin_call(struct nb_jrun *r, const struct nb_jbuiltin *b,
                              const struct nb_jcall *c)
{
    struct nb_jv v[1 + NB_JPARAMS_MAX] = {{0}};
    struct nb_jv result;

    nb_jstep(r->m, 1);
    nb_jdown(r->m); // filters call filters
    if (!b->params) {
        result = b->fn(r, c);
        r->m->depth--;
        return result;
    }
    size_t n = count_of(b->params);
    if (c->n > 1 + n)
        nb_jfail(r->m, -EINVAL, "%s() takes at most %zu arguments (%zu given)", b->name, n,
                 c->n - 1);
    for (size_t i = 0; i < c->n; i++)
        v[i] = c->v[i];
    for (size_t i = 0; c->kw && i < c->kw->n; i++)
        bind_keyword(r, b, v, c->kw->key[i], c->kw->value[i]);
    for (size_t i = 1; i <= b->required; i++)
        if (v[i].kind == NB_J_ABSENT)
            nb_jfail(r->m, -EINVAL, "%s() lacks an argument", b->name);
    const struct nb_jcall bound = {v, 1 + n, NULL};
    result = b->fn(r, &bound);
    r->m->depth--;
    return result;
}

// --- Macros.

static struct nb_jv parameter_value(struct nb_jrun *r, const struct nb_jnode *param)
{
    if (param->a)
        return nb_jeval(r, param->a);
    struct nb_jbuild b;
    nb_jbuild_init(&b, r->m);
    nb_jbuild_c(&b, "parameter '", false);
    nb_jbuild_str(&b, param->name);
    nb_jbuild_bytes(&b, "' was not provided", 19, false); // with its NUL
    return nb_jv_undefined(r->m, b.data);
}

// Binds the parameters; what keywords are left stays in `left`. Returns how many values it used.
static size_t bind_parameters(struct nb_jrun *r, const struct nb_jnode *params,
                              const struct nb_jcall *c, struct nb_jdict *left)
{
    size_t used = 1;

    for (size_t i = 0; c->kw && i < c->kw->n; i++)
        nb_jdict_set(r->m, left, c->kw->key[i], c->kw->value[i]);
    for (const struct nb_jnode *p = params; p; p = p->next) {
        struct nb_jv v = {0}, *given = nb_jdict_get(r->m, left, nb_jv_str(p->name));
        if (used < c->n)
            v = c->v[used++];
        else if (given) {
            v = *given;
            given->kind = NB_J_ABSENT; // taken
        }
        nb_jscope_set(r, p->name, v.kind == NB_J_ABSENT ? parameter_value(r, p) : v);
    }
    return used;
}

static struct nb_jdict *not_taken(struct nb_jrun *r, const struct nb_jdict *d)
{
    struct nb_jdict *left = nb_jdict_new(r->m);

    for (size_t i = 0; i < d->n; i++)
        if (d->value[i].kind != NB_J_ABSENT)
            nb_jdict_set(r->m, left, d->key[i], d->value[i]);
    return left;
}

static bool has_parameter(const struct nb_jnode *params, const struct nb_jstr *name)
{
    for (; params; params = params->next)
        if (params->name == name)
            return true;
    return false;
}

static void bind_caller(struct nb_jrun *r, struct nb_jdict *left)
{
    struct nb_jv *caller = nb_jdict_get(r->m, left, nb_jv_str(&nb_jname_caller));

    nb_jscope_set(r, &nb_jname_caller,
                  caller && caller->kind != NB_J_ABSENT && caller->kind != NB_J_NONE
                      ? *caller
                      : nb_jv_undefined(r->m, "No caller defined"));
    if (caller)
        caller->kind = NB_J_ABSENT;
}

static void bind_varargs(struct nb_jrun *r, const struct nb_jcall *c, size_t used)
{
    struct nb_jlist *rest = nb_jlist_new(r->m);

    for (size_t i = used; i < c->n; i++)
        nb_jlist_add(r->m, rest, c->v[i]);
    nb_jscope_set(r, &nb_jname_varargs, nb_jv_tuple(rest));
}

struct nb_jv nb_jmacro_call(struct nb_jrun *r, const struct nb_jmacro *macro,
                            const struct nb_jcall *c)
{
    const struct nb_jnode *n = macro->node;
    struct nb_jscope *scope = r->scope;
    struct nb_jdict *left = nb_jdict_new(r->m);

    nb_jscope_push(r, macro->scope);
    size_t used = bind_parameters(r, n->params, c, left);
    if (n->caller && !has_parameter(n->params, &nb_jname_caller))
        bind_caller(r, left);
    left = not_taken(r, left);
    if (n->kwargs)
        nb_jscope_set(r, &nb_jname_kwargs, nb_jv_dict(left));
    else if (left->n)
        nb_jfail(r->m, -EINVAL, "macro '%.*s' takes no keyword argument %s", (int)n->name->len,
                 n->name->data, nb_jv_repr_c(r->m, left->key[0]));
    if (n->varargs)
        bind_varargs(r, c, used);
    else if (used < c->n)
        nb_jfail(r->m, -EINVAL, "macro '%.*s' takes not more than %zu argument(s)",
                 (int)n->name->len, n->name->data, used - 1);
    const struct nb_jstr *s = nb_jcapture(r, n->body);
    r->scope = scope;
    return nb_jv_str(s);
}

// --- Anything.

static struct nb_jv next_of_cycler(struct nb_jcycler *cycler)
{
    struct nb_jv v = cycler->items->v[cycler->at];

    cycler->at = (cycler->at + 1) % cycler->items->n;
    return v;
}

static struct nb_jv next_of_joiner(struct nb_jjoiner *joiner)
{
    const struct nb_jstr *s = joiner->used ? joiner->separator : &nb_jstr_empty;

    joiner->used = true;
    return nb_jv_str(s);
}

struct nb_jv nb_jcall_value(struct nb_jrun *r, struct nb_jv f, const struct nb_jcall *c)
{
    switch (f.kind) {
    case NB_J_MACRO:
        return nb_jmacro_call(r, f.macro, c);
    case NB_J_FUNCTION:
        return nb_jbuiltin_call(r, &f.function->builtin, c);
    case NB_J_METHOD:
        c->v[0] = f.method->self;
        return nb_jbuiltin_call(r, f.method->method, c);
    case NB_J_LOOP:
        return nb_jloop_call(r, f.loop, c);
    case NB_J_CYCLER:
        return next_of_cycler(f.cycler);
    case NB_J_JOINER:
        return next_of_joiner(f.joiner);
    case NB_J_UNDEFINED:
        nb_jv_fail_undefined(r->m, f);
    default:
        nb_jfail(r->m, -EINVAL, "'%s' object is not callable", nb_jv_type(f));
    }
}
