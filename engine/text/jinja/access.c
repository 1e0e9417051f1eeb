// Attributes, items and slices, by Jinja's and Python's rules.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"

// --- Attributes.

static struct nb_jv unsafe(struct nb_jrun *r, struct nb_jv v, const struct nb_jstr *name)
{
    struct nb_jbuild b;

    nb_jbuild_init(&b, r->m);
    nb_jbuild_c(&b, "access to attribute ", false);
    nb_jv_repr(&b, nb_jv_str(name));
    nb_jbuild_c(&b, " of '", false);
    nb_jbuild_c(&b, nb_jv_type(v), false);
    nb_jbuild_bytes(&b, "' object is unsafe.", 20, false); // with its NUL
    return nb_jv_undefined(r->m, b.data);
}

// Python's own names of every object, which the sandbox keeps for itself.
static bool is_internal(const struct nb_jstr *name)
{
    static const char *const names[] = {"__class__", "__init__", "__dict__", "__doc__",   "__eq__",
                                        "__hash__",  "__str__",  "__repr__", "__module__"};

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (nb_jstr_is(name, names[i]))
            return true;
    return false;
}

static struct nb_jv attr_named(struct nb_jv v, const struct nb_jstr *name)
{
    for (size_t i = 0; v.list->names && i < v.list->n; i++)
        if (nb_jstr_is(name, v.list->names[i]))
            return v.list->v[i];
    return (struct nb_jv){0};
}

static struct nb_jv attr_macro(struct nb_jrun *r, const struct nb_jmacro *macro,
                               const struct nb_jstr *name)
{
    struct nb_jlist *l = nb_jlist_new(r->m);

    if (nb_jstr_is(name, "name"))
        return nb_jv_str(macro->node->name);
    if (!nb_jstr_is(name, "arguments"))
        return (struct nb_jv){0};
    for (const struct nb_jnode *p = macro->node->params; p; p = p->next)
        nb_jlist_add(r->m, l, nb_jv_str(p->name));
    return nb_jv_tuple(l);
}

// Python's getattr; NB_J_ABSENT where there is no such attribute.
static struct nb_jv python_attr(struct nb_jrun *r, struct nb_jv v, const struct nb_jstr *name)
{
    struct nb_jv found = {0}, *item;
    bool refused = false;

    if (v.kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(r->m, v);
    if (v.kind == NB_J_NAMESPACE && (item = nb_jdict_get(r->m, v.dict, nb_jv_str(name))))
        return *item;
    if (v.kind == NB_J_LOOP)
        found = nb_jloop_attr(r, v.loop, name);
    else if (v.kind == NB_J_MACRO)
        found = attr_macro(r, v.macro, name);
    else if (v.kind == NB_J_TUPLE)
        found = attr_named(v, name);
    if (found.kind != NB_J_ABSENT)
        return found;
    const struct nb_jbuiltin *method = nb_jmethod_find(v, name, &refused);
    if (refused || is_internal(name))
        return unsafe(r, v, name);
    if (!method)
        return found;
    struct nb_jbound *bound = nb_jalloc(r->m, sizeof(*bound));
    *bound = (struct nb_jbound){method, v};
    return (struct nb_jv){.kind = NB_J_METHOD, .method = bound};
}

// --- Items.

static struct nb_jv list_item(struct nb_jv v, struct nb_jv key)
{
    int64_t i = nb_jv_is_int(key) ? nb_jv_as_int(key) : INT64_MAX, n = (int64_t)v.list->n;

    i += i < 0 ? n : 0;
    return i >= 0 && i < n ? v.list->v[i] : (struct nb_jv){0};
}

static struct nb_jv str_item(struct nb_jrun *r, const struct nb_jstr *s, struct nb_jv key)
{
    int64_t i = nb_jv_is_int(key) ? nb_jv_as_int(key) : INT64_MAX, n;

    n = (int64_t)nb_jstr_chars(r->m, s);
    i += i < 0 ? n : 0;
    if (i < 0 || i >= n)
        return (struct nb_jv){0};
    size_t at = nb_jstr_offset(r->m, s, (size_t)i);
    return nb_jv_str(nb_jstr_part(r->m, s, at, nb_jstr_step(s, at)));
}

static struct nb_jv range_item(const struct nb_jrange *range, struct nb_jv key)
{
    int64_t i = nb_jv_is_int(key) ? nb_jv_as_int(key) : INT64_MAX, n = (int64_t)range->n;

    i += i < 0 ? n : 0;
    return i >= 0 && i < n ? nb_jv_int(range->start + i * range->step) : (struct nb_jv){0};
}

// Python's v[key]; NB_J_ABSENT where it raises.
static struct nb_jv python_item(struct nb_jrun *r, struct nb_jv v, struct nb_jv key)
{
    struct nb_jv *there;

    switch (v.kind) {
    case NB_J_UNDEFINED:
        nb_jv_fail_undefined(r->m, v);
    case NB_J_DICT:
        there = nb_jv_hashable(r->m, key) ? nb_jdict_get(r->m, v.dict, key) : NULL;
        return there ? *there : (struct nb_jv){0};
    case NB_J_LIST:
    case NB_J_TUPLE:
        return list_item(v, key);
    case NB_J_STR:
        return str_item(r, v.s, key);
    case NB_J_RANGE:
        return range_item(v.range, key);
    default:
        return (struct nb_jv){0};
    }
}

struct nb_jv nb_jattr(struct nb_jrun *r, struct nb_jv v, const struct nb_jstr *name)
{
    struct nb_jv found = python_attr(r, v, name);

    if (found.kind == NB_J_ABSENT)
        found = python_item(r, v, nb_jv_str(name));
    return found.kind == NB_J_ABSENT ? nb_jv_missing(r->m, v, nb_jv_str(name)) : found;
}

struct nb_jv nb_jitem(struct nb_jrun *r, struct nb_jv v, struct nb_jv key)
{
    struct nb_jv found = python_item(r, v, key);

    if (found.kind == NB_J_ABSENT && key.kind == NB_J_STR)
        found = python_attr(r, v, key.s);
    return found.kind == NB_J_ABSENT ? nb_jv_missing(r->m, v, key) : found;
}

// "a.b.0" or a number; the values that filters with `attribute` look at.
struct nb_jv nb_jattribute(struct nb_jrun *r, struct nb_jv v, struct nb_jv path)
{
    if (path.kind != NB_J_STR)
        return nb_jitem(r, v, path);
    const struct nb_jstr *s = path.s, dot = NB_JSTR_INIT(".");
    for (size_t at = 0, end; at <= s->len; at = end + 1) {
        end = nb_jstr_find(r->m, s, &dot, at, s->len);
        end = end == SIZE_MAX ? s->len : end;
        const struct nb_jstr *part = nb_jstr_part(r->m, s, at, end - at);
        int64_t number = 0;
        size_t i = 0;
        for (; i < part->len && i < 18 && part->data[i] >= '0' && part->data[i] <= '9'; i++)
            number = number * 10 + (part->data[i] - '0');
        bool is_number = part->len && i == part->len;
        v = nb_jitem(r, v, is_number ? nb_jv_int(number) : nb_jv_str(part));
    }
    return v;
}

// --- Slices.

static int64_t bound_of(struct nb_jrun *r, struct nb_jv v, int64_t otherwise)
{
    if (v.kind == NB_J_ABSENT || v.kind == NB_J_NONE)
        return otherwise;
    if (!nb_jv_is_int(v))
        nb_jfail(r->m, -EINVAL,
                 "slice indices must be integers or None or have an __index__ method");
    return nb_jv_as_int(v);
}

// A bound as Python clips it to a sequence of n items.
static int64_t clip(int64_t i, int64_t n, int64_t step)
{
    if (i < 0) {
        i = i < -n ? -1 : i + n;
        return i < 0 ? (step < 0 ? -1 : 0) : i;
    }
    return i >= n ? (step < 0 ? n - 1 : n) : i;
}

struct span {
    int64_t start, stop, step;
    size_t n;
};

static struct span span_of(struct nb_jrun *r, const struct nb_jv bound[3], size_t length)
{
    int64_t n = (int64_t)length;
    struct span s = {.step = bound_of(r, bound[2], 1)};

    if (s.step == 0)
        nb_jfail(r->m, -EINVAL, "slice step cannot be zero");
    if (s.step < -n - 1)
        s.step = -n - 1; // as far as one step can matter
    if (s.step > n + 1)
        s.step = n + 1;
    bool no_start = bound[0].kind == NB_J_ABSENT || bound[0].kind == NB_J_NONE;
    bool no_stop = bound[1].kind == NB_J_ABSENT || bound[1].kind == NB_J_NONE;
    s.start = no_start ? (s.step < 0 ? n - 1 : 0) : clip(bound_of(r, bound[0], 0), n, s.step);
    s.stop = no_stop ? (s.step < 0 ? -1 : n) : clip(bound_of(r, bound[1], 0), n, s.step);
    if (s.step > 0 && s.stop > s.start)
        s.n = (size_t)((s.stop - s.start - 1) / s.step + 1);
    if (s.step < 0 && s.start > s.stop)
        s.n = (size_t)((s.start - s.stop - 1) / -s.step + 1);
    return s;
}

static struct nb_jv slice_str(struct nb_jrun *r, const struct nb_jstr *s, const struct nb_jv *bound)
{
    struct span span = span_of(r, bound, nb_jstr_chars(r->m, s));

    if (span.step == 1) {
        size_t from = nb_jstr_offset(r->m, s, (size_t)span.start);
        struct nb_jstr rest = *nb_jstr_part(r->m, s, from, s->len - from);
        return nb_jv_str(nb_jstr_part(r->m, s, from, nb_jstr_offset(r->m, &rest, span.n)));
    }
    const struct nb_jlist *all = nb_jv_items(r->m, nb_jv_str(s));
    struct nb_jbuild b;
    nb_jbuild_init(&b, r->m);
    for (size_t i = 0; i < span.n; i++)
        nb_jbuild_str(&b, all->v[span.start + (int64_t)i * span.step].s);
    return nb_jv_str(nb_jstr_markup(r->m, nb_jbuild_end(&b), s->markup));
}

struct nb_jv nb_jslice(struct nb_jrun *r, struct nb_jv v, const struct nb_jv bound[3])
{
    struct nb_jlist *l = nb_jlist_new(r->m);

    if (v.kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(r->m, v);
    if (v.kind == NB_J_STR)
        return slice_str(r, v.s, bound);
    if (v.kind == NB_J_RANGE) {
        struct span span = span_of(r, bound, v.range->n);
        struct nb_jrange *part = nb_jalloc(r->m, sizeof(*part));
        part->start = v.range->start + span.start * v.range->step;
        part->step = span.step * v.range->step;
        part->stop = v.range->start + span.stop * v.range->step;
        part->n = span.n;
        return (struct nb_jv){.kind = NB_J_RANGE, .range = part};
    }
    if (v.kind != NB_J_LIST && v.kind != NB_J_TUPLE)
        nb_jfail(r->m, -EINVAL, "'%s' object is not subscriptable", nb_jv_type(v));
    struct span span = span_of(r, bound, v.list->n);
    for (size_t i = 0; i < span.n; i++)
        nb_jlist_add(r->m, l, v.list->v[span.start + (int64_t)i * span.step]);
    return v.kind == NB_J_LIST ? nb_jv_list(l) : nb_jv_tuple(l);
}
