// A template's text as tokens.
#include "engine/text/jinja/lex.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/jinja/chars.h"
#include "engine/text/unicode.h"

#define BRACKETS_MAX 256

struct lexer {
    struct nb_jmem *m;
    const char *p, *end;
    struct nb_jtoken *token;
    size_t n, capacity;
    bool line_starting; // what was read last ended a line
    char bracket[BRACKETS_MAX];
    size_t n_brackets;
};

static struct nb_jtoken *add(struct lexer *l, enum nb_jtoken_kind kind)
{
    if (l->n == l->capacity)
        l->token = nb_jgrow(l->m, l->token, l->n, &l->capacity, sizeof(*l->token));
    struct nb_jtoken *t = &l->token[l->n++];
    *t = (struct nb_jtoken){.kind = (uint8_t)kind, .line = l->m->line};
    return t;
}

static bool at(const struct lexer *l, const char *text)
{
    size_t n = strlen(text);

    return (size_t)(l->end - l->p) >= n && memcmp(l->p, text, n) == 0;
}

static void skip(struct lexer *l, size_t n)
{
    for (size_t i = 0; i < n; i++)
        l->m->line += l->p[i] == '\n';
    l->line_starting = n ? l->p[n - 1] == '\n' : l->line_starting;
    l->p += n;
}

static size_t space_length(const char *p, const char *end)
{
    const char *start = p;

    for (size_t used; p < end; p += used)
        if (!nb_jchar_is_space(nb_unicode_decode(p, (size_t)(end - p), &used)))
            break;
    return (size_t)(p - start);
}

static const struct nb_jstr *own_text(struct lexer *l, const char *data, size_t len)
{
    struct nb_jstr *s = (struct nb_jstr *)nb_jstr_view(l->m, data, len, false);

    s->chars = nb_jstr_chars(l->m, s); // threads share it: nothing is filled in later
    return s;
}

// --- Data.

// The bytes of [p, p + len) that stay before a tag with this sign. Before a block or a comment the
// blanks since the line's begin go.
static size_t kept_before(const struct lexer *l, const char *p, size_t len, char sign, bool print)
{
    size_t start = len;

    if (sign == '-')
        return nb_jchar_rstrip(p, len);
    if (sign == '+' || print)
        return len;
    while (start > 0 && p[start - 1] != '\n')
        start--;
    if ((start > 0 || l->line_starting) && start < len &&
        space_length(p + start, p + len) == len - start)
        return start;
    return len;
}

static void add_data(struct lexer *l, const char *data, size_t len)
{
    if (len)
        add(l, NB_JT_DATA)->s = own_text(l, data, len);
}

static char sign_at(const char *p, const char *end)
{
    if (p < end && (*p == '-' || *p == '+'))
        return *p;
    return '\0';
}

// After a block's or comment's end: with '-' all white space goes, else one line's end.
static size_t trimmed_after(const char *p, const char *end, char sign)
{
    if (sign == '-')
        return space_length(p, end);
    return sign != '+' && p < end && *p == '\n';
}

static void skip_comment(struct lexer *l)
{
    const char *close = memmem(l->p, (size_t)(l->end - l->p), "#}", 2);

    if (!close)
        nb_jfail(l->m, -EINVAL, "a comment has no end");
    char sign = sign_at(close > l->p ? close - 1 : close, close);
    skip(l, (size_t)(close + 2 - l->p));
    l->line_starting = false;
    skip(l, trimmed_after(l->p, l->end, sign));
}

// The length of `{% WORD %}` without its begin, where it stands at p; else 0.
static size_t raw_tag(const char *p, const char *end, const char *word, char *ret_sign)
{
    const char *start = p;
    size_t n = strlen(word);

    p += space_length(p, end);
    if ((size_t)(end - p) < n || memcmp(p, word, n) != 0)
        return 0;
    p += n;
    p += space_length(p, end);
    *ret_sign = sign_at(p, end);
    p += *ret_sign != '\0';
    return (size_t)(end - p) >= 2 && memcmp(p, "%}", 2) == 0 ? (size_t)(p + 2 - start) : 0;
}

static void lex_raw(struct lexer *l)
{
    const char *p = l->p;
    char sign, end_sign;

    for (; (p = memmem(p, (size_t)(l->end - p), "{%", 2)); p += 2) {
        sign = sign_at(p + 2, l->end);
        const char *inside = p + 2 + (sign != '\0');
        size_t n = raw_tag(inside, l->end, "endraw", &end_sign);
        if (!n)
            continue;
        add_data(l, l->p, kept_before(l, l->p, (size_t)(p - l->p), sign, false));
        skip(l, (size_t)(inside + n - l->p));
        skip(l, trimmed_after(l->p, l->end, end_sign));
        return;
    }
    nb_jfail(l->m, -EINVAL, "a raw block has no end");
}

// Text up to the next tag, and the tag's begin, or a whole raw block. The second character of the
// tag, 'r' for a raw block, 0 at the end.
static char lex_data(struct lexer *l)
{
    const char *p = l->p;

    while (p < l->end && !(p[0] == '{' && p + 1 < l->end && strchr("{%#", p[1]) && p[1]))
        p++;
    if (p == l->end) {
        add_data(l, l->p, (size_t)(p - l->p));
        skip(l, (size_t)(p - l->p));
        return '\0';
    }
    char kind = p[1], sign = sign_at(p + 2, l->end), raw_sign;
    const char *inside = p + 2 + (sign != '\0');
    add_data(l, l->p, kept_before(l, l->p, (size_t)(p - l->p), sign, kind == '{'));
    skip(l, (size_t)(inside - l->p));
    size_t raw = kind == '%' ? raw_tag(inside, l->end, "raw", &raw_sign) : 0;
    if (!raw || raw_sign == '+')
        return kind;
    skip(l, raw);
    if (raw_sign == '-')
        skip(l, space_length(l->p, l->end));
    lex_raw(l);
    return 'r';
}

// --- Numbers.

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

// Digits with underscores between them; the length.
static size_t digits(const char *p, const char *end)
{
    const char *start = p;

    while (p < end && (is_digit(*p) || (*p == '_' && p > start && p + 1 < end && is_digit(p[1]))))
        p++;
    return (size_t)(p - start);
}

static size_t float_length(const char *p, const char *end)
{
    size_t n = digits(p, end);
    bool fraction = false, exponent = false;

    if (p + n + 1 < end && p[n] == '.' && is_digit(p[n + 1])) {
        n += 1 + digits(p + n + 1, end);
        fraction = true;
    }
    if (p + n < end && (p[n] | 0x20) == 'e') {
        size_t sign = p + n + 1 < end && (p[n + 1] == '+' || p[n + 1] == '-');
        size_t more = digits(p + n + 1 + sign, end);
        exponent = more > 0;
        n += more ? 1 + sign + more : 0;
    }
    return fraction || exponent ? n : 0;
}

// A copy without underscores; numbers in templates are short.
static void plain(struct lexer *l, size_t n, char out[128])
{
    size_t k = 0;

    if (n >= 128)
        nb_jfail(l->m, -EINVAL, "a number has more than 127 digits");
    for (size_t i = 0; i < n; i++)
        if (l->p[i] != '_')
            out[k++] = l->p[i];
    out[k] = '\0';
}

static int base_of(const struct lexer *l)
{
    if (l->end - l->p < 3 || l->p[0] != '0')
        return 10;
    return (l->p[1] | 0x20) == 'x'   ? 16
           : (l->p[1] | 0x20) == 'o' ? 8
           : (l->p[1] | 0x20) == 'b' ? 2
                                     : 10;
}

static void lex_number(struct lexer *l)
{
    char text[128], *rest;
    bool after_dot = l->n && l->token[l->n - 1].kind == NB_JT_OP && l->token[l->n - 1].op == '.';
    size_t n = after_dot ? 0 : float_length(l->p, l->end);

    if (n) {
        plain(l, n, text);
        add(l, NB_JT_FLOAT)->f = strtod(text, NULL);
        skip(l, n);
        return;
    }
    int base = base_of(l);
    if (base == 10)
        n = digits(l->p, l->end);
    else
        for (n = 2; l->p + n < l->end && (nb_jchar_digit(l->p[n]) < base || l->p[n] == '_'); n++)
            ;
    plain(l, n, text);
    errno = 0;
    long long value = strtoll(base == 10 ? text : text + 2, &rest, base);
    if (errno == ERANGE)
        nb_jfail(l->m, -EINVAL, "the number %.40s does not fit 64 bits", text);
    add(l, NB_JT_INT)->i = value;
    skip(l, n);
}

// --- Strings.

static uint32_t hex(struct lexer *l, const char *p, const char *end, size_t n)
{
    uint32_t value = 0;

    for (size_t i = 0; i < n; i++) {
        int digit = p + i < end ? nb_jchar_digit(p[i]) : 99;
        if (digit > 15)
            nb_jfail(l->m, -EINVAL, "a \\x, \\u or \\U in a string lacks hex digits");
        value = value << 4 | (uint32_t)digit;
    }
    if (value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff))
        nb_jfail(l->m, -EINVAL, "a \\u or \\U in a string is no character");
    return value;
}

// One escape after the backslash; writes at most 4 bytes and returns what it read.
static size_t unescape(struct lexer *l, const char *p, const char *end, char *out, size_t *ret_n)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    const char *simple = *p ? strchr(from, *p) : NULL;
    size_t n = 0;
    uint32_t value = 0;

    if (*p == '\n') {
        *ret_n = 0;
        return 1;
    }
    if (simple) {
        out[0] = to[simple - from];
        *ret_n = 1;
        return 1;
    }
    if (*p == 'x' || *p == 'u' || *p == 'U') {
        n = *p == 'x' ? 2 : *p == 'u' ? 4 : 8;
        *ret_n = nb_unicode_encode(hex(l, p + 1, end, n), out);
        return n + 1;
    }
    if (*p == 'N')
        nb_jfail(l->m, -EINVAL, "\\N{...} in a string is not known; write \\u");
    for (; n < 3 && p + n < end && p[n] >= '0' && p[n] <= '7'; n++)
        value = value << 3 | (uint32_t)(p[n] - '0');
    if (n) {
        *ret_n = nb_unicode_encode(value, out);
        return n;
    }
    out[0] = '\\'; // an escape that is none stays
    *ret_n = 1;
    return 0;
}

static void lex_string(struct lexer *l)
{
    const char *p = l->p + 1, *close = p;

    while (close < l->end && *close != *l->p)
        close += *close == '\\' ? 2 : 1;
    if (close >= l->end)
        nb_jfail(l->m, -EINVAL, "a string has no end");
    char *out = nb_jalloc(l->m, (size_t)(close - p) + 1);
    size_t len = 0, n;
    while (p < close) {
        if (*p != '\\') {
            out[len++] = *p++;
            continue;
        }
        p++;
        p += unescape(l, p, close, out + len, &n);
        len += n;
    }
    add(l, NB_JT_STRING)->s = own_text(l, out, len);
    skip(l, (size_t)(close + 1 - l->p));
}

// --- Names, operators.

static size_t name_length(const char *p, const char *end)
{
    const char *start = p;

    for (size_t used; p < end; p += used)
        if (!nb_jchar_is_word(nb_unicode_decode(p, (size_t)(end - p), &used)))
            break;
    return (size_t)(p - start);
}

static void balance(struct lexer *l, char c)
{
    static const char open[] = "([{", close[] = ")]}";
    const char *opening = strchr(open, c), *closing = strchr(close, c);

    if (opening && l->n_brackets == BRACKETS_MAX)
        nb_jfail(l->m, -E2BIG, "brackets nest deeper than %d", BRACKETS_MAX);
    if (opening)
        l->bracket[l->n_brackets++] = close[opening - open];
    if (!closing)
        return;
    if (l->n_brackets == 0)
        nb_jfail(l->m, -EINVAL, "unexpected '%c'", c);
    if (l->bracket[--l->n_brackets] != c)
        nb_jfail(l->m, -EINVAL, "unexpected '%c', expected '%c'", c, l->bracket[l->n_brackets]);
}

static void lex_operator(struct lexer *l)
{
    static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};

    for (size_t i = 0; i < sizeof(two) / sizeof(*two); i++)
        if (at(l, two[i])) {
            add(l, NB_JT_OP)->op = (uint16_t)NB_JOP(two[i][0], two[i][1]);
            skip(l, 2);
            return;
        }
    if (!*l->p || !strchr("+-/*%~[](){}><=.:|,;", *l->p))
        nb_jfail(l->m, -EINVAL, "unexpected character '%.*s'",
                 (int)nb_jstr_step(nb_jstr_view(l->m, l->p, (size_t)(l->end - l->p), false), 0),
                 l->p);
    balance(l, *l->p);
    add(l, NB_JT_OP)->op = (uint8_t)*l->p;
    skip(l, 1);
}

// The end of a tag, if it stands here: its length with the sign.
static size_t tag_end(const struct lexer *l, char kind)
{
    const char *close = kind == '{' ? "}}" : "%}";

    if (l->n_brackets)
        return 0;
    if (at(l, close))
        return 2;
    char sign = sign_at(l->p, l->end);
    if (!sign || (sign == '+' && kind == '{') || l->end - l->p < 3 ||
        memcmp(l->p + 1, close, 2) != 0)
        return 0;
    return 3;
}

static void lex_tag(struct lexer *l, char kind)
{
    bool print = kind == '{';

    add(l, print ? NB_JT_PRINT : NB_JT_BLOCK);
    while (l->p < l->end) {
        size_t n = tag_end(l, kind);
        if (n) {
            char sign = sign_at(l->p, l->end);
            add(l, print ? NB_JT_PRINT_END : NB_JT_BLOCK_END);
            skip(l, n);
            if (!print || sign == '-')
                skip(l, trimmed_after(l->p, l->end, sign));
            return;
        }
        size_t word = name_length(l->p, l->end), space = space_length(l->p, l->end);
        if (space)
            skip(l, space);
        else if (is_digit(*l->p))
            lex_number(l);
        else if (word) {
            add(l, NB_JT_NAME)->s = own_text(l, l->p, word);
            skip(l, word);
        } else if (*l->p == '\'' || *l->p == '"')
            lex_string(l);
        else
            lex_operator(l);
    }
    l->n_brackets = 0;
}

// Every kind of line's end as \n, and the last one gone.
static void normalize(struct lexer *l, const char *text, size_t len)
{
    char *copy = nb_jalloc(l->m, len + 1);
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\n' && i > 0 && text[i - 1] == '\r')
            continue;
        copy[n++] = (char)(text[i] == '\r' ? '\n' : text[i]);
    }
    if (n && copy[n - 1] == '\n')
        n--;
    l->p = copy;
    l->end = copy + n;
}

struct nb_jtoken *nb_jlex(struct nb_jmem *m, const char *text, size_t len)
{
    struct lexer l = {.m = m, .line_starting = true};

    m->line = 1;
    normalize(&l, text, len);
    while (l.p < l.end) {
        char kind = lex_data(&l);
        if (kind == '#')
            skip_comment(&l);
        else if (kind == '{' || kind == '%')
            lex_tag(&l, kind);
    }
    add(&l, NB_JT_END);
    return l.token;
}
