// Methods of strings: cases, searching, taking apart and putting together.
#include <errno.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/chars.h"
#include "engine/text/unicode.h"

static struct nb_jv text(const struct nb_jstr *s)
{
    return nb_jv_str(s);
}

// --- Trimming and cases.

static struct nb_jv stripped(struct nb_jrun *r, const struct nb_jcall *c, bool left, bool right)
{
    const struct nb_jstr *chars = c->v[1].kind == NB_J_NONE ? NULL : nb_jparam_str(r, c, 1, NULL);

    return text(nb_jstr_trim(r->m, c->v[0].s, chars, left, right));
}

static struct nb_jv m_strip(struct nb_jrun *r, const struct nb_jcall *c)
{
    return stripped(r, c, true, true);
}

static struct nb_jv m_lstrip(struct nb_jrun *r, const struct nb_jcall *c)
{
    return stripped(r, c, true, false);
}

static struct nb_jv m_rstrip(struct nb_jrun *r, const struct nb_jcall *c)
{
    return stripped(r, c, false, true);
}

static struct nb_jv m_upper(struct nb_jrun *r, const struct nb_jcall *c)
{
    return text(nb_jstr_case(r->m, c->v[0].s, NB_JCASE_UPPER));
}

static struct nb_jv m_lower(struct nb_jrun *r, const struct nb_jcall *c)
{
    return text(nb_jstr_case(r->m, c->v[0].s, NB_JCASE_LOWER));
}

static struct nb_jv m_capitalize(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *s = c->v[0].s;
    size_t first = s->len ? nb_jstr_step(s, 0) : 0;
    struct nb_jbuild b;

    nb_jbuild_init(&b, r->m);
    nb_jbuild_str(&b, nb_jstr_case(r->m, nb_jstr_part(r->m, s, 0, first), NB_JCASE_TITLE));
    const struct nb_jstr *lower = nb_jstr_case(r->m, s, NB_JCASE_LOWER);
    const struct nb_jstr *head =
        nb_jstr_case(r->m, nb_jstr_part(r->m, s, 0, first), NB_JCASE_LOWER);
    nb_jbuild_part(&b, lower, head->len, lower->len - head->len);
    return text(nb_jstr_markup(r->m, nb_jbuild_end(&b), s->markup));
}

// By characters: `next` says which case one gets, after what came before it.
static struct nb_jv by_char(struct nb_jrun *r, const struct nb_jstr *s,
                            enum nb_jcase (*next)(uint32_t c, bool after_cased))
{
    struct nb_jbuild b;
    bool cased = false;

    nb_jbuild_init(&b, r->m);
    nb_jstep(r->m, 1 + s->len);
    for (size_t at = 0, used; at < s->len; at += used) {
        uint32_t c = nb_unicode_decode(s->data + at, s->len - at, &used);
        nb_jbuild_str(&b, nb_jstr_case(r->m, nb_jstr_part(r->m, s, at, used), next(c, cased)));
        cased = nb_jchar_is_upper(c) || nb_jchar_is_lower(c);
    }
    return text(nb_jstr_markup(r->m, nb_jbuild_end(&b), s->markup));
}

static enum nb_jcase title_next(uint32_t c, bool after_cased)
{
    return after_cased ? NB_JCASE_LOWER : NB_JCASE_TITLE;
}

static enum nb_jcase swap_next(uint32_t c, bool after_cased)
{
    return nb_jchar_is_upper(c) ? NB_JCASE_LOWER : NB_JCASE_UPPER;
}

static struct nb_jv m_title(struct nb_jrun *r, const struct nb_jcall *c)
{
    return by_char(r, c->v[0].s, title_next);
}

static struct nb_jv m_swapcase(struct nb_jrun *r, const struct nb_jcall *c)
{
    return by_char(r, c->v[0].s, swap_next);
}

// --- Searching.

// The bytes [from, to) that two parameters (characters, as in a slice) leave. False: from lies
// past the end.
static bool range_of(struct nb_jrun *r, const struct nb_jcall *c, size_t *ret_from, size_t *ret_to)
{
    const struct nb_jstr *s = c->v[0].s;
    int64_t n = (int64_t)nb_jstr_chars(r->m, s);
    int64_t start = c->v[2].kind == NB_J_NONE ? 0 : nb_jparam_int(r, c, 2, 0);
    int64_t end = c->v[3].kind == NB_J_NONE ? n : nb_jparam_int(r, c, 3, n);

    start = start < 0 ? (start < -n ? 0 : start + n) : start;
    end = end < 0 ? (end < -n ? 0 : end + n) : end > n ? n : end;
    if (start > n)
        return false;
    *ret_from = nb_jstr_offset(r->m, s, (size_t)start);
    *ret_to = nb_jstr_offset(r->m, s, (size_t)end);
    return true;
}

// The place in characters, or -1.
static int64_t search(struct nb_jrun *r, const struct nb_jcall *c, bool from_right)
{
    const struct nb_jstr *s = c->v[0].s, *what = nb_jparam_str(r, c, 1, NULL);
    size_t from, to, found;

    if (!range_of(r, c, &from, &to))
        return -1;
    found =
        from_right ? nb_jstr_rfind(r->m, s, what, from, to) : nb_jstr_find(r->m, s, what, from, to);
    if (found == SIZE_MAX)
        return -1;
    const struct nb_jstr before = {.data = s->data, .len = found, .chars = SIZE_MAX};
    return (int64_t)nb_jstr_chars(r->m, &before);
}

static struct nb_jv m_find(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_int(search(r, c, false));
}

static struct nb_jv m_rfind(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_int(search(r, c, true));
}

static struct nb_jv found_or_fail(struct nb_jrun *r, int64_t at)
{
    if (at < 0)
        nb_jfail(r->m, -EINVAL, "substring not found");
    return nb_jv_int(at);
}

static struct nb_jv m_index(struct nb_jrun *r, const struct nb_jcall *c)
{
    return found_or_fail(r, search(r, c, false));
}

static struct nb_jv m_rindex(struct nb_jrun *r, const struct nb_jcall *c)
{
    return found_or_fail(r, search(r, c, true));
}

static struct nb_jv m_count(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *s = c->v[0].s, *what = nb_jparam_str(r, c, 1, NULL);
    size_t from, to;
    int64_t n = 0;

    if (!range_of(r, c, &from, &to) || from > to)
        return nb_jv_int(0);
    if (what->len == 0) {
        const struct nb_jstr part = {.data = s->data + from, .len = to - from, .chars = SIZE_MAX};
        return nb_jv_int((int64_t)nb_jstr_chars(r->m, &part) + 1);
    }
    for (size_t at; (at = nb_jstr_find(r->m, s, what, from, to)) != SIZE_MAX; n++)
        from = at + what->len;
    return nb_jv_int(n);
}

static bool has_affix(const struct nb_jstr *s, const struct nb_jstr *what, size_t from, size_t to,
                      bool at_end)
{
    if (from > to || what->len > to - from)
        return false;
    return what->len == 0 ||
           memcmp(s->data + (at_end ? to - what->len : from), what->data, what->len) == 0;
}

static struct nb_jv affix(struct nb_jrun *r, const struct nb_jcall *c, bool at_end)
{
    const struct nb_jlist one = {.v = &c->v[1], .n = 1},
                          *all = c->v[1].kind == NB_J_TUPLE ? c->v[1].list : &one;
    size_t from, to;

    if (!range_of(r, c, &from, &to))
        return nb_jv_bool(false);
    for (size_t i = 0; i < all->n; i++) {
        nb_jstep(r->m, 1 + (all->v[i].kind == NB_J_STR ? all->v[i].s->len / 64 : 0));
        if (all->v[i].kind == NB_J_UNDEFINED)
            nb_jv_fail_undefined(r->m, all->v[i]);
        if (all->v[i].kind != NB_J_STR)
            nb_jfail(r->m, -EINVAL, "%s first arg must be str or a tuple of str, not %s",
                     at_end ? "endswith" : "startswith", nb_jv_type(all->v[i]));
        if (has_affix(c->v[0].s, all->v[i].s, from, to, at_end))
            return nb_jv_bool(true);
    }
    return nb_jv_bool(false);
}

static struct nb_jv m_startswith(struct nb_jrun *r, const struct nb_jcall *c)
{
    return affix(r, c, false);
}

static struct nb_jv m_endswith(struct nb_jrun *r, const struct nb_jcall *c)
{
    return affix(r, c, true);
}

static struct nb_jv m_removeprefix(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *s = c->v[0].s, *what = nb_jparam_str(r, c, 1, NULL);
    nb_jstep(r->m, what->len / 64);
    bool has = has_affix(s, what, 0, s->len, false);

    return text(has ? nb_jstr_part(r->m, s, what->len, s->len - what->len) : s);
}

static struct nb_jv m_removesuffix(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *s = c->v[0].s, *what = nb_jparam_str(r, c, 1, NULL);
    nb_jstep(r->m, what->len / 64);
    bool has = has_affix(s, what, 0, s->len, true);

    return text(has ? nb_jstr_part(r->m, s, 0, s->len - what->len) : s);
}

// --- Taking apart.

static void add_part(struct nb_jrun *r, struct nb_jlist *l, const struct nb_jstr *s, size_t from,
                     size_t to)
{
    nb_jlist_add(r->m, l, text(nb_jstr_part(r->m, s, from, to - from)));
}

static size_t skip_space(const struct nb_jstr *s, size_t at, bool space)
{
    for (size_t used; at < s->len; at += used)
        if (nb_jchar_is_space(nb_unicode_decode(s->data + at, s->len - at, &used)) != space)
            break;
    return at;
}

static void split_space(struct nb_jrun *r, struct nb_jlist *l, const struct nb_jstr *s, int64_t max)
{
    size_t at = skip_space(s, 0, true);

    while (at < s->len) {
        size_t end = skip_space(s, at, false);
        if (max-- == 0) { // the rest, with the white space inside it
            add_part(r, l, s, at, s->len);
            return;
        }
        add_part(r, l, s, at, end);
        at = skip_space(s, end, true);
    }
}

static void split_at(struct nb_jrun *r, struct nb_jlist *l, const struct nb_jstr *s,
                     const struct nb_jstr *sep, int64_t max)
{
    size_t from = 0, at;

    while (max-- != 0 && (at = nb_jstr_find(r->m, s, sep, from, s->len)) != SIZE_MAX) {
        add_part(r, l, s, from, at);
        from = at + sep->len;
    }
    add_part(r, l, s, from, s->len);
}

static const struct nb_jstr *separator(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *sep = c->v[1].kind == NB_J_NONE ? NULL : nb_jparam_str(r, c, 1, NULL);

    nb_jstep(r->m, 1 + (sep ? 0 : c->v[0].s->len));
    if (sep && sep->len == 0)
        nb_jfail(r->m, -EINVAL, "empty separator");
    return sep;
}

static struct nb_jv m_split(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *sep = separator(r, c);
    int64_t max = nb_jparam_int(r, c, 2, -1);
    struct nb_jlist *l = nb_jlist_new(r->m);

    if (sep)
        split_at(r, l, c->v[0].s, sep, max);
    else
        split_space(r, l, c->v[0].s, max);
    return nb_jv_list(l);
}

static void rsplit_at(struct nb_jrun *r, struct nb_jlist *l, const struct nb_jstr *s,
                      const struct nb_jstr *sep, int64_t max)
{
    size_t to = s->len, at;

    while (max-- != 0 && (at = nb_jstr_rfind(r->m, s, sep, 0, to)) != SIZE_MAX) {
        add_part(r, l, s, at + sep->len, to);
        to = at;
    }
    add_part(r, l, s, 0, to);
}

static void rsplit_space(struct nb_jrun *r, struct nb_jlist *l, const struct nb_jstr *s,
                         int64_t max)
{
    struct nb_jlist *words = nb_jlist_new(r->m);

    split_space(r, words, s, -1);
    size_t keep = max >= 0 && (size_t)max < words->n ? words->n - (size_t)max : 0;
    for (size_t i = words->n; i > keep; i--)
        nb_jlist_add(r->m, l, words->v[i - 1]);
    if (keep) { // all before, with the white space inside
        const struct nb_jstr *last = words->v[keep - 1].s;
        add_part(r, l, s, 0, (size_t)(last->data - s->data) + last->len);
    }
}

static struct nb_jv m_rsplit(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *sep = separator(r, c);
    int64_t max = nb_jparam_int(r, c, 2, -1);
    struct nb_jlist *l = nb_jlist_new(r->m);

    if (sep)
        rsplit_at(r, l, c->v[0].s, sep, max);
    else
        rsplit_space(r, l, c->v[0].s, max);
    for (size_t i = 0; i < l->n / 2; i++) {
        struct nb_jv v = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = v;
    }
    return nb_jv_list(l);
}

static struct nb_jv m_splitlines(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_list(nb_jstr_lines(r->m, c->v[0].s, nb_jparam_true(c, 1, false)));
}

static struct nb_jv parted(struct nb_jrun *r, const struct nb_jcall *c, bool from_right)
{
    const struct nb_jstr *s = c->v[0].s, *sep = nb_jparam_str(r, c, 1, NULL);
    struct nb_jlist *l = nb_jlist_new(r->m);

    separator(r, c);
    size_t at =
        from_right ? nb_jstr_rfind(r->m, s, sep, 0, s->len) : nb_jstr_find(r->m, s, sep, 0, s->len);
    size_t end = at == SIZE_MAX ? (from_right ? 0 : s->len) : at;
    size_t next = at == SIZE_MAX ? end : at + sep->len;
    add_part(r, l, s, 0, end);
    add_part(r, l, s, end, next);
    add_part(r, l, s, next, s->len);
    return nb_jv_tuple(l);
}

static struct nb_jv m_partition(struct nb_jrun *r, const struct nb_jcall *c)
{
    return parted(r, c, false);
}

static struct nb_jv m_rpartition(struct nb_jrun *r, const struct nb_jcall *c)
{
    return parted(r, c, true);
}

const struct nb_jbuiltin nb_jmethods_str[] = {
    {"strip", m_strip, "chars", 0},
    {"lstrip", m_lstrip, "chars", 0},
    {"rstrip", m_rstrip, "chars", 0},
    {"upper", m_upper, "", 0},
    {"lower", m_lower, "", 0},
    {"casefold", m_lower, "", 0},
    {"capitalize", m_capitalize, "", 0},
    {"title", m_title, "", 0},
    {"swapcase", m_swapcase, "", 0},
    {"find", m_find, "sub start end", 1},
    {"rfind", m_rfind, "sub start end", 1},
    {"index", m_index, "sub start end", 1},
    {"rindex", m_rindex, "sub start end", 1},
    {"count", m_count, "sub start end", 1},
    {"startswith", m_startswith, "prefix start end", 1},
    {"endswith", m_endswith, "suffix start end", 1},
    {"removeprefix", m_removeprefix, "prefix", 1},
    {"removesuffix", m_removesuffix, "suffix", 1},
    {"split", m_split, "sep maxsplit", 0},
    {"rsplit", m_rsplit, "sep maxsplit", 0},
    {"splitlines", m_splitlines, "keepends", 0},
    {"partition", m_partition, "sep", 1},
    {"rpartition", m_rpartition, "sep", 1},
    {0},
};
