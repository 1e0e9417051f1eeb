// What stands after `is`.
#include <errno.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"

static struct nb_jv t_defined(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind != NB_J_UNDEFINED);
}

static struct nb_jv t_undefined(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind == NB_J_UNDEFINED);
}

static struct nb_jv t_none(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind == NB_J_NONE);
}

static struct nb_jv t_boolean(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind == NB_J_BOOL);
}

static struct nb_jv t_true(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind == NB_J_BOOL && c->v[0].b);
}

static struct nb_jv t_false(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind == NB_J_BOOL && !c->v[0].b);
}

static struct nb_jv t_integer(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind == NB_J_INT);
}

static struct nb_jv t_float(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind == NB_J_FLOAT);
}

static struct nb_jv t_number(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(nb_jv_is_number(c->v[0]));
}

static struct nb_jv t_string(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind == NB_J_STR);
}

static struct nb_jv t_mapping(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind == NB_J_DICT);
}

static struct nb_jv t_iterable(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(nb_jv_iterable(c->v[0]));
}

static struct nb_jv t_sequence(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(nb_jv_length(r->m, c->v[0]) != SIZE_MAX && c->v[0].kind != NB_J_VIEW);
}

static struct nb_jv t_callable(struct nb_jrun *r, const struct nb_jcall *c)
{
    uint8_t k = c->v[0].kind;

    return nb_jv_bool(k == NB_J_UNDEFINED || k == NB_J_MACRO || k == NB_J_FUNCTION ||
                      k == NB_J_METHOD || k == NB_J_LOOP || k == NB_J_JOINER);
}

static struct nb_jv t_escaped(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind == NB_J_STR && c->v[0].s->markup);
}

static bool remainder_is(struct nb_jrun *r, struct nb_jv v, int64_t by, int64_t wanted)
{
    return nb_jv_eq(r->m, nb_jbinary(r, '%', v, nb_jv_int(by)), nb_jv_int(wanted));
}

static struct nb_jv t_odd(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(remainder_is(r, c->v[0], 2, 1));
}

static struct nb_jv t_even(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(remainder_is(r, c->v[0], 2, 0));
}

static struct nb_jv t_divisibleby(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(nb_jv_eq(r->m, nb_jbinary(r, '%', c->v[0], c->v[1]), nb_jv_int(0)));
}

static struct nb_jv cased(struct nb_jrun *r, const struct nb_jcall *c, const char *method)
{
    const struct nb_jstr name = {.data = method, .len = strlen(method), .chars = SIZE_MAX};
    bool refused = false;

    c->v[0] = nb_jv_str(nb_jv_text(r->m, c->v[0]));
    return nb_jmethod_find(c->v[0], &name, &refused)->fn(r, c);
}

static struct nb_jv t_lower(struct nb_jrun *r, const struct nb_jcall *c)
{
    return cased(r, c, "islower");
}

static struct nb_jv t_upper(struct nb_jrun *r, const struct nb_jcall *c)
{
    return cased(r, c, "isupper");
}

static struct nb_jv t_filter(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind == NB_J_STR && nb_jfilter_find(c->v[0].s));
}

static struct nb_jv t_test(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(c->v[0].kind == NB_J_STR && nb_jtest_find(c->v[0].s));
}

// Whether both are one object: for what has no identity here, whether they are equal.
static struct nb_jv t_sameas(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jv a = c->v[0], b = c->v[1];

    if (a.kind != b.kind)
        return nb_jv_bool(false);
    if (a.kind == NB_J_NONE || nb_jv_is_number(a))
        return nb_jv_bool(nb_jv_eq(r->m, a, b));
    return nb_jv_bool(a.list == b.list);
}

static struct nb_jv t_in(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(nb_jv_in(r->m, c->v[0], c->v[1]));
}

static struct nb_jv t_eq(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(nb_jv_eq(r->m, c->v[0], c->v[1]));
}

static struct nb_jv t_ne(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(!nb_jv_eq(r->m, c->v[0], c->v[1]));
}

static struct nb_jv t_lt(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(nb_jv_cmp(r->m, c->v[0], c->v[1], "<") == -1);
}

static struct nb_jv t_gt(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(nb_jv_cmp(r->m, c->v[0], c->v[1], ">") == 1);
}

static struct nb_jv t_le(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_bool(nb_jv_cmp(r->m, c->v[0], c->v[1], "<=") <= 0);
}

static struct nb_jv t_ge(struct nb_jrun *r, const struct nb_jcall *c)
{
    int order = nb_jv_cmp(r->m, c->v[0], c->v[1], ">=");

    return nb_jv_bool(order == 0 || order == 1);
}

const struct nb_jbuiltin *nb_jtest_find(const struct nb_jstr *name)
{
    static const struct nb_jbuiltin tests[] = {
        {"defined", t_defined, "", 0},
        {"undefined", t_undefined, "", 0},
        {"none", t_none, "", 0},
        {"boolean", t_boolean, "", 0},
        {"true", t_true, "", 0},
        {"false", t_false, "", 0},
        {"integer", t_integer, "", 0},
        {"float", t_float, "", 0},
        {"number", t_number, "", 0},
        {"string", t_string, "", 0},
        {"mapping", t_mapping, "", 0},
        {"iterable", t_iterable, "", 0},
        {"sequence", t_sequence, "", 0},
        {"callable", t_callable, "", 0},
        {"escaped", t_escaped, "", 0},
        {"odd", t_odd, "", 0},
        {"even", t_even, "", 0},
        {"divisibleby", t_divisibleby, "num", 1},
        {"lower", t_lower, "", 0},
        {"upper", t_upper, "", 0},
        {"filter", t_filter, "", 0},
        {"test", t_test, "", 0},
        {"sameas", t_sameas, "other", 1},
        {"in", t_in, "seq", 1},
        {"==", t_eq, "b", 1},
        {"eq", t_eq, "b", 1},
        {"equalto", t_eq, "b", 1},
        {"!=", t_ne, "b", 1},
        {"ne", t_ne, "b", 1},
        {"<", t_lt, "b", 1},
        {"lt", t_lt, "b", 1},
        {"lessthan", t_lt, "b", 1},
        {">", t_gt, "b", 1},
        {"gt", t_gt, "b", 1},
        {"greaterthan", t_gt, "b", 1},
        {"<=", t_le, "b", 1},
        {"le", t_le, "b", 1},
        {">=", t_ge, "b", 1},
        {"ge", t_ge, "b", 1},
        {0},
    };

    return nb_jbuiltin_in(tests, name);
}
