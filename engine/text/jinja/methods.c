// Methods of everything but strings, more of strings (putting together, padding, asking), and which
// ones the sandbox keeps from templates because they change what they are called on.
#include <errno.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/chars.h"
#include "engine/text/unicode.h"

// --- Strings: putting together.

static struct nb_jv m_replace(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *s = c->v[0].s, *old = nb_jparam_str(r, c, 1, NULL),
                         *with = nb_jparam_str(r, c, 2, NULL);

    if (s->markup)
        with = nb_jescape(r->m, c->v[2]);
    s = nb_jstr_replace(r->m, s, old, with, nb_jparam_int(r, c, 3, -1));
    return nb_jv_str(nb_jstr_markup(r->m, s, c->v[0].s->markup));
}

static struct nb_jv m_join(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jlist *l = nb_jv_items(r->m, c->v[1]);
    const struct nb_jstr *s = c->v[0].s;
    struct nb_jbuild b;

    nb_jbuild_init(&b, r->m);
    for (size_t i = 0; i < l->n; i++) {
        if (l->v[i].kind != NB_J_STR)
            nb_jfail(r->m, -EINVAL, "sequence item %zu: expected str instance, %s found", i,
                     nb_jv_type(l->v[i]));
        const struct nb_jstr *item = s->markup ? nb_jescape(r->m, l->v[i]) : l->v[i].s;
        if (i)
            nb_jbuild_str(&b, s);
        nb_jbuild_str(&b, item);
    }
    return nb_jv_str(nb_jstr_markup(r->m, nb_jbuild_end(&b), s->markup));
}

static struct nb_jv m_format(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jstr_format(r, c->v[0].s, c);
}

static struct nb_jv m_format_map(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jv self = c->v[0];

    if (c->v[1].kind != NB_J_DICT)
        nb_jfail(r->m, -EINVAL, "format_map() needs a mapping, not %s", nb_jv_type(c->v[1]));
    const struct nb_jcall mapped = {&self, 1, c->v[1].dict};
    return nb_jstr_format(r, self.s, &mapped);
}

// Padding is nobody's: it counts as the client's.
static struct nb_jv padded(struct nb_jrun *r, const struct nb_jcall *c, int64_t left, int64_t right)
{
    const struct nb_jstr *s = c->v[0].s, blank = NB_JSTR_INIT(" "),
                         *fill = nb_jparam_str(r, c, 2, &blank);
    struct nb_jbuild b;
    struct nb_jstr own;

    if (nb_jstr_chars(r->m, fill) != 1)
        nb_jfail(r->m, -EINVAL, "The fill character must be exactly one character long");
    own = *fill;
    own.client = own.client || fill == &blank;
    nb_jbuild_init(&b, r->m);
    nb_jbuild_fill(&b, &own, left > 0 ? (size_t)left : 0);
    nb_jbuild_str(&b, s);
    nb_jbuild_fill(&b, &own, right > 0 ? (size_t)right : 0);
    return nb_jv_str(nb_jstr_markup(r->m, nb_jbuild_end(&b), s->markup));
}

static int64_t lacking(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jparam_int(r, c, 1, 0) - (int64_t)nb_jstr_chars(r->m, c->v[0].s);
}

static struct nb_jv m_ljust(struct nb_jrun *r, const struct nb_jcall *c)
{
    return padded(r, c, 0, lacking(r, c));
}

static struct nb_jv m_rjust(struct nb_jrun *r, const struct nb_jcall *c)
{
    return padded(r, c, lacking(r, c), 0);
}

static struct nb_jv m_center(struct nb_jrun *r, const struct nb_jcall *c)
{
    int64_t n = lacking(r, c), left = n > 0 ? n / 2 + (n & nb_jparam_int(r, c, 1, 0) & 1) : 0;

    return padded(r, c, left, n - left);
}

static struct nb_jv m_zfill(struct nb_jrun *r, const struct nb_jcall *c)
{
    static const struct nb_jstr zero = {.data = "0", .len = 1, .chars = 1, .client = true};
    const struct nb_jstr *s = c->v[0].s;
    int64_t n = lacking(r, c);
    size_t sign = s->len && (s->data[0] == '+' || s->data[0] == '-');
    struct nb_jbuild b;

    nb_jbuild_init(&b, r->m);
    nb_jbuild_part(&b, s, 0, sign);
    nb_jbuild_fill(&b, &zero, n > 0 ? (size_t)n : 0);
    nb_jbuild_part(&b, s, sign, s->len - sign);
    return nb_jv_str(nb_jstr_markup(r->m, nb_jbuild_end(&b), s->markup));
}

static struct nb_jv m_expandtabs(struct nb_jrun *r, const struct nb_jcall *c)
{
    static const struct nb_jstr blank = {.data = " ", .len = 1, .chars = 1, .client = true};
    const struct nb_jstr *s = c->v[0].s;
    int64_t size = nb_jparam_int(r, c, 1, 8), column = 0;
    struct nb_jbuild b;

    nb_jbuild_init(&b, r->m);
    for (size_t at = 0, used; at < s->len; at += used) {
        used = nb_jstr_step(s, at);
        char ch = s->data[at];
        nb_jstep(r->m, 1);
        if (ch == '\t') {
            int64_t n = size > 0 ? size - column % size : 0;
            nb_jbuild_fill(&b, &blank, (size_t)n);
            column += n;
            continue;
        }
        nb_jbuild_part(&b, s, at, used);
        column = ch == '\n' || ch == '\r' ? 0 : column + 1;
    }
    return nb_jv_str(nb_jstr_markup(r->m, nb_jbuild_end(&b), s->markup));
}

// --- Strings: asking.

static struct nb_jv all_are(struct nb_jrun *r, const struct nb_jcall *c, bool (*is)(uint32_t),
                            bool empty)
{
    const struct nb_jstr *s = c->v[0].s;

    nb_jstep(r->m, 1 + s->len);
    for (size_t at = 0, used; at < s->len; at += used)
        if (!is(nb_unicode_decode(s->data + at, s->len - at, &used)))
            return nb_jv_bool(false);
    return nb_jv_bool(s->len || empty);
}

static bool is_alnum(uint32_t c)
{
    return nb_jchar_is_alpha(c) || nb_jchar_is_number(c);
}

static bool is_ascii(uint32_t c)
{
    return c < 0x80;
}

static struct nb_jv m_isdigit(struct nb_jrun *r, const struct nb_jcall *c)
{
    return all_are(r, c, nb_jchar_is_number, false);
}

static struct nb_jv m_isalpha(struct nb_jrun *r, const struct nb_jcall *c)
{
    return all_are(r, c, nb_jchar_is_alpha, false);
}

static struct nb_jv m_isalnum(struct nb_jrun *r, const struct nb_jcall *c)
{
    return all_are(r, c, is_alnum, false);
}

static struct nb_jv m_isspace(struct nb_jrun *r, const struct nb_jcall *c)
{
    return all_are(r, c, nb_jchar_is_space, false);
}

static struct nb_jv m_isascii(struct nb_jrun *r, const struct nb_jcall *c)
{
    return all_are(r, c, is_ascii, true);
}

// All letters that have a case have this one, and there is one.
static struct nb_jv cased(struct nb_jrun *r, const struct nb_jstr *s, bool upper)
{
    bool any = false;

    nb_jstep(r->m, 1 + s->len);
    for (size_t at = 0, used; at < s->len; at += used) {
        uint32_t c = nb_unicode_decode(s->data + at, s->len - at, &used);
        if (upper ? nb_jchar_is_lower(c) : nb_jchar_is_upper(c))
            return nb_jv_bool(false);
        any |= upper ? nb_jchar_is_upper(c) : nb_jchar_is_lower(c);
    }
    return nb_jv_bool(any);
}

static struct nb_jv m_isupper(struct nb_jrun *r, const struct nb_jcall *c)
{
    return cased(r, c->v[0].s, true);
}

static struct nb_jv m_islower(struct nb_jrun *r, const struct nb_jcall *c)
{
    return cased(r, c->v[0].s, false);
}

static struct nb_jv m_istitle(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *s = c->v[0].s;
    bool any = false, after = false;

    nb_jstep(r->m, 1 + s->len);
    for (size_t at = 0, used; at < s->len; at += used) {
        uint32_t ch = nb_unicode_decode(s->data + at, s->len - at, &used);
        bool upper = nb_jchar_is_upper(ch), lower = nb_jchar_is_lower(ch);
        if ((upper && after) || (lower && !after))
            return nb_jv_bool(false);
        any |= upper;
        after = upper || lower;
    }
    return nb_jv_bool(any);
}

static struct nb_jv m_isidentifier(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *s = c->v[0].s;

    if (s->len && s->data[0] >= '0' && s->data[0] <= '9')
        return nb_jv_bool(false);
    return all_are(r, c, nb_jchar_is_word, false);
}

const struct nb_jbuiltin nb_jmethods_str_more[] = {
    {"replace", m_replace, "old new count", 2},
    {"join", m_join, "iterable", 1},
    {"format", m_format, NULL, 0},
    {"format_map", m_format_map, "mapping", 1},
    {"ljust", m_ljust, "width fillchar", 1},
    {"rjust", m_rjust, "width fillchar", 1},
    {"center", m_center, "width fillchar", 1},
    {"zfill", m_zfill, "width", 1},
    {"expandtabs", m_expandtabs, "tabsize", 0},
    {"isdigit", m_isdigit, "", 0},
    {"isdecimal", m_isdigit, "", 0},
    {"isnumeric", m_isdigit, "", 0},
    {"isalpha", m_isalpha, "", 0},
    {"isalnum", m_isalnum, "", 0},
    {"isspace", m_isspace, "", 0},
    {"isascii", m_isascii, "", 0},
    {"isupper", m_isupper, "", 0},
    {"islower", m_islower, "", 0},
    {"istitle", m_istitle, "", 0},
    {"isidentifier", m_isidentifier, "", 0},
    {0},
};

// --- Dictionaries.

static struct nb_jv view_of(struct nb_jrun *r, const struct nb_jcall *c, enum nb_jview_kind kind)
{
    struct nb_jview *view = nb_jalloc(r->m, sizeof(*view));

    *view = (struct nb_jview){c->v[0].dict, kind};
    return (struct nb_jv){.kind = NB_J_VIEW, .view = view};
}

static struct nb_jv m_keys(struct nb_jrun *r, const struct nb_jcall *c)
{
    return view_of(r, c, NB_JVIEW_KEYS);
}

static struct nb_jv m_values(struct nb_jrun *r, const struct nb_jcall *c)
{
    return view_of(r, c, NB_JVIEW_VALUES);
}

static struct nb_jv m_items(struct nb_jrun *r, const struct nb_jcall *c)
{
    return view_of(r, c, NB_JVIEW_ITEMS);
}

static struct nb_jv m_get(struct nb_jrun *r, const struct nb_jcall *c)
{
    if (!nb_jv_hashable(r->m, c->v[1]))
        nb_jfail(r->m, -EINVAL, "unhashable type: '%s'", nb_jv_type(c->v[1]));
    const struct nb_jv *there = nb_jdict_get(r->m, c->v[0].dict, c->v[1]);
    return there ? *there : c->v[2].kind == NB_J_ABSENT ? nb_jv_none() : c->v[2];
}

static struct nb_jv m_copy(struct nb_jrun *r, const struct nb_jcall *c)
{
    return c->v[0]; // immutable
}

static const struct nb_jbuiltin methods_dict[] = {
    {"keys", m_keys, "", 0},          {"values", m_values, "", 0}, {"items", m_items, "", 0},
    {"get", m_get, "key default", 1}, {"copy", m_copy, "", 0},     {0},
};

// --- Lists and tuples.

static struct nb_jv m_list_index(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jlist *l = c->v[0].list;
    int64_t n = (int64_t)l->n, from = nb_jparam_int(r, c, 2, 0), to = nb_jparam_int(r, c, 3, n);

    from = from < 0 ? (from < -n ? 0 : from + n) : from;
    to = to < 0 ? (to < -n ? 0 : to + n) : to > n ? n : to;
    for (int64_t i = from; i < to; i++)
        if (nb_jv_eq(r->m, l->v[i], c->v[1]))
            return nb_jv_int(i);
    nb_jfail(r->m, -EINVAL, "%s is not in list", nb_jv_repr_c(r->m, c->v[1]));
}

static struct nb_jv m_list_count(struct nb_jrun *r, const struct nb_jcall *c)
{
    int64_t n = 0;

    for (size_t i = 0; i < c->v[0].list->n; i++)
        n += nb_jv_eq(r->m, c->v[0].list->v[i], c->v[1]);
    return nb_jv_int(n);
}

static const struct nb_jbuiltin methods_list[] = {
    {"index", m_list_index, "value start stop", 1},
    {"count", m_list_count, "value", 1},
    {"copy", m_copy, "", 0},
    {0},
};

static const struct nb_jbuiltin methods_tuple[] = {
    {"index", m_list_index, "value start stop", 1},
    {"count", m_list_count, "value", 1},
    {0},
};

// --- Loops, cyclers.

static struct nb_jv m_cycle(struct nb_jrun *r, const struct nb_jcall *c)
{
    if (c->n < 2)
        nb_jfail(r->m, -EINVAL, "no items for cycling given");
    return c->v[1 + c->v[0].loop->index0 % (int64_t)(c->n - 1)];
}

static struct nb_jv m_changed(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jlist *now = nb_jlist_new(r->m);
    struct nb_jloop *loop = c->v[0].loop;

    for (size_t i = 1; i < c->n; i++)
        nb_jlist_add(r->m, now, c->v[i]);
    bool changed =
        loop->changed.kind == NB_J_ABSENT || !nb_jv_eq(r->m, loop->changed, nb_jv_tuple(now));
    loop->changed = nb_jv_tuple(now);
    return nb_jv_bool(changed);
}

static const struct nb_jbuiltin methods_loop[] = {
    {"cycle", m_cycle, NULL, 0}, {"changed", m_changed, NULL, 0}, {0}};

static struct nb_jv m_next(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jcall none = {c->v, 1, NULL};

    return nb_jcall_value(r, c->v[0], &none);
}

static struct nb_jv m_reset(struct nb_jrun *r, const struct nb_jcall *c)
{
    c->v[0].cycler->at = 0;
    return nb_jv_none();
}

static const struct nb_jbuiltin methods_cycler[] = {
    {"next", m_next, "", 0}, {"reset", m_reset, "", 0}, {0}};

// --- Finding them.

static const char *const refused_dict[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};
static const char *const refused_list[] = {"append", "clear",  "pop",    "reverse", "insert",
                                           "sort",   "extend", "remove", NULL};

static const struct {
    const struct nb_jbuiltin *methods[2];
    const char *const *refused;
} types[NB_J_JOINER + 1] = {
    [NB_J_STR] = {{nb_jmethods_str, nb_jmethods_str_more}, NULL},
    [NB_J_LIST] = {{methods_list}, refused_list},
    [NB_J_TUPLE] = {{methods_tuple}, NULL},
    [NB_J_DICT] = {{methods_dict}, refused_dict},
    [NB_J_LOOP] = {{methods_loop}, NULL},
    [NB_J_CYCLER] = {{methods_cycler}, NULL},
};

const struct nb_jbuiltin *nb_jmethod_find(struct nb_jv self, const struct nb_jstr *name,
                                          bool *ret_refused)
{
    const struct nb_jbuiltin *found = NULL;

    for (size_t i = 0; i < 2 && !found && types[self.kind].methods[i]; i++)
        found = nb_jbuiltin_in(types[self.kind].methods[i], name);
    for (const char *const *p = types[self.kind].refused; p && *p; p++)
        *ret_refused |= nb_jstr_is(name, *p);
    return found;
}
