// Filters that choose and map by other filters and tests, filters of numbers, and where filters are
// found.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/chars.h"

// --- Choosing.

// A call like c, of the arguments from `from` on, for another value.
static struct nb_jv apply(struct nb_jrun *r, const struct nb_jbuiltin *b, struct nb_jv v,
                          const struct nb_jcall *c, size_t from)
{
    size_t n = c->n > from ? c->n - from : 0;
    struct nb_jv *args = nb_jarray(r->m, n + 1, sizeof(*args));

    args[0] = v;
    if (n)
        memcpy(args + 1, c->v + from, n * sizeof(*args));
    const struct nb_jcall other = {args, n + 1, c->kw};
    return nb_jbuiltin_call(r, b, &other);
}

static const struct nb_jbuiltin *named(struct nb_jrun *r, struct nb_jv name, const char *kind,
                                       const struct nb_jbuiltin *(*find)(const struct nb_jstr *))
{
    const struct nb_jbuiltin *b = name.kind == NB_J_STR ? find(name.s) : NULL;

    if (!b)
        nb_jfail(r->m, -EINVAL, "no %s named %s", kind, nb_jv_repr_c(r->m, name));
    return b;
}

static struct nb_jv chosen(struct nb_jrun *r, const struct nb_jcall *c, bool wanted, bool by_attr)
{
    size_t off = by_attr ? 2 : 1;
    struct nb_jlist *all = nb_jlist_new(r->m);
    const struct nb_jlist *l;

    if (!nb_jv_true(c->v[0]))
        return nb_jv_iterator(r->m, all, "generator");
    if (by_attr && c->n < 2)
        nb_jfail(r->m, -EINVAL, "Missing parameter for attribute name");
    const struct nb_jbuiltin *test = c->n > off ? named(r, c->v[off], "test", nb_jtest_find) : NULL;
    l = nb_jv_items(r->m, c->v[0]);
    for (size_t i = 0; i < l->n; i++) {
        struct nb_jv v = by_attr ? nb_jattribute(r, l->v[i], c->v[1]) : l->v[i];
        if (nb_jv_true(test ? apply(r, test, v, c, off + 1) : v) == wanted)
            nb_jlist_add(r->m, all, l->v[i]);
    }
    return nb_jv_iterator(r->m, all, "generator");
}

static struct nb_jv f_select(struct nb_jrun *r, const struct nb_jcall *c)
{
    return chosen(r, c, true, false);
}

static struct nb_jv f_reject(struct nb_jrun *r, const struct nb_jcall *c)
{
    return chosen(r, c, false, false);
}

static struct nb_jv f_selectattr(struct nb_jrun *r, const struct nb_jcall *c)
{
    return chosen(r, c, true, true);
}

static struct nb_jv f_rejectattr(struct nb_jrun *r, const struct nb_jcall *c)
{
    return chosen(r, c, false, true);
}

static struct nb_jv map_attribute(struct nb_jrun *r, const struct nb_jlist *l,
                                  const struct nb_jdict *kw)
{
    const struct nb_jv *path = nb_jdict_find(r->m, kw, "attribute"),
                       *otherwise = nb_jdict_find(r->m, kw, "default");
    struct nb_jlist *all = nb_jlist_new(r->m);

    if (kw->n > 1u + (otherwise != NULL))
        nb_jfail(r->m, -EINVAL, "map(attribute) takes default alone beside it");
    for (size_t i = 0; i < l->n; i++) {
        struct nb_jv v = nb_jattribute(r, l->v[i], *path);
        bool lacks = v.kind == NB_J_UNDEFINED && otherwise && otherwise->kind != NB_J_NONE;
        nb_jlist_add(r->m, all, lacks ? *otherwise : v);
    }
    return nb_jv_iterator(r->m, all, "generator");
}

static struct nb_jv f_map(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jlist *all = nb_jlist_new(r->m);

    if (!nb_jv_true(c->v[0]))
        return nb_jv_iterator(r->m, all, "generator");
    const struct nb_jlist *l = nb_jv_items(r->m, c->v[0]);
    if (c->n < 2 && c->kw && nb_jdict_find(r->m, c->kw, "attribute"))
        return map_attribute(r, l, c->kw);
    if (c->n < 2)
        nb_jfail(r->m, -EINVAL, "map requires a filter argument");
    const struct nb_jbuiltin *filter = named(r, c->v[1], "filter", nb_jfilter_find);
    for (size_t i = 0; i < l->n; i++)
        nb_jlist_add(r->m, all, apply(r, filter, l->v[i], c, 2));
    return nb_jv_iterator(r->m, all, "generator");
}

static struct nb_jv f_default(struct nb_jrun *r, const struct nb_jcall *c)
{
    bool lacks =
        c->v[0].kind == NB_J_UNDEFINED || (nb_jparam_true(c, 2, false) && !nb_jv_true(c->v[0]));

    if (!lacks)
        return c->v[0];
    return c->v[1].kind == NB_J_ABSENT ? nb_jv_str(&nb_jstr_empty) : c->v[1];
}

// An attribute alone, no item.
static struct nb_jv f_attr(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jv v = c->v[0];
    const struct nb_jstr *name = nb_jparam_str(r, c, 1, NULL);

    if (v.kind == NB_J_DICT) { // without its items
        v = nb_jv_dict(nb_jdict_new(r->m));
        struct nb_jv found = nb_jattr(r, v, name);
        if (found.kind == NB_J_UNDEFINED)
            return found.undefined->hint ? found : nb_jv_missing(r->m, c->v[0], c->v[1]);
        ((struct nb_jbound *)found.method)->self = c->v[0];
        return found;
    }
    return nb_jattr(r, v, name);
}

// --- Numbers.

static struct nb_jv f_abs(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jv v = c->v[0];

    if (!nb_jv_is_number(v) || nb_jv_as_float(v) < 0)
        return nb_junary(r, '-', v);
    return nb_junary(r, '+', v);
}

// Python's float(): all of the string, white space around it. False where it is none.
static bool to_float(struct nb_jrun *r, struct nb_jv v, double *ret)
{
    char text[400], *rest;

    if (nb_jv_is_number(v)) {
        *ret = nb_jv_as_float(v);
        return true;
    }
    if (v.kind != NB_J_STR)
        return false;
    const struct nb_jstr *s = nb_jstr_trim(r->m, v.s, NULL, true, true);
    if (s->len == 0 || s->len >= sizeof(text) || memchr(s->data, 'x', s->len) ||
        memchr(s->data, 'X', s->len) || memchr(s->data, '(', s->len))
        return false;
    memcpy(text, s->data, s->len);
    text[s->len] = '\0';
    *ret = strtod(text, &rest);
    return rest == text + s->len;
}

// Python's int(string, base), but for underscores.
static bool to_int(struct nb_jrun *r, const struct nb_jstr *s, int base, int64_t *ret)
{
    char text[80], *rest;

    s = nb_jstr_trim(r->m, s, NULL, true, true);
    if (s->len == 0 || s->len >= sizeof(text))
        return false;
    memcpy(text, s->data, s->len);
    text[s->len] = '\0';
    const char *digits = text + (*text == '-' || *text == '+');
    static const char letters[] = "xob";
    static const int bases[] = {16, 8, 2};
    for (size_t i = 0; i < 3; i++)
        if (digits[0] == '0' && (digits[1] | 0x20) == letters[i] && (base == bases[i] || !base)) {
            base = bases[i];
            memmove((char *)digits, digits + 2, strlen(digits + 2) + 1);
            break;
        }
    if (nb_jchar_digit(*digits) >= (base ? base : 10))
        return false;
    errno = 0;
    *ret = strtoll(text, &rest, base ? base : 10);
    if (errno == ERANGE)
        nb_jfail(r->m, -EINVAL, "an integer does not fit 64 bits");
    return !*rest && rest > text;
}

static struct nb_jv truncated(struct nb_jrun *r, double f, struct nb_jv otherwise)
{
    if (!isfinite(f))
        return otherwise;
    if (!(fabs(f) < 9.2e18))
        nb_jfail(r->m, -EINVAL, "an integer does not fit 64 bits");
    return nb_jv_int((int64_t)f);
}

static struct nb_jv f_int(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jv v = c->v[0], otherwise = c->v[1].kind == NB_J_ABSENT ? nb_jv_int(0) : c->v[1];
    int64_t base = nb_jparam_int(r, c, 2, 10);
    struct nb_jv result = otherwise;
    int64_t i;
    double f;

    if (v.kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(r->m, v);
    if (nb_jv_is_int(v))
        result = nb_jv_int(nb_jv_as_int(v));
    else if (v.kind == NB_J_STR && (base == 0 || (base >= 2 && base <= 36)) &&
             to_int(r, v.s, (int)base, &i))
        result = nb_jv_int(i);
    else if (to_float(r, v, &f))
        result = truncated(r, f, otherwise);
    result.client = v.client || v.kind == NB_J_STR;
    return result;
}

static struct nb_jv f_float(struct nb_jrun *r, const struct nb_jcall *c)
{
    double f;

    if (c->v[0].kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(r->m, c->v[0]);
    if (!to_float(r, c->v[0], &f))
        return c->v[1].kind == NB_J_ABSENT ? nb_jv_float(0) : c->v[1];
    struct nb_jv v = nb_jv_float(f);
    v.client = c->v[0].client || c->v[0].kind == NB_J_STR;
    return v;
}

// Half to even, by the digits of the number itself as Python does it.
static double rounded(double f, int64_t precision)
{
    char text[400];

    if (!isfinite(f) || precision > 300 || fabs(f) > 1e60)
        return f;
    if (precision < -300)
        return 0;
    if (precision >= 0) {
        snprintf(text, sizeof(text), "%.*f", (int)precision, f);
        return strtod(text, NULL);
    }
    double unit = pow(10, (double)-precision);
    return rint(f / unit) * unit;
}

static struct nb_jv f_round(struct nb_jrun *r, const struct nb_jcall *c)
{
    static const struct nb_jstr common = NB_JSTR_INIT("common");
    const struct nb_jstr *method = nb_jparam_str(r, c, 2, &common);
    int64_t precision = nb_jparam_int(r, c, 1, 0);
    struct nb_jv v = c->v[0], result;

    if (v.kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(r->m, v);
    if (!nb_jv_is_number(v))
        nb_jfail(r->m, -EINVAL, "type %s doesn't define __round__ method", nb_jv_type(v));
    bool up = nb_jstr_is(method, "ceil"), down = nb_jstr_is(method, "floor");
    if (!up && !down && !nb_jstr_is(method, "common"))
        nb_jfail(r->m, -EINVAL, "method must be common, ceil or floor");
    if (up || down) {
        double unit = pow(10, (double)precision), scaled = nb_jv_as_float(v) * unit;
        result = nb_jv_float((up ? ceil(scaled) : floor(scaled)) / unit);
    } else if (nb_jv_is_int(v) && precision >= 0)
        result = nb_jv_int(nb_jv_as_int(v));
    else if (nb_jv_is_int(v))
        result = nb_jv_int((int64_t)rounded(nb_jv_as_float(v), precision));
    else
        result = nb_jv_float(rounded(v.f, precision));
    result.client = v.client;
    return result;
}

static struct nb_jv f_filesizeformat(struct nb_jrun *r, const struct nb_jcall *c)
{
    static const char prefixes[] = "kMGTPEZY";
    bool binary = nb_jparam_true(c, 1, false);
    double base = binary ? 1024 : 1000, bytes, unit = base;
    char text[64];
    size_t i = 0;

    if (!to_float(r, c->v[0], &bytes))
        nb_jfail(r->m, -EINVAL, "filesizeformat needs a number");
    if (bytes == 1)
        snprintf(text, sizeof(text), "1 Byte");
    else if (bytes < base)
        snprintf(text, sizeof(text), "%.0f Bytes", trunc(bytes));
    else {
        for (; i < 7 && bytes >= unit * base; i++)
            unit *= base;
        const int prefix = binary && i == 0 ? 'K' : prefixes[i];
        snprintf(text, sizeof(text), "%.1f %c%sB", fmin(bytes / unit, 1e30), prefix,
                 binary ? "i" : "");
    }
    return nb_jv_str(nb_jstr_copy(r->m, text, strlen(text), true));
}

const struct nb_jbuiltin nb_jfilters_select[] = {
    {"abs", f_abs, "", 0},
    {"attr", f_attr, "name", 1},
    {"d", f_default, "default_value boolean", 0},
    {"default", f_default, "default_value boolean", 0},
    {"filesizeformat", f_filesizeformat, "binary", 0},
    {"float", f_float, "default", 0},
    {"int", f_int, "default base", 0},
    {"map", f_map, NULL, 0},
    {"reject", f_reject, NULL, 0},
    {"rejectattr", f_rejectattr, NULL, 0},
    {"round", f_round, "precision method", 0},
    {"select", f_select, NULL, 0},
    {"selectattr", f_selectattr, NULL, 0},
    {0},
};

const struct nb_jbuiltin *nb_jfilter_find(const struct nb_jstr *name)
{
    static const struct nb_jbuiltin *const tables[] = {nb_jfilters_text, nb_jfilters_list,
                                                       nb_jfilters_select};
    const struct nb_jbuiltin *found = NULL;

    for (size_t i = 0; i < sizeof(tables) / sizeof(*tables) && !found; i++)
        found = nb_jbuiltin_in(tables[i], name);
    return found;
}
