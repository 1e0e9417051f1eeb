// JSON to values.
#include "engine/text/jinja/json.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/chars.h"
#include "engine/text/unicode.h"

// --- Reading.

struct reader {
    struct nb_jmem *m;
    const char *start, *p, *end;
    unsigned depth;
};

static struct nb_jv read_value(struct reader *j);

static _Noreturn void wrong(struct reader *j, const char *what)
{
    nb_jfail(j->m, -EINVAL, "%s at byte %zu of the JSON", what, (size_t)(j->p - j->start));
}

static void skip_blank(struct reader *j)
{
    while (j->p < j->end && (*j->p == ' ' || *j->p == '\t' || *j->p == '\n' || *j->p == '\r'))
        j->p++;
}

static bool skip_char(struct reader *j, char c)
{
    skip_blank(j);
    bool is = j->p < j->end && *j->p == c;
    j->p += is;
    return is;
}

static uint32_t read_hex(struct reader *j)
{
    uint32_t v = 0;

    if (j->end - j->p < 4)
        wrong(j, "an escape is cut off");
    for (int i = 0; i < 4; i++, j->p++) {
        int digit = nb_jchar_digit(*j->p);
        if (digit > 15)
            wrong(j, "no hex digit");
        v = v << 4 | (uint32_t)digit;
    }
    return v;
}

static uint32_t read_code(struct reader *j)
{
    uint32_t c = read_hex(j);

    if (c < 0xd800 || c > 0xdfff)
        return c;
    if (c > 0xdbff || j->end - j->p < 6 || j->p[0] != '\\' || j->p[1] != 'u')
        wrong(j, "half of a surrogate pair");
    j->p += 2;
    uint32_t low = read_hex(j);
    if (low < 0xdc00 || low > 0xdfff)
        wrong(j, "half of a surrogate pair");
    return 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
}

// One escape after its backslash, to `out`; the bytes written.
static size_t read_escape(struct reader *j, char *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";

    if (j->p == j->end)
        wrong(j, "a string has no end");
    char c = *j->p++;
    const char *simple = c ? strchr(from, c) : NULL;
    if (simple) {
        *out = to[simple - from];
        return 1;
    }
    if (c != 'u')
        wrong(j, "an escape that JSON does not know");
    return nb_unicode_encode(read_code(j), out);
}

static const struct nb_jstr *read_string(struct reader *j)
{
    const char *start = j->p;

    while (j->p < j->end && *j->p != '"' && *j->p != '\\' && (unsigned char)*j->p >= ' ')
        j->p++;
    if (j->p < j->end && *j->p == '"')
        return nb_jstr_view(j->m, start, (size_t)(j->p++ - start), true);
    // Escapes only shrink: what is left of the text is room enough.
    const char *close = j->p;
    while (close < j->end && *close != '"')
        close += *close == '\\' ? 2 : 1;
    if (close >= j->end)
        wrong(j, "a string has no end");
    char *out = nb_jalloc(j->m, (size_t)(close - start) + 4);
    size_t n = (size_t)(j->p - start);
    memcpy(out, start, n);
    while (*j->p != '"') {
        if ((unsigned char)*j->p < ' ')
            wrong(j, "a control character in a string");
        if (*j->p != '\\') {
            out[n++] = *j->p++;
            continue;
        }
        j->p++;
        n += read_escape(j, out + n);
    }
    j->p++;
    return nb_jstr_view(j->m, out, n, true);
}

static struct nb_jv read_number(struct reader *j)
{
    char text[64];
    size_t n = 0;
    bool integer = true;

    while (n < sizeof(text) - 1 && j->p + n < j->end && j->p[n] &&
           strchr("+-0123456789.eE", j->p[n]))
        n++;
    if (n == sizeof(text) - 1)
        wrong(j, "a number of more than 62 characters");
    memcpy(text, j->p, n);
    text[n] = '\0';
    size_t digits = text[0] == '-';
    bool zero = text[digits] == '0' && text[digits + 1] >= '0' && text[digits + 1] <= '9';
    if (!(text[digits] >= '0' && text[digits] <= '9') || zero)
        wrong(j, "no value");
    for (size_t i = digits; i < n; i++)
        integer &= text[i] >= '0' && text[i] <= '9';
    char *rest;
    errno = 0;
    struct nb_jv v =
        integer ? nb_jv_int(strtoll(text, &rest, 10)) : nb_jv_float(strtod(text, &rest));
    if (*rest || (n && text[n - 1] == '.') || strstr(text, ".e") || strstr(text, ".E"))
        wrong(j, "a number that JSON does not know");
    if (errno == ERANGE && (integer || isinf(v.f)))
        wrong(j, "a number that does not fit 64 bits");
    j->p += n;
    v.client = true;
    return v;
}

static struct nb_jv read_array(struct reader *j)
{
    struct nb_jlist *l = nb_jlist_new(j->m);

    if (skip_char(j, ']'))
        return nb_jv_list(l);
    do
        nb_jlist_add(j->m, l, read_value(j));
    while (skip_char(j, ','));
    if (!skip_char(j, ']'))
        wrong(j, "',' or ']' is missing");
    return nb_jv_list(l);
}

static struct nb_jv read_object(struct reader *j)
{
    struct nb_jdict *d = nb_jdict_new(j->m);

    if (skip_char(j, '}'))
        return nb_jv_dict(d);
    do {
        if (!skip_char(j, '"'))
            wrong(j, "a key is missing");
        struct nb_jv key = nb_jv_str(read_string(j));
        if (!skip_char(j, ':'))
            wrong(j, "':' is missing");
        nb_jdict_set(j->m, d, key, read_value(j));
    } while (skip_char(j, ','));
    if (!skip_char(j, '}'))
        wrong(j, "',' or '}' is missing");
    return nb_jv_dict(d);
}

static bool skip_word(struct reader *j, const char *word)
{
    size_t n = strlen(word);
    bool is = (size_t)(j->end - j->p) >= n && memcmp(j->p, word, n) == 0;

    j->p += is ? n : 0;
    return is;
}

static struct nb_jv read_value(struct reader *j)
{
    struct nb_jv v;

    if (++j->depth > NB_JINJA_JSON_DEPTH)
        nb_jfail(j->m, -E2BIG, "the JSON nests deeper than %d levels", NB_JINJA_JSON_DEPTH);
    skip_blank(j);
    if (skip_char(j, '"'))
        v = nb_jv_str(read_string(j));
    else if (skip_char(j, '['))
        v = read_array(j);
    else if (skip_char(j, '{'))
        v = read_object(j);
    else if (skip_word(j, "true"))
        v = nb_jv_bool(true);
    else if (skip_word(j, "false"))
        v = nb_jv_bool(false);
    else if (skip_word(j, "null"))
        v = nb_jv_none();
    else
        v = read_number(j);
    v.client = true;
    j->depth--;
    return v;
}

struct nb_jv nb_jjson_read(struct nb_jmem *m, const char *data, size_t len)
{
    struct reader j = {.m = m, .start = data, .p = data, .end = data + len};
    size_t valid = nb_jchars_valid(data, len);

    if (valid < len) {
        j.p += valid;
        wrong(&j, "no UTF-8");
    }
    struct nb_jv v = read_value(&j);
    skip_blank(&j);
    if (j.p != j.end)
        wrong(&j, "more after the value");
    return v;
}
