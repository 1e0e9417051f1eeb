// What filters and methods do to strings: cases, trimming, replacing, lines, escaping.
#include <errno.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/chars.h"
#include "engine/text/unicode.h"

static uint32_t char_at(const struct nb_jstr *s, size_t at, size_t *ret_used)
{
    return nb_unicode_decode(s->data + at, s->len - at, ret_used);
}

static void put_char(struct nb_jbuild *b, uint32_t c, bool client)
{
    char out[4];

    nb_jbuild_bytes(b, out, nb_unicode_encode(c, out), client);
}

static bool is_cased(uint32_t c)
{
    return nb_jchar_is_upper(c) || nb_jchar_is_lower(c);
}

// Sigma has another lower case at the end of a word (the Unicode Standard, 3.13, Final_Sigma).
static bool is_final_sigma(const struct nb_jstr *s, size_t at)
{
    size_t before = at, used, after = at + 2;

    if (at == 0)
        return false;
    do
        before--;
    while (before > 0 && ((uint8_t)s->data[before] & 0xc0) == 0x80);
    return is_cased(char_at(s, before, &used)) &&
           (after >= s->len || !is_cased(char_at(s, after, &used)));
}

const struct nb_jstr *nb_jstr_case(struct nb_jmem *m, const struct nb_jstr *s, int to)
{
    struct nb_jbuild b;

    nb_jbuild_init(&b, m);
    for (size_t at = 0, used; at < s->len; at += used) {
        uint32_t out[3], c = char_at(s, at, &used);
        size_t n = nb_jchar_case(c, to, out);
        if (c == 0x3a3 && to == NB_JCASE_LOWER && is_final_sigma(s, at))
            out[0] = 0x3c2;
        for (size_t i = 0; i < n; i++)
            put_char(&b, out[i], nb_jstr_client(s, at));
    }
    return nb_jstr_markup(m, nb_jbuild_end(&b), s->markup);
}

// chars NULL: white space.
static bool is_among(struct nb_jmem *m, const struct nb_jstr *chars, const struct nb_jstr *s,
                     size_t at, size_t len)
{
    size_t used;

    nb_jstep(m, 1 + (chars ? chars->len / 8 : 0));
    if (!chars)
        return nb_jchar_is_space(char_at(s, at, &used));
    for (size_t i = 0; i < chars->len; i += used) {
        used = nb_jstr_step(chars, i);
        if (used == len && memcmp(chars->data + i, s->data + at, len) == 0)
            return true;
    }
    return false;
}

const struct nb_jstr *nb_jstr_trim(struct nb_jmem *m, const struct nb_jstr *s,
                                   const struct nb_jstr *chars, bool left, bool right)
{
    size_t start = 0, end = s->len, used, last;

    while (left && start < end && is_among(m, chars, s, start, used = nb_jstr_step(s, start)))
        start += used;
    for (; right && end > start; end = last) {
        last = end - 1;
        while (last > start && ((uint8_t)s->data[last] & 0xc0) == 0x80)
            last--;
        if (!is_among(m, chars, s, last, end - last))
            break;
    }
    return nb_jstr_part(m, s, start, end - start);
}

const struct nb_jstr *nb_jstr_replace(struct nb_jmem *m, const struct nb_jstr *s,
                                      const struct nb_jstr *old, const struct nb_jstr *with,
                                      int64_t count)
{
    struct nb_jbuild b;
    size_t done = 0, at = 0;

    nb_jbuild_init(&b, m);
    for (; count != 0; count--) {
        size_t found = nb_jstr_find(m, s, old, at, s->len);
        if (found == SIZE_MAX)
            break;
        nb_jbuild_part(&b, s, done, found - done);
        nb_jbuild_str(&b, with);
        done = found + old->len;
        at = done;
        if (old->len == 0) { // between all characters
            if (at == s->len)
                break;
            at += nb_jstr_step(s, at);
        }
    }
    if (done == 0 && b.len == 0)
        return s;
    nb_jbuild_part(&b, s, done, s->len - done);
    return nb_jbuild_end(&b);
}

struct nb_jlist *nb_jstr_lines(struct nb_jmem *m, const struct nb_jstr *s, bool keep_ends)
{
    struct nb_jlist *l = nb_jlist_new(m);
    size_t start = 0, at = 0, used;

    nb_jstep(m, 1 + s->len / 4);
    while (at < s->len) {
        uint32_t c = char_at(s, at, &used);
        if (!nb_jchar_is_line_end(c)) {
            at += used;
            continue;
        }
        size_t end = at;
        at += used;
        at += c == '\r' && at < s->len && s->data[at] == '\n';
        nb_jlist_add(m, l, nb_jv_str(nb_jstr_part(m, s, start, (keep_ends ? at : end) - start)));
        start = at;
    }
    if (start < s->len)
        nb_jlist_add(m, l, nb_jv_str(nb_jstr_part(m, s, start, s->len - start)));
    return l;
}

// markupsafe's escape: Markup passes, all else is escaped and becomes Markup.
const struct nb_jstr *nb_jescape(struct nb_jmem *m, struct nb_jv v)
{
    static const struct {
        char c;
        const char *text;
    } entities[] = {
        {'&', "&amp;"}, {'>', "&gt;"}, {'<', "&lt;"}, {'\'', "&#39;"}, {'"', "&#34;"},
    };
    const struct nb_jstr *s = nb_jv_text(m, v);
    struct nb_jbuild b;

    if (s->markup)
        return s;
    nb_jbuild_init(&b, m);
    for (size_t at = 0; at < s->len; at++) {
        size_t i = 0;
        while (i < sizeof(entities) / sizeof(*entities) && entities[i].c != s->data[at])
            i++;
        if (i < sizeof(entities) / sizeof(*entities))
            nb_jbuild_c(&b, entities[i].text, nb_jstr_client(s, at));
        else
            nb_jbuild_part(&b, s, at, 1);
    }
    return nb_jstr_markup(m, nb_jbuild_end(&b), true);
}
