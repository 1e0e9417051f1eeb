// Values: making, comparing, and going through them.
#include "engine/text/jinja/value.h"

#include <errno.h>
#include <math.h>
#include <string.h>

static const char *const type_names[] = {
    [NB_J_ABSENT] = "nothing",
    [NB_J_UNDEFINED] = "Undefined",
    [NB_J_NONE] = "NoneType",
    [NB_J_BOOL] = "bool",
    [NB_J_INT] = "int",
    [NB_J_FLOAT] = "float",
    [NB_J_STR] = "str",
    [NB_J_LIST] = "list",
    [NB_J_TUPLE] = "tuple",
    [NB_J_DICT] = "dict",
    [NB_J_VIEW] = "dict_items",
    [NB_J_RANGE] = "range",
    [NB_J_ITERATOR] = "generator",
    [NB_J_NAMESPACE] = "Namespace",
    [NB_J_MACRO] = "Macro",
    [NB_J_FUNCTION] = "function",
    [NB_J_METHOD] = "method",
    [NB_J_LOOP] = "LoopContext",
    [NB_J_CYCLER] = "Cycler",
    [NB_J_JOINER] = "Joiner",
};

const char *nb_jv_type(struct nb_jv v)
{
    static const char *const views[] = {"dict_keys", "dict_values", "dict_items"};

    if (v.kind == NB_J_VIEW)
        return views[v.view->kind];
    if (v.kind == NB_J_ITERATOR)
        return v.iterator->type;
    if (v.kind == NB_J_STR && v.s->markup)
        return "Markup";
    return type_names[v.kind];
}

// --- Making.

struct nb_jlist *nb_jlist_new(struct nb_jmem *m)
{
    return nb_jalloc(m, sizeof(struct nb_jlist));
}

void nb_jlist_add(struct nb_jmem *m, struct nb_jlist *l, struct nb_jv v)
{
    nb_jstep(m, 1);
    if (l->n == l->capacity)
        l->v = nb_jgrow(m, l->v, l->n, &l->capacity, sizeof(*l->v));
    l->v[l->n++] = v;
}

struct nb_jv nb_jv_pair(struct nb_jmem *m, struct nb_jv a, struct nb_jv b)
{
    struct nb_jlist *l = nb_jlist_new(m);

    l->v = nb_jarray(m, 2, sizeof(*l->v));
    l->n = l->capacity = 2;
    l->v[0] = a;
    l->v[1] = b;
    return nb_jv_tuple(l);
}

struct nb_jv nb_jv_iterator(struct nb_jmem *m, const struct nb_jlist *items, const char *type)
{
    struct nb_jiterator *it = nb_jalloc(m, sizeof(*it));

    *it = (struct nb_jiterator){.items = items, .type = type};
    return (struct nb_jv){.kind = NB_J_ITERATOR, .iterator = it};
}

struct nb_jv nb_jv_undefined(struct nb_jmem *m, const char *hint)
{
    struct nb_jundefined *u = nb_jalloc(m, sizeof(*u));

    u->hint = hint;
    return (struct nb_jv){.kind = NB_J_UNDEFINED, .undefined = u};
}

struct nb_jv nb_jv_missing(struct nb_jmem *m, struct nb_jv object, struct nb_jv name)
{
    struct nb_jundefined *u = nb_jalloc(m, sizeof(*u));

    *u = (struct nb_jundefined){.object = object, .name = name};
    return (struct nb_jv){.kind = NB_J_UNDEFINED, .undefined = u};
}

static const char *described(struct nb_jv v)
{
    static const char *const own[] = {
        [NB_J_NONE] = "None",
        [NB_J_NAMESPACE] = "jinja2.utils.Namespace object",
        [NB_J_MACRO] = "jinja2.runtime.Macro object",
        [NB_J_LOOP] = "jinja2.runtime.LoopContext object",
        [NB_J_CYCLER] = "jinja2.utils.Cycler object",
        [NB_J_JOINER] = "jinja2.utils.Joiner object",
    };

    return v.kind < sizeof(own) / sizeof(*own) ? own[v.kind] : NULL;
}

_Noreturn void nb_jv_fail_undefined(struct nb_jmem *m, struct nb_jv v)
{
    const struct nb_jundefined *u = v.undefined;

    if (u->hint)
        nb_jfail(m, -EINVAL, "%s", u->hint);
    const char *name = nb_jv_repr_c(m, u->name);
    if (u->object.kind == NB_J_ABSENT)
        nb_jfail(m, -EINVAL, "%s is undefined", name);
    const char *object = described(u->object);
    const char *type = object ? object : nb_jv_type(u->object), *more = object ? "" : " object";
    if (u->name.kind == NB_J_STR)
        nb_jfail(m, -EINVAL, "'%s%s' has no attribute %s", type, more, name);
    nb_jfail(m, -EINVAL, "%s%s has no element %s", type, more, name);
}

// --- Truth and equality.

bool nb_jv_true(struct nb_jv v)
{
    switch (v.kind) {
    case NB_J_ABSENT:
    case NB_J_UNDEFINED:
    case NB_J_NONE:
        return false;
    case NB_J_BOOL:
        return v.b;
    case NB_J_INT:
        return v.i != 0;
    case NB_J_FLOAT:
        return v.f != 0;
    case NB_J_STR:
        return v.s->len > 0;
    case NB_J_LIST:
    case NB_J_TUPLE:
        return v.list->n > 0;
    case NB_J_DICT:
        return v.dict->n > 0;
    case NB_J_VIEW:
        return v.view->dict->n > 0;
    case NB_J_RANGE:
        return v.range->n > 0;
    default:
        return true;
    }
}

double nb_jv_as_float(struct nb_jv v)
{
    return v.kind == NB_J_FLOAT ? v.f : (double)nb_jv_as_int(v);
}

// Exact, though a double holds not every integer.
static int compare_numbers(struct nb_jv a, struct nb_jv b)
{
    if (a.kind != NB_J_FLOAT && b.kind != NB_J_FLOAT) {
        int64_t x = nb_jv_as_int(a), y = nb_jv_as_int(b);
        return (x > y) - (x < y);
    }
    long double x = a.kind == NB_J_FLOAT ? a.f : (long double)nb_jv_as_int(a),
                y = b.kind == NB_J_FLOAT ? b.f : (long double)nb_jv_as_int(b);
    if (isnan(x) || isnan(y))
        return 2;
    return (x > y) - (x < y);
}

static bool lists_equal(struct nb_jmem *m, const struct nb_jlist *a, const struct nb_jlist *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (!nb_jv_eq(m, a->v[i], b->v[i]))
            return false;
    return true;
}

static bool dicts_equal(struct nb_jmem *m, const struct nb_jdict *a, const struct nb_jdict *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++) {
        const struct nb_jv *other = nb_jdict_get(m, b, a->key[i]);
        if (!other || !nb_jv_eq(m, a->value[i], *other))
            return false;
    }
    return true;
}

static bool ranges_equal(const struct nb_jrange *a, const struct nb_jrange *b)
{
    return a->n == b->n &&
           (a->n == 0 || (a->start == b->start && (a->n == 1 || a->step == b->step)));
}

bool nb_jv_eq(struct nb_jmem *m, struct nb_jv a, struct nb_jv b)
{
    bool equal;

    nb_jstep(m, 1);
    if (nb_jv_is_number(a) && nb_jv_is_number(b))
        return compare_numbers(a, b) == 0;
    if (a.kind != b.kind)
        return false;
    nb_jdown(m);
    switch (a.kind) {
    case NB_J_UNDEFINED:
    case NB_J_NONE:
        equal = true;
        break;
    case NB_J_STR:
        nb_jstep(m, a.s->len == b.s->len ? a.s->len / 64 : 0);
        equal = nb_jstr_eq(a.s, b.s);
        break;
    case NB_J_LIST:
    case NB_J_TUPLE:
        equal = lists_equal(m, a.list, b.list);
        break;
    case NB_J_DICT:
        equal = dicts_equal(m, a.dict, b.dict);
        break;
    case NB_J_VIEW: // as sets are; values() equal nothing but themselves
        equal =
            a.view == b.view || (a.view->kind == b.view->kind && a.view->kind != NB_JVIEW_VALUES &&
                                 lists_equal(m, nb_jv_items(m, a), nb_jv_items(m, b)));
        break;
    case NB_J_RANGE:
        equal = ranges_equal(a.range, b.range);
        break;
    default:
        equal = a.list == b.list; // the same object
    }
    m->depth--;
    return equal;
}

int nb_jv_cmp(struct nb_jmem *m, struct nb_jv a, struct nb_jv b, const char *op)
{
    nb_jstep(m, 1);
    if (nb_jv_is_number(a) && nb_jv_is_number(b))
        return compare_numbers(a, b);
    if (a.kind == NB_J_STR && b.kind == NB_J_STR) {
        nb_jstep(m, a.s->len / 64);
        int rc = nb_jstr_cmp(a.s, b.s);
        return (rc > 0) - (rc < 0);
    }
    if (a.kind == NB_J_UNDEFINED || b.kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(m, a.kind == NB_J_UNDEFINED ? a : b);
    if (a.kind != b.kind || (a.kind != NB_J_LIST && a.kind != NB_J_TUPLE))
        nb_jfail(m, -EINVAL, "'%s' not supported between instances of '%s' and '%s'", op,
                 nb_jv_type(a), nb_jv_type(b));
    nb_jdown(m);
    size_t i = 0, n = a.list->n < b.list->n ? a.list->n : b.list->n;
    while (i < n && nb_jv_eq(m, a.list->v[i], b.list->v[i]))
        i++;
    int rc = i < n ? nb_jv_cmp(m, a.list->v[i], b.list->v[i], op)
                   : (a.list->n > b.list->n) - (a.list->n < b.list->n);
    m->depth--;
    return rc;
}

// --- What can be gone through.

size_t nb_jv_length(struct nb_jmem *m, struct nb_jv v)
{
    switch (v.kind) {
    case NB_J_UNDEFINED:
        return 0;
    case NB_J_STR:
        return nb_jstr_chars(m, v.s);
    case NB_J_LIST:
    case NB_J_TUPLE:
        return v.list->n;
    case NB_J_DICT:
        return v.dict->n;
    case NB_J_VIEW:
        return v.view->dict->n;
    case NB_J_RANGE:
        return v.range->n;
    default:
        return SIZE_MAX;
    }
}

bool nb_jv_iterable(struct nb_jv v)
{
    return v.kind == NB_J_UNDEFINED || (v.kind >= NB_J_STR && v.kind <= NB_J_ITERATOR);
}

static const struct nb_jlist *characters(struct nb_jmem *m, const struct nb_jstr *s)
{
    struct nb_jlist *l = nb_jlist_new(m);

    for (size_t at = 0, used; at < s->len; at += used) {
        used = nb_jstr_step(s, at);
        nb_jlist_add(m, l, nb_jv_str(nb_jstr_part(m, s, at, used)));
    }
    return l;
}

static const struct nb_jlist *keys(struct nb_jmem *m, const struct nb_jdict *d)
{
    struct nb_jlist *l = nb_jlist_new(m);

    l->v = d->key;
    nb_jstep(m, d->n);
    l->n = l->capacity = d->n; // full: whoever adds gets an array of its own
    return l;
}

static const struct nb_jlist *viewed(struct nb_jmem *m, const struct nb_jview *view)
{
    const struct nb_jdict *d = view->dict;
    struct nb_jlist *l = nb_jlist_new(m);

    if (view->kind == NB_JVIEW_KEYS)
        return keys(m, d);
    for (size_t i = 0; i < d->n; i++)
        nb_jlist_add(m, l,
                     view->kind == NB_JVIEW_VALUES ? d->value[i]
                                                   : nb_jv_pair(m, d->key[i], d->value[i]));
    return l;
}

static const struct nb_jlist *counted(struct nb_jmem *m, const struct nb_jrange *r)
{
    struct nb_jlist *l = nb_jlist_new(m);

    for (size_t i = 0; i < r->n; i++)
        nb_jlist_add(m, l, nb_jv_int(r->start + (int64_t)i * r->step));
    return l;
}

static const struct nb_jlist *used_up(struct nb_jmem *m, struct nb_jiterator *it)
{
    struct nb_jlist *l = nb_jlist_new(m);

    if (it->at < it->items->n)
        l->v = it->items->v + it->at;
    l->n = l->capacity = it->items->n - it->at;
    nb_jstep(m, l->n);
    it->at = it->items->n;
    return l;
}

const struct nb_jlist *nb_jv_items(struct nb_jmem *m, struct nb_jv v)
{
    switch (v.kind) {
    case NB_J_UNDEFINED:
        return nb_jlist_new(m);
    case NB_J_STR:
        return characters(m, v.s);
    case NB_J_LIST:
    case NB_J_TUPLE:
        nb_jstep(m, v.list->n);
        return v.list;
    case NB_J_DICT:
        return keys(m, v.dict);
    case NB_J_VIEW:
        return viewed(m, v.view);
    case NB_J_RANGE:
        return counted(m, v.range);
    case NB_J_ITERATOR:
        return used_up(m, v.iterator);
    default:
        nb_jfail(m, -EINVAL, "'%s' object is not iterable", nb_jv_type(v));
    }
}

bool nb_jv_in(struct nb_jmem *m, struct nb_jv item, struct nb_jv all)
{
    if (all.kind == NB_J_DICT || (all.kind == NB_J_VIEW && all.view->kind == NB_JVIEW_KEYS)) {
        const struct nb_jdict *d = all.kind == NB_J_DICT ? all.dict : all.view->dict;
        if (!nb_jv_hashable(m, item))
            nb_jfail(m, -EINVAL, "unhashable type: '%s'", nb_jv_type(item));
        return nb_jdict_get(m, d, item) != NULL;
    }
    if (all.kind == NB_J_STR) {
        if (item.kind != NB_J_STR)
            nb_jfail(m, -EINVAL, "'in <string>' requires string as left operand, not %s",
                     nb_jv_type(item));
        return nb_jstr_find(m, all.s, item.s, 0, all.s->len) != SIZE_MAX;
    }
    if (!nb_jv_iterable(all))
        nb_jfail(m, -EINVAL, "argument of type '%s' is not iterable", nb_jv_type(all));
    const struct nb_jlist *l = nb_jv_items(m, all);
    for (size_t i = 0; i < l->n; i++)
        if (nb_jv_eq(m, l->v[i], item))
            return true;
    return false;
}
