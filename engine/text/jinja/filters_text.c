// Filters that make or change strings.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/chars.h"
#include "engine/text/unicode.h"

static const struct nb_jstr *soft(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_text(r->m, c->v[0]);
}

static struct nb_jv f_upper(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_str(nb_jstr_case(r->m, soft(r, c), NB_JCASE_UPPER));
}

static struct nb_jv f_lower(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_str(nb_jstr_case(r->m, soft(r, c), NB_JCASE_LOWER));
}

// A method of strings, on the value as a string.
static struct nb_jv method(struct nb_jrun *r, const struct nb_jcall *c, const char *name)
{
    const struct nb_jstr s = {.data = name, .len = strlen(name), .chars = SIZE_MAX};
    bool refused = false;

    c->v[0] = nb_jv_str(soft(r, c));
    return nb_jmethod_find(c->v[0], &s, &refused)->fn(r, c);
}

static struct nb_jv f_capitalize(struct nb_jrun *r, const struct nb_jcall *c)
{
    return method(r, c, "capitalize");
}

static struct nb_jv f_center(struct nb_jrun *r, const struct nb_jcall *c)
{
    if (c->v[1].kind == NB_J_ABSENT)
        c->v[1] = nb_jv_int(80);
    return method(r, c, "center");
}

static struct nb_jv f_trim(struct nb_jrun *r, const struct nb_jcall *c)
{
    return method(r, c, "strip");
}

// Words begin after blanks, hyphens and opening brackets.
static struct nb_jv f_title(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *s = soft(r, c);
    struct nb_jbuild b;
    bool begins = true;

    nb_jbuild_init(&b, r->m);
    nb_jstep(r->m, 1 + s->len);
    for (size_t at = 0, used; at < s->len; at += used) {
        uint32_t ch = nb_unicode_decode(s->data + at, s->len - at, &used);
        bool between = nb_jchar_is_space(ch) || (ch && ch < 0x80 && strchr("-({[<", (int)ch));
        nb_jbuild_str(&b, nb_jstr_case(r->m, nb_jstr_part(r->m, s, at, used),
                                       begins ? NB_JCASE_UPPER : NB_JCASE_LOWER));
        begins = between;
    }
    return nb_jv_str(nb_jbuild_end(&b));
}

static struct nb_jv f_string(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_str(soft(r, c));
}

static struct nb_jv f_safe(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_str(nb_jstr_markup(r->m, soft(r, c), true));
}

static struct nb_jv f_escape(struct nb_jrun *r, const struct nb_jcall *c)
{
    return nb_jv_str(nb_jescape(r->m, c->v[0]));
}

static struct nb_jv f_forceescape(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *plain = nb_jstr_markup(r->m, soft(r, c), false);

    return nb_jv_str(nb_jescape(r->m, nb_jv_str(plain)));
}

static struct nb_jv f_replace(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *s = nb_jstr_markup(r->m, soft(r, c), false);
    int64_t count = c->v[3].kind == NB_J_NONE ? -1 : nb_jparam_int(r, c, 3, -1);

    return nb_jv_str(nb_jstr_markup(
        r->m, nb_jstr_replace(r->m, s, nb_jv_text(r->m, c->v[1]), nb_jv_text(r->m, c->v[2]), count),
        false));
}

static struct nb_jv f_format(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jlist *args = nb_jlist_new(r->m);

    if (c->n > 1 && c->kw && c->kw->n)
        nb_jfail(r->m, -EINVAL, "can't handle positional and keyword arguments at the same time");
    for (size_t i = 1; i < c->n; i++)
        nb_jlist_add(r->m, args, c->v[i]);
    return nb_jv_str(
        nb_jpercent(r, soft(r, c),
                    c->kw && c->kw->n ? nb_jv_dict((struct nb_jdict *)c->kw) : nb_jv_tuple(args)));
}

static struct nb_jv f_indent(struct nb_jrun *r, const struct nb_jcall *c)
{
    static const struct nb_jstr blank = {.data = " ", .len = 1, .chars = 1, .client = true};
    bool first = nb_jparam_true(c, 2, false), blanks = nb_jparam_true(c, 3, false);
    const struct nb_jstr *s = nb_jparam_str(r, c, 0, NULL), *by;
    struct nb_jbuild indention, b;

    nb_jbuild_init(&indention, r->m);
    if (c->v[1].kind == NB_J_STR)
        nb_jbuild_str(&indention, c->v[1].s);
    else {
        int64_t width = nb_jparam_int(r, c, 1, 4);
        nb_jbuild_fill(&indention, &blank, width > 0 ? (size_t)width : 0);
    }
    by = nb_jbuild_end(&indention);
    // A last line's end counts: what follows it is one more, empty line.
    const struct nb_jstr end = {.data = "\n", .len = 1, .chars = 1, .client = true};
    struct nb_jlist *lines = nb_jstr_lines(r->m, nb_jstr_concat(r->m, s, &end), true);
    nb_jbuild_init(&b, r->m);
    for (size_t i = 0; i < lines->n; i++) {
        const struct nb_jstr *line = lines->v[i].s, *text;
        struct nb_jlist *bare = nb_jstr_lines(r->m, line, false);
        text = bare->n ? bare->v[0].s : &nb_jstr_empty;
        if (i) {
            bool client = nb_jstr_client(lines->v[i - 1].s, lines->v[i - 1].s->len - 1);
            nb_jbuild_bytes(&b, "\n", 1, client);
        }
        if (i ? blanks || text->len : first)
            nb_jbuild_str(&b, by);
        nb_jbuild_str(&b, text);
    }
    return nb_jv_str(nb_jstr_markup(r->m, nb_jbuild_end(&b), s->markup));
}

static struct nb_jv f_truncate(struct nb_jrun *r, const struct nb_jcall *c)
{
    static const struct nb_jstr dots = NB_JSTR_INIT("..."), space = NB_JSTR_INIT(" ");
    const struct nb_jstr *s = nb_jparam_str(r, c, 0, NULL), *end = nb_jparam_str(r, c, 3, &dots);
    int64_t length = nb_jparam_int(r, c, 1, 255), n = (int64_t)nb_jstr_chars(r->m, end);
    int64_t leeway = c->v[4].kind == NB_J_NONE ? 5 : nb_jparam_int(r, c, 4, 5);
    struct nb_jbuild b;

    if (length < n || leeway < 0)
        nb_jfail(r->m, -EINVAL, "truncate: expected length >= %lld and leeway >= 0", (long long)n);
    if ((int64_t)nb_jstr_chars(r->m, s) <= (length > INT64_MAX - leeway ? length : length + leeway))
        return c->v[0];
    s = nb_jstr_part(r->m, s, 0, nb_jstr_offset(r->m, s, (size_t)(length - n)));
    size_t cut = nb_jparam_true(c, 2, false) ? SIZE_MAX : nb_jstr_rfind(r->m, s, &space, 0, s->len);
    nb_jbuild_init(&b, r->m);
    nb_jbuild_part(&b, s, 0, cut == SIZE_MAX ? s->len : cut);
    nb_jbuild_str(&b, end);
    return nb_jv_str(nb_jbuild_end(&b));
}

static struct nb_jv f_wordcount(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jstr *s = soft(r, c);
    int64_t n = 0;
    bool word = false;

    nb_jstep(r->m, 1 + s->len);
    for (size_t at = 0, used; at < s->len; at += used) {
        bool is = nb_jchar_is_word(nb_unicode_decode(s->data + at, s->len - at, &used));
        n += is && !word;
        word = is;
    }
    return nb_jv_int(n);
}

// --- URLs and markup.

static void put_quoted(struct nb_jbuild *b, const struct nb_jstr *s, bool query)
{
    for (size_t at = 0; at < s->len; at++) {
        unsigned char ch = (unsigned char)s->data[at];
        bool plain = (ch < 0x80 && nb_jchar_digit((char)ch) < 36) ||
                     (ch && strchr(query ? "_.-~" : "_.-~/", ch));
        char text[4];
        if (plain) {
            nb_jbuild_part(b, s, at, 1);
            continue;
        }
        snprintf(text, sizeof(text), "%%%02X", ch);
        nb_jbuild_c(b, query && ch == ' ' ? "+" : text, nb_jstr_client(s, at));
    }
}

static struct nb_jv f_urlencode(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jv v = c->v[0];
    struct nb_jbuild b;

    nb_jbuild_init(&b, r->m);
    if (v.kind == NB_J_STR || !nb_jv_iterable(v)) {
        put_quoted(&b, nb_jv_text(r->m, v), false);
        return nb_jv_str(nb_jbuild_end(&b));
    }
    if (v.kind == NB_J_DICT) {
        struct nb_jview *items = nb_jalloc(r->m, sizeof(*items));
        *items = (struct nb_jview){v.dict, NB_JVIEW_ITEMS};
        v = (struct nb_jv){.kind = NB_J_VIEW, .view = items};
    }
    const struct nb_jlist *l = nb_jv_items(r->m, v);
    for (size_t i = 0; i < l->n; i++) {
        const struct nb_jlist *pair = nb_jv_items(r->m, l->v[i]);
        if (pair->n != 2)
            nb_jfail(r->m, -EINVAL, "urlencode needs pairs");
        if (i)
            nb_jbuild_c(&b, "&", true);
        put_quoted(&b, nb_jv_text(r->m, pair->v[0]), true);
        nb_jbuild_c(&b, "=", true);
        put_quoted(&b, nb_jv_text(r->m, pair->v[1]), true);
    }
    return nb_jv_str(nb_jbuild_end(&b));
}

static struct nb_jv f_xmlattr(struct nb_jrun *r, const struct nb_jcall *c)
{
    const struct nb_jdict *d = c->v[0].dict;
    struct nb_jbuild b;

    if (c->v[0].kind != NB_J_DICT)
        nb_jfail(r->m, -EINVAL, "xmlattr needs a mapping, not %s", nb_jv_type(c->v[0]));
    nb_jbuild_init(&b, r->m);
    for (size_t i = 0; i < d->n; i++) {
        if (d->value[i].kind == NB_J_NONE || d->value[i].kind == NB_J_UNDEFINED)
            continue;
        const struct nb_jstr *key = nb_jv_text(r->m, d->key[i]);
        nb_jstep(r->m, 1 + key->len / 4);
        for (size_t at = 0; at < key->len; at++)
            if (strchr(" \t\n\r\f\v/>=", key->data[at]))
                nb_jfail(r->m, -EINVAL, "Invalid character in attribute name: %s",
                         nb_jv_repr_c(r->m, d->key[i]));
        if (b.len || nb_jparam_true(c, 1, true))
            nb_jbuild_c(&b, " ", true);
        nb_jbuild_str(&b, nb_jescape(r->m, d->key[i]));
        nb_jbuild_c(&b, "=\"", true);
        nb_jbuild_str(&b, nb_jescape(r->m, d->value[i]));
        nb_jbuild_c(&b, "\"", true);
    }
    return nb_jv_str(nb_jbuild_end(&b));
}

// Comments and tags go, white space becomes single blanks.
static struct nb_jv f_striptags(struct nb_jrun *r, const struct nb_jcall *c)
{
    static const struct nb_jstr open = NB_JSTR_INIT("<!--"), close = NB_JSTR_INIT("-->"),
                                lt = NB_JSTR_INIT("<"), gt = NB_JSTR_INIT(">");
    const struct {
        const struct nb_jstr *from, *to;
    } marks[] = {{&open, &close}, {&lt, &gt}};
    const struct nb_jstr *s = soft(r, c);
    struct nb_jbuild b;

    for (size_t i = 0; i < 2; i++) {
        size_t at = 0, start, end;
        nb_jbuild_init(&b, r->m);
        while ((start = nb_jstr_find(r->m, s, marks[i].from, at, s->len)) != SIZE_MAX &&
               (end = nb_jstr_find(r->m, s, marks[i].to, start, s->len)) != SIZE_MAX) {
            nb_jbuild_part(&b, s, at, start - at);
            at = end + marks[i].to->len;
        }
        nb_jbuild_part(&b, s, at, s->len - at);
        s = nb_jbuild_end(&b);
    }
    nb_jbuild_init(&b, r->m);
    bool blank = false;
    nb_jstep(r->m, 1 + s->len);
    for (size_t at = 0, used; at < s->len; at += used) {
        bool space = nb_jchar_is_space(nb_unicode_decode(s->data + at, s->len - at, &used));
        if (!space && blank && b.len)
            nb_jbuild_c(&b, " ", true);
        if (!space)
            nb_jbuild_part(&b, s, at, used);
        blank = space;
    }
    s = nb_jbuild_end(&b);
    // What the entities stand for that escape() writes.
    static const char *const entities[][2] = {{"&lt;", "<"},   {"&gt;", ">"},    {"&#39;", "'"},
                                              {"&#34;", "\""}, {"&quot;", "\""}, {"&amp;", "&"}};
    for (size_t i = 0; i < sizeof(entities) / sizeof(*entities); i++) {
        const struct nb_jstr from = {.data = entities[i][0], .len = strlen(entities[i][0])},
                             to = {.data = entities[i][1], .len = 1, .client = true};
        s = nb_jstr_replace(r->m, s, &from, &to, -1);
    }
    return nb_jv_str(s);
}

static struct nb_jv f_tojson(struct nb_jrun *r, const struct nb_jcall *c)
{
    struct nb_jbuild b;

    nb_jbuild_init(&b, r->m);
    nb_jtojson(r, &b, c);
    return nb_jv_str(nb_jbuild_end(&b));
}

const struct nb_jbuiltin nb_jfilters_text[] = {
    {"capitalize", f_capitalize, "", 0},
    {"center", f_center, "width", 0},
    {"e", f_escape, "", 0},
    {"escape", f_escape, "", 0},
    {"forceescape", f_forceescape, "", 0},
    {"format", f_format, NULL, 0},
    {"indent", f_indent, "width first blank", 0},
    {"lower", f_lower, "", 0},
    {"replace", f_replace, "old new count", 2},
    {"safe", f_safe, "", 0},
    {"string", f_string, "", 0},
    {"striptags", f_striptags, "", 0},
    {"title", f_title, "", 0},
    {"tojson", f_tojson, "ensure_ascii indent separators sort_keys", 0},
    {"trim", f_trim, "chars", 0},
    {"truncate", f_truncate, "length killwords end leeway", 0},
    {"upper", f_upper, "", 0},
    {"urlencode", f_urlencode, "", 0},
    {"wordcount", f_wordcount, "", 0},
    {"xmlattr", f_xmlattr, "autospace", 0},
    {0},
};
