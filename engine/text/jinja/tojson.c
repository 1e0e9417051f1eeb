// Values as JSON, as Python's json.dumps writes them with ensure_ascii off: what transformers makes
// of the filter tojson. Nothing is escaped for HTML.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"
#include "engine/text/unicode.h"

struct writer {
    struct nb_jrun *r;
    struct nb_jbuild *b;
    const struct nb_jstr *indent; // of one level, or NULL
    const struct nb_jstr *item, *key;
    bool ascii, sorted;
    size_t level;
};

static void write_value(struct writer *w, struct nb_jv v);

static void put(struct writer *w, const char *text)
{
    nb_jbuild_c(w->b, text, true);
}

static void put_escaped(struct writer *w, uint32_t c, bool client)
{
    char text[16];

    if (c >= 0x10000)
        snprintf(text, sizeof(text), "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10),
                 0xdc00 + ((c - 0x10000) & 0x3ff));
    else
        snprintf(text, sizeof(text), "\\u%04x", c);
    nb_jbuild_c(w->b, text, client);
}

static void write_str(struct writer *w, const struct nb_jstr *s)
{
    static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";

    put(w, "\"");
    for (size_t at = 0, used; at < s->len; at += used) {
        uint32_t c = nb_unicode_decode(s->data + at, s->len - at, &used);
        const char *simple = c && c < 0x80 ? strchr(from, (int)c) : NULL;
        size_t run = at;
        if (simple) {
            const char text[3] = {'\\', to[simple - from], '\0'};
            nb_jbuild_c(w->b, text, nb_jstr_client(s, at));
        } else if (c < ' ' || (w->ascii && c >= 0x7f)) {
            put_escaped(w, c, nb_jstr_client(s, at));
        } else { // a run that needs nothing
            while (run < s->len && (unsigned char)s->data[run] >= ' ' && s->data[run] != '"' &&
                   s->data[run] != '\\' && !(w->ascii && (unsigned char)s->data[run] >= 0x7f))
                run++;
            used = run - at;
            nb_jbuild_part(w->b, s, at, used);
        }
    }
    put(w, "\"");
}

static void write_number(struct writer *w, struct nb_jv v)
{
    char text[40];

    if (v.kind == NB_J_INT)
        snprintf(text, sizeof(text), "%" PRId64, v.i);
    else if (isfinite(v.f))
        nb_jfloat_repr(w->r->m, v.f, text);
    else
        snprintf(text, sizeof(text), "%s", isnan(v.f) ? "NaN" : v.f > 0 ? "Infinity" : "-Infinity");
    put(w, text);
}

static void new_line(struct writer *w)
{
    if (!w->indent)
        return;
    put(w, "\n");
    nb_jbuild_fill(w->b, w->indent, w->level);
}

// What stands before an item: a line's end and its indentation, a separator from the second on.
static void next_item(struct writer *w, size_t i)
{
    if (i)
        nb_jbuild_str(w->b, w->item);
    new_line(w);
}

static void write_list(struct writer *w, const struct nb_jlist *l)
{
    put(w, "[");
    w->level++;
    for (size_t i = 0; i < l->n; i++) {
        next_item(w, i);
        write_value(w, l->v[i]);
    }
    w->level--;
    if (l->n)
        new_line(w);
    put(w, "]");
}

static void write_key(struct writer *w, struct nb_jv key)
{
    if (key.kind == NB_J_STR) {
        write_str(w, key.s);
        return;
    }
    if (key.kind != NB_J_NONE && !nb_jv_is_number(key))
        nb_jfail(w->r->m, -EINVAL, "keys must be str, int, float, bool or None, not %s",
                 nb_jv_type(key));
    put(w, "\"");
    write_value(w, key);
    put(w, "\"");
}

// The order of the entries: as they came, or by key.
static size_t *order_of(struct writer *w, const struct nb_jdict *d)
{
    size_t *order = nb_jarray(w->r->m, d->n + 1, sizeof(*order));

    for (size_t i = 0; i < d->n; i++) {
        size_t at = i;
        for (; w->sorted && at > 0; at--) {
            nb_jstep(w->r->m, 1);
            if (nb_jv_cmp(w->r->m, d->key[order[at - 1]], d->key[i], "<") <= 0)
                break;
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
    return order;
}

static void write_dict(struct writer *w, const struct nb_jdict *d)
{
    const size_t *order = order_of(w, d);

    put(w, "{");
    w->level++;
    for (size_t i = 0; i < d->n; i++) {
        next_item(w, i);
        write_key(w, d->key[order[i]]);
        nb_jbuild_str(w->b, w->key);
        write_value(w, d->value[order[i]]);
    }
    w->level--;
    if (d->n)
        new_line(w);
    put(w, "}");
}

static void write_value(struct writer *w, struct nb_jv v)
{
    nb_jdown(w->r->m);
    nb_jstep(w->r->m, 1);
    switch (v.kind) {
    case NB_J_NONE:
        put(w, "null");
        break;
    case NB_J_BOOL:
        put(w, v.b ? "true" : "false");
        break;
    case NB_J_INT:
    case NB_J_FLOAT:
        write_number(w, v);
        break;
    case NB_J_STR:
        write_str(w, v.s);
        break;
    case NB_J_LIST:
    case NB_J_TUPLE:
        write_list(w, v.list);
        break;
    case NB_J_DICT:
        write_dict(w, v.dict);
        break;
    default:
        nb_jfail(w->r->m, -EINVAL, "Object of type %s is not JSON serializable", nb_jv_type(v));
    }
    w->r->m->depth--;
}

static const struct nb_jstr *indent_of(struct nb_jrun *r, struct nb_jv v)
{
    static const struct nb_jstr blank = {.data = " ", .len = 1, .chars = 1, .client = true};
    struct nb_jbuild b;

    if (v.kind == NB_J_ABSENT || v.kind == NB_J_NONE)
        return NULL;
    if (v.kind == NB_J_STR)
        return v.s;
    if (!nb_jv_is_int(v) || nb_jv_as_int(v) > 1000)
        nb_jfail(r->m, -EINVAL, "tojson: indent is at most 1000 blanks, or a string");
    nb_jbuild_init(&b, r->m);
    nb_jbuild_fill(&b, &blank, nb_jv_as_int(v) > 0 ? (size_t)nb_jv_as_int(v) : 0);
    return nb_jbuild_end(&b);
}

// Parameters: ensure_ascii, indent, separators, sort_keys.
void nb_jtojson(struct nb_jrun *r, struct nb_jbuild *b, const struct nb_jcall *c)
{
    static const struct nb_jstr comma_blank = {.data = ", ", .len = 2, .chars = 2, .client = true},
                                comma = {.data = ",", .len = 1, .chars = 1, .client = true},
                                colon = {.data = ": ", .len = 2, .chars = 2, .client = true};
    struct writer w = {.r = r,
                       .b = b,
                       .ascii = nb_jparam_true(c, 1, false),
                       .indent = indent_of(r, c->v[2]),
                       .sorted = nb_jparam_true(c, 4, false),
                       .key = &colon};
    const struct nb_jlist *pair = NULL;

    w.item = w.indent ? &comma : &comma_blank;
    if (c->v[3].kind == NB_J_LIST || c->v[3].kind == NB_J_TUPLE)
        pair = c->v[3].list;
    if (pair && pair->n == 2 && pair->v[0].kind == NB_J_STR && pair->v[1].kind == NB_J_STR) {
        w.item = pair->v[0].s;
        w.key = pair->v[1].s;
    } else if (c->v[3].kind != NB_J_ABSENT && c->v[3].kind != NB_J_NONE) {
        nb_jfail(r->m, -EINVAL, "tojson: separators are two strings");
    }
    write_value(&w, c->v[0]);
}
