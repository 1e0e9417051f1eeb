// Global functions.
#include <errno.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"

#define RANGE_MAX 100000 // items, as Jinja's sandbox has it

static int64_t range_argument(struct nb_jrun *r, struct nb_jv v)
{
    if (v.kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(r->m, v);
    if (!nb_jv_is_int(v))
        nb_jfail(r->m, -EINVAL, "'%s' object cannot be interpreted as an integer", nb_jv_type(v));
    return nb_jv_as_int(v);
}

static struct nb_jv g_range(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jrange *range = nb_jalloc(r->m, sizeof(*range));
    __int128 n = 0, distance;

    if (c->n < 2 || c->n > 4 || c->kw)
        nb_jfail(r->m, -EINVAL, "range expected 1 to 3 arguments, got %zu", c->n - 1);
    range->start = c->n > 2 ? range_argument(r, c->v[1]) : 0;
    range->stop = range_argument(r, c->v[c->n > 2 ? 2 : 1]);
    range->step = c->n > 3 ? range_argument(r, c->v[3]) : 1;
    if (range->step == 0)
        nb_jfail(r->m, -EINVAL, "range() arg 3 must not be zero");
    distance = (__int128)range->stop - range->start;
    if ((distance > 0) == (range->step > 0) && distance)
        n = (distance + range->step - (range->step > 0 ? 1 : -1)) / range->step;
    if (n > RANGE_MAX)
        nb_jfail(r->m, -E2BIG,
                 "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", RANGE_MAX);
    range->n = (size_t)n;
    return (struct nb_jv){.kind = NB_J_RANGE, .range = range};
}

// The entries of a mapping, or pairs, and keywords.
static struct nb_jdict *filled(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jdict *d = nb_jdict_new(r->m);

    if (c->n > 2)
        nb_jfail(r->m, -EINVAL, "dict expected at most 1 argument, got %zu", c->n - 1);
    if (c->n == 2 && c->v[1].kind == NB_J_DICT)
        for (size_t i = 0; i < c->v[1].dict->n; i++)
            nb_jdict_set(r->m, d, c->v[1].dict->key[i], c->v[1].dict->value[i]);
    else if (c->n == 2) {
        const struct nb_jlist *l = nb_jv_items(r->m, c->v[1]);
        for (size_t i = 0; i < l->n; i++) {
            const struct nb_jlist *pair = nb_jv_items(r->m, l->v[i]);
            if (pair->n != 2)
                nb_jfail(r->m, -EINVAL, "a dictionary is made of pairs");
            nb_jdict_set(r->m, d, pair->v[0], pair->v[1]);
        }
    }
    for (size_t i = 0; c->kw && i < c->kw->n; i++)
        nb_jdict_set(r->m, d, c->kw->key[i], c->kw->value[i]);
    return d;
}

static struct nb_jv g_dict(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_dict(filled(r, c));
}

static struct nb_jv g_namespace(struct nb_jrun *r, const struct nb_jcall *c)
{
    return (struct nb_jv){.kind = NB_J_NAMESPACE, .dict = filled(r, c)};
}

static struct nb_jv g_cycler(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jcycler *cycler = nb_jalloc(r->m, sizeof(*cycler));
    struct nb_jlist *l = nb_jlist_new(r->m);

    if (c->n < 2)
        nb_jfail(r->m, -EINVAL, "at least one item has to be provided");
    for (size_t i = 1; i < c->n; i++)
        nb_jlist_add(r->m, l, c->v[i]);
    cycler->items = l;
    return (struct nb_jv){.kind = NB_J_CYCLER, .cycler = cycler};
}

static struct nb_jv g_joiner(struct nb_jrun *r, const struct nb_jcall *c)
{
    static const struct nb_jstr comma = NB_JSTR_INIT(", ");
    struct nb_jjoiner *joiner = nb_jalloc(r->m, sizeof(*joiner));

    joiner->separator = nb_jparam_str(r, c, 1, &comma);
    return (struct nb_jv){.kind = NB_J_JOINER, .joiner = joiner};
}

// The template's own sentence is the whole error: no line stands before it.
static struct nb_jv g_raise_exception(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *s = nb_jv_text(r->m, c->v[1]);

    r->m->line = 0;
    nb_jfail(r->m, -EINVAL, "%.*s", (int)(s->len < NB_JINJA_ERROR ? s->len : NB_JINJA_ERROR),
             s->data);
}

static struct nb_jv g_strftime_now(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *s = nb_jparam_str(r, c, 1, NULL);
    char format[258], text[2048];
    struct tm tm;

    if (s->len > 256 || (s->len && memchr(s->data, '\0', s->len)))
        nb_jfail(r->m, -E2BIG, "strftime_now: a format has at most 256 bytes, none of them NUL");
    // A character before it, so that an empty result is told from one that does not fit.
    nb_jstep(r->m, 64 + 4 * s->len); // the C library looks at its time zone
    format[0] = ' ';
    if (s->len)
        memcpy(format + 1, s->data, s->len);
    format[1 + s->len] = '\0';
    if (!localtime_r(&r->now, &tm))
        nb_jfail(r->m, -EINVAL, "strftime_now: there is no such time");
    size_t n = strftime(text, sizeof(text), format, &tm); // NOLINT: the format is bounded
    if (n == 0)
        nb_jfail(r->m, -E2BIG, "strftime_now: a date has at most %zu bytes", sizeof(text));
    return nb_jv_str(nb_jstr_copy(r->m, text + 1, n - 1, nb_jstr_any_client(s)));
}

const struct nb_jfunction *nb_jfunction_find(const struct nb_jstr *name)
{
    static const struct nb_jfunction functions[] = {
        {{"range", g_range, NULL, 0}},
        {{"dict", g_dict, NULL, 0}},
        {{"namespace", g_namespace, NULL, 0}},
        {{"cycler", g_cycler, NULL, 0}},
        {{"joiner", g_joiner, "sep", 0}},
        {{"raise_exception", g_raise_exception, "message", 1}},
        {{"strftime_now", g_strftime_now, "format", 1}},
    };

    for (size_t i = 0; i < sizeof(functions) / sizeof(*functions); i++)
        if (nb_jstr_is(name, functions[i].builtin.name))
            return &functions[i];
    return NULL;
}
