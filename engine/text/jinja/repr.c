// Values as Python prints them: str() and repr().
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/jinja/ast.h"
#include "engine/text/jinja/value.h"
#include "engine/text/unicode.h"

// The shortest digits that read back as the same number, as Python lays them out: with an exponent
// below 1e-4 and from 1e16 on.
void nb_jfloat_repr(struct nb_jmem *m, double f, char out[40])
{
    char digits[40];
    int precision = 0;

    if (!isfinite(f)) {
        snprintf(out, 40, "%s", isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
        return;
    }
    do {
        nb_jstep(m, 8); // as long as some nodes take
        snprintf(digits, sizeof(digits), "%.*e", precision, f);
    } while (strtod(digits, NULL) != f && ++precision < 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16) {
        snprintf(out, 40, "%s", digits);
        return;
    }
    int decimals = precision - exponent;
    snprintf(out, 40, "%.*f", decimals > 0 ? decimals : 1, f);
}

// The quotes that Python chooses: apostrophes, unless there are some and no quotation marks.
static char quote_of(const struct nb_jstr *s)
{
    return s->len && memchr(s->data, '\'', s->len) && !memchr(s->data, '"', s->len) ? '"' : '\'';
}

static bool is_printable(uint32_t c)
{
    enum nb_unicode_class class = nb_unicode_class(c);

    return c == ' ' || (class != NB_UNICODE_OTHER && class != NB_UNICODE_SPACE);
}

static void repr_char(struct nb_jbuild *b, const struct nb_jstr *s, size_t at, size_t len, char q)
{
    size_t used;
    uint32_t c = nb_unicode_decode(s->data + at, s->len - at, &used);
    char text[16];

    if (c == (uint32_t)q || c == '\\')
        snprintf(text, sizeof(text), "\\%c", (int)c);
    else if (c == '\n' || c == '\r' || c == '\t')
        snprintf(text, sizeof(text), "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
    else if (is_printable(c)) {
        nb_jbuild_part(b, s, at, len);
        return;
    } else
        snprintf(text, sizeof(text),
                 c < 0x100     ? "\\x%02x"
                 : c < 0x10000 ? "\\u%04x"
                               : "\\U%08x",
                 c);
    nb_jbuild_c(b, text, nb_jstr_client(s, at));
}

static void repr_str(struct nb_jbuild *b, const struct nb_jstr *s)
{
    char q[2] = {quote_of(s), '\0'};

    if (s->markup)
        nb_jbuild_c(b, "Markup(", true);
    nb_jbuild_c(b, q, true);
    for (size_t at = 0, used; at < s->len; at += used) {
        used = nb_jstr_step(s, at);
        repr_char(b, s, at, used, q[0]);
    }
    nb_jbuild_c(b, q, true);
    if (s->markup)
        nb_jbuild_c(b, ")", true);
}

static void repr_items(struct nb_jbuild *b, const struct nb_jlist *l, const char *open,
                       const char *close)
{
    nb_jbuild_c(b, open, true);
    for (size_t i = 0; i < l->n; i++) {
        if (i)
            nb_jbuild_c(b, ", ", true);
        nb_jv_repr(b, l->v[i]);
    }
    nb_jbuild_c(b, close, true);
}

static void repr_dict(struct nb_jbuild *b, const struct nb_jdict *d)
{
    nb_jbuild_c(b, "{", true);
    for (size_t i = 0; i < d->n; i++) {
        if (i)
            nb_jbuild_c(b, ", ", true);
        nb_jv_repr(b, d->key[i]);
        nb_jbuild_c(b, ": ", true);
        nb_jv_repr(b, d->value[i]);
    }
    nb_jbuild_c(b, "}", true);
}

static void repr_view(struct nb_jbuild *b, struct nb_jv v)
{
    nb_jbuild_c(b, nb_jv_type(v), true);
    repr_items(b, nb_jv_items(b->mem, v), "([", "])");
}

static void repr_range(struct nb_jbuild *b, const struct nb_jrange *r)
{
    char text[80];
    int n = snprintf(text, sizeof(text), "range(%" PRId64 ", %" PRId64, r->start, r->stop);

    if (r->step != 1)
        n += snprintf(text + n, sizeof(text) - (size_t)n, ", %" PRId64, r->step);
    snprintf(text + n, sizeof(text) - (size_t)n, ")");
    nb_jbuild_c(b, text, false);
}

static void repr_number(struct nb_jbuild *b, struct nb_jv v)
{
    char text[40];

    if (v.kind == NB_J_FLOAT)
        nb_jfloat_repr(b->mem, v.f, text);
    else
        snprintf(text, sizeof(text), "%" PRId64, v.i);
    nb_jbuild_c(b, text, v.client);
}

// Objects that Python prints with an address have none here.
static void repr_object(struct nb_jbuild *b, struct nb_jv v)
{
    nb_jbuild_c(b, "<", false);
    if (v.kind == NB_J_NAMESPACE) {
        nb_jbuild_c(b, "Namespace ", false);
        repr_dict(b, v.dict);
    } else if (v.kind == NB_J_MACRO) {
        nb_jbuild_c(b, "Macro ", false);
        nb_jv_repr(b, nb_jv_str(v.macro->node->name));
    } else {
        nb_jbuild_c(b, nb_jv_type(v), false);
        nb_jbuild_c(b, " object", false);
    }
    nb_jbuild_c(b, ">", false);
}

void nb_jv_repr(struct nb_jbuild *b, struct nb_jv v)
{
    nb_jdown(b->mem);
    nb_jstep(b->mem, 1);
    switch (v.kind) {
    case NB_J_UNDEFINED:
        nb_jbuild_c(b, "Undefined", false);
        break;
    case NB_J_NONE:
        nb_jbuild_c(b, "None", v.client);
        break;
    case NB_J_BOOL:
        nb_jbuild_c(b, v.b ? "True" : "False", v.client);
        break;
    case NB_J_INT:
    case NB_J_FLOAT:
        repr_number(b, v);
        break;
    case NB_J_STR:
        repr_str(b, v.s);
        break;
    case NB_J_LIST:
        repr_items(b, v.list, "[", "]");
        break;
    case NB_J_TUPLE:
        repr_items(b, v.list, "(", v.list->n == 1 ? ",)" : ")");
        break;
    case NB_J_DICT:
        repr_dict(b, v.dict);
        break;
    case NB_J_VIEW:
        repr_view(b, v);
        break;
    case NB_J_RANGE:
        repr_range(b, v.range);
        break;
    default:
        repr_object(b, v);
    }
    b->mem->depth--;
}

const struct nb_jstr *nb_jv_text(struct nb_jmem *m, struct nb_jv v)
{
    struct nb_jbuild b;

    if (v.kind == NB_J_STR)
        return v.s;
    if (v.kind == NB_J_UNDEFINED)
        return &nb_jstr_empty;
    nb_jbuild_init(&b, m);
    nb_jv_repr(&b, v);
    return nb_jbuild_end(&b);
}

const char *nb_jv_repr_c(struct nb_jmem *m, struct nb_jv v)
{
    struct nb_jbuild b;

    nb_jbuild_init(&b, m);
    nb_jv_repr(&b, v);
    size_t len = b.len < 100 ? b.len : 100;
    while (len < b.len && len > 0 && ((unsigned char)b.data[len] & 0xc0) == 0x80)
        len--;
    nb_jbuild_bytes(&b, "", 1, false); // room for the end
    b.data[len] = '\0';
    return b.data;
}
