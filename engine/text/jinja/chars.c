// Characters as Python's str sees them.
#include "engine/text/jinja/chars.h"

#include "engine/text/unicode.h"

bool nb_jchar_is_space(uint32_t c)
{
    return (c >= 0x1c && c <= 0x1f) || nb_unicode_class(c) == NB_UNICODE_SPACE;
}

bool nb_jchar_is_number(uint32_t c)
{
    return nb_unicode_class(c) == NB_UNICODE_NUMBER;
}

bool nb_jchar_is_alpha(uint32_t c)
{
    return nb_unicode_class(c) == NB_UNICODE_LETTER;
}

bool nb_jchar_is_word(uint32_t c)
{
    return c == '_' || nb_jchar_is_alpha(c) || nb_jchar_is_number(c) ||
           (c >= 0x80 && nb_unicode_class(c) == NB_UNICODE_MARK);
}

static bool changes(uint32_t c, enum nb_jcase to)
{
    uint32_t out[3] = {0};

    return nb_jchar_case(c, to, out) > 1 || out[0] != c;
}

bool nb_jchar_is_upper(uint32_t c)
{
    return changes(c, NB_JCASE_LOWER) && !changes(c, NB_JCASE_UPPER);
}

bool nb_jchar_is_lower(uint32_t c)
{
    return changes(c, NB_JCASE_UPPER) && !changes(c, NB_JCASE_LOWER);
}

bool nb_jchar_is_line_end(uint32_t c)
{
    return (c >= 0xa && c <= 0xd) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

int nb_jchar_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'z' ? c - 'a' + 10 : 99;
}

size_t nb_jchar_rstrip(const char *p, size_t len)
{
    size_t start, used;

    for (; len > 0; len = start) {
        for (start = len - 1; start > 0 && ((uint8_t)p[start] & 0xc0) == 0x80;)
            start--;
        if (!nb_jchar_is_space(nb_unicode_decode(p + start, len - start, &used)) ||
            used != len - start)
            break;
    }
    return len;
}

static uint32_t in_runs(const struct nb_jcase_table *t, uint32_t c)
{
    size_t lo = 0, hi = t->n_runs;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const struct nb_jcase_run *r = &t->run[mid];
        if (c > r->last)
            lo = mid + 1;
        else if (c < r->first)
            hi = mid;
        else
            return (c - r->first) % r->stride ? c : (uint32_t)((int32_t)c + r->delta);
    }
    return c;
}

size_t nb_jchar_case(uint32_t c, enum nb_jcase to, uint32_t out[3])
{
    const struct nb_jcase_table *t = &nb_jcase_tables[to];

    if (c < 0x80) {
        bool lower = c >= 'a' && c <= 'z', upper = c >= 'A' && c <= 'Z';
        out[0] = to == NB_JCASE_LOWER ? (upper ? c + 32 : c) : lower ? c - 32 : c;
        return 1;
    }
    for (size_t i = 0; i < t->n_special; i++) {
        if (t->special[i].from > c)
            break;
        if (t->special[i].from != c)
            continue;
        size_t n = 0;
        for (; n < 3 && t->special[i].to[n]; n++)
            out[n] = t->special[i].to[n];
        return n;
    }
    out[0] = in_runs(t, c);
    return 1;
}

size_t nb_jchars_valid(const char *data, size_t len)
{
    size_t used;

    for (size_t at = 0; at < len; at += used) {
        uint32_t c = nb_unicode_decode(data + at, len - at, &used);
        char back[4];
        if ((uint8_t)data[at] < 0x80)
            continue;
        if (used == 1 || (c >= 0xd800 && c <= 0xdfff) || nb_unicode_encode(c, back) != used)
            return at;
    }
    return len;
}
