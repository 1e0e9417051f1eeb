// Python's two ways of formatting: "%5.1f" % x, and "{:>5}".format(x). A format's own bytes and
// its arguments keep their origin; padding counts as the client's.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/jinja/builtins.h"

#define WIDTH_MAX 10000 // of a field, and digits of a number

// What a specification says.
struct spec {
    struct nb_jstr fill;
    char align, sign, type, group;
    bool alternate;
    int64_t width, precision; // -1: none
};

static int64_t read_number(struct nb_jrun *r, const char **p, const char *end)
{
    int64_t n = -1;

    for (; *p < end && **p >= '0' && **p <= '9'; (*p)++) {
        n = (n < 0 ? 0 : n) * 10 + (**p - '0');
        if (n > WIDTH_MAX)
            nb_jfail(r->m, -E2BIG, "a format is wider than %d characters", WIDTH_MAX);
    }
    return n;
}

// --- Numbers as digits.

static void group_digits(char *text, size_t size, char group, unsigned every)
{
    size_t n = strlen(text), start = 0, digits;

    if (!group)
        return;
    while (start < n && !(text[start] >= '0' && text[start] <= '9'))
        start++;
    for (digits = start; digits < n && strchr("0123456789abcdefABCDEF", text[digits]);)
        digits++;
    for (size_t at = digits; at > start + every && n + 2 < size;) {
        at -= every;
        memmove(text + at + 1, text + at, n - at + 1);
        text[at] = group;
        n++;
    }
}

static void write_binary(uint64_t v, char *out)
{
    size_t n = 0;
    char digits[65];

    do
        digits[n++] = (char)('0' + (v & 1));
    while (v >>= 1);
    for (size_t i = 0; i < n; i++)
        out[i] = digits[n - 1 - i];
    out[n] = '\0';
}

static const char *sign_of(bool negative, char sign)
{
    return negative ? "-" : sign == '+' ? "+" : sign == ' ' ? " " : "";
}

// out: 512 bytes.
static void write_int(const struct spec *s, int64_t v, char *out)
{
    static const struct {
        char type;
        const char *prefix, *format;
    } kinds[] = {{'x', "0x", "%" PRIx64}, {'X', "0X", "%" PRIX64}, {'o', "0o", "%" PRIo64}};
    uint64_t magnitude = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    char digits[256];
    const char *prefix = "";

    snprintf(digits, sizeof(digits), "%" PRIu64, magnitude);
    for (size_t i = 0; i < 3; i++)
        if (kinds[i].type == s->type) {
            snprintf(digits, sizeof(digits), kinds[i].format, magnitude);
            prefix = kinds[i].prefix;
        }
    if (s->type == 'b') {
        write_binary(magnitude, digits);
        prefix = "0b";
    }
    group_digits(digits, sizeof(digits), s->group, s->type == 'd' || !s->type ? 3 : 4);
    snprintf(out, 512, "%s%s%s", sign_of(v < 0, s->sign), s->alternate ? prefix : "", digits);
}

// As Python writes a float by type g, which keeps ".0" where no type is given.
static void write_float(struct nb_jrun *r, const struct spec *s, double v, char *out)
{
    char format[8] = {'%', '.', '*', (char)(s->type == '%' ? 'f' : s->type), '\0'}, digits[400];
    int precision = s->precision < 0 ? 6 : (int)s->precision;

    nb_jstep(r->m, 8 + (size_t)precision / 4); // the C library goes digit by digit
    if (precision > 300 || (fabs(v) > 1e60 && strchr("fF%", s->type ? s->type : 'r')))
        nb_jfail(r->m, -E2BIG, "a format asks for more than 300 digits");
    if (!s->type && s->precision < 0)
        nb_jfloat_repr(r->m, fabs(v), digits);
    else {
        if (!s->type)
            format[3] = 'g';
        snprintf(digits, sizeof(digits), format, precision, fabs(s->type == '%' ? v * 100 : v));
    }
    group_digits(digits, sizeof(digits), s->group, 3);
    snprintf(out, 512, "%s%s%s", sign_of(signbit(v) && !isnan(v), s->sign), digits,
             s->type == '%' ? "%" : "");
}

// --- Padding.

static void put_padded(struct nb_jbuild *b, const struct spec *s, const struct nb_jstr *text,
                       char align)
{
    int64_t n = s->width - (int64_t)nb_jstr_chars(b->mem, text), left;
    size_t sign = 0;

    n = n > 0 ? n : 0;
    left = align == '>' ? n : align == '^' ? n / 2 : 0;
    if (align == '=' && text->len && strchr("+- ", text->data[0]) && text->data[0])
        sign = 1;
    if (align == '=' && s->alternate && text->len > sign + 1 && text->data[sign] == '0')
        sign += 2;
    if (align == '=') {
        nb_jbuild_part(b, text, 0, sign);
        nb_jbuild_fill(b, &s->fill, (size_t)n);
        nb_jbuild_part(b, text, sign, text->len - sign);
        return;
    }
    nb_jbuild_fill(b, &s->fill, (size_t)left);
    nb_jbuild_str(b, text);
    nb_jbuild_fill(b, &s->fill, (size_t)(n - left));
}

static void put_number(struct nb_jrun *r, struct nb_jbuild *b, const struct spec *s, struct nb_jv v)
{
    char out[512];

    if (v.kind == NB_J_FLOAT || (s->type && strchr("eEfFgG%", s->type)))
        write_float(r, s, nb_jv_as_float(v), out);
    else
        write_int(s, nb_jv_as_int(v), out);
    put_padded(b, s, nb_jstr_copy(r->m, out, strlen(out), v.client),
               (char)(s->align ? s->align : '>'));
}

static void put_text(struct nb_jrun *r, struct nb_jbuild *b, const struct spec *s,
                     const struct nb_jstr *text)
{
    if (s->precision >= 0)
        text = nb_jstr_part(r->m, text, 0, nb_jstr_offset(r->m, text, (size_t)s->precision));
    put_padded(b, s, text, (char)(s->align ? s->align : '<'));
}

static const struct nb_jstr blank = {.data = " ", .len = 1, .chars = 1, .client = true},
                            zero = {.data = "0", .len = 1, .chars = 1, .client = true};

// --- "{}".format()

static struct spec read_spec(struct nb_jrun *r, const struct nb_jstr *text)
{
    const char *p = text->data, *end = p + text->len;
    struct spec s = {.fill = blank};
    size_t first = text->len ? nb_jstr_step(text, 0) : 0;

    if (text->len > first && strchr("<>=^", p[first]) && p[first]) {
        s.fill = *nb_jstr_part(r->m, text, 0, first);
        s.align = p[first];
        p += first + 1;
    } else if (p < end && strchr("<>=^", *p) && *p)
        s.align = *p++;
    if (p < end && (*p == '+' || *p == '-' || *p == ' '))
        s.sign = *p++;
    if (p < end && *p == '#')
        s.alternate = *p++;
    if (p < end && *p == '0') {
        if (!s.align) {
            s.align = '=';
            s.fill = zero;
        }
        p++;
    }
    s.width = read_number(r, &p, end);
    if (p < end && (*p == ',' || *p == '_'))
        s.group = *p++;
    s.precision = -1;
    if (p < end && *p == '.') {
        p++;
        s.precision = read_number(r, &p, end);
        if (s.precision < 0)
            nb_jfail(r->m, -EINVAL, "Format specifier missing precision");
    }
    if (p < end && strchr("bcdeEfFgGnosxX%", *p) && *p)
        s.type = *p++;
    if (p != end)
        nb_jfail(r->m, -EINVAL, "Invalid format specifier");
    return s;
}

void nb_jformat_value(struct nb_jrun *r, struct nb_jbuild *b, struct nb_jv v,
                      const struct nb_jstr *text)
{
    struct spec s = read_spec(r, text);
    bool number = nb_jv_is_number(v) && (v.kind != NB_J_BOOL || s.type);

    if (text->len == 0) {
        nb_jbuild_str(b, nb_jv_text(r->m, v));
        return;
    }
    bool integer = s.type && strchr("bdoxXn", s.type);
    bool wrong = number ? s.type == 's' || s.type == 'c' || (integer && v.kind == NB_J_FLOAT)
                        : s.type && s.type != 's';
    if (wrong || (v.kind != NB_J_STR && !nb_jv_is_number(v)))
        nb_jfail(r->m, -EINVAL, "the format '%.40s' does not suit a value of type '%s'",
                 nb_jv_repr_c(r->m, nb_jv_str(text)), nb_jv_type(v));
    if (s.align == '=' && !number)
        nb_jfail(r->m, -EINVAL, "'=' alignment not allowed in string format specifier");
    if (s.type == 'n')
        s.type = v.kind == NB_J_FLOAT ? 'g' : 'd';
    if (number)
        put_number(r, b, &s, v);
    else
        put_text(r, b, &s, nb_jv_text(r->m, v));
}

struct fields {
    struct nb_jrun *r;
    const struct nb_jstr *format;
    const struct nb_jcall *c;
    size_t next; // automatic number
    unsigned depth;
};

static void format_into(struct fields *f, struct nb_jbuild *b, size_t at, size_t end);

// The value of "name.attr[item]" in bytes [at, end) of the format.
static struct nb_jv field_value(struct fields *f, size_t at, size_t end)
{
    struct nb_jrun *r = f->r;
    const char *data = f->format->data;
    size_t i = at;
    struct nb_jv v;

    while (i < end && data[i] != '.' && data[i] != '[')
        i++;
    const char *p = data + at;
    int64_t number = read_number(r, &p, data + i);
    if (i == at)
        number = (int64_t)f->next++;
    if (number >= 0 && (i == at || p == data + i)) {
        if ((size_t)number + 1 >= f->c->n)
            nb_jfail(r->m, -EINVAL,
                     "Replacement index %" PRId64 " out of range for positional "
                     "args tuple",
                     number);
        v = f->c->v[number + 1];
    } else {
        struct nb_jv key = nb_jv_str(nb_jstr_part(r->m, f->format, at, i - at)), *there;
        there = f->c->kw ? nb_jdict_get(r->m, f->c->kw, key) : NULL;
        if (there)
            v = *there;
        else
            nb_jfail(r->m, -EINVAL, "%s", nb_jv_repr_c(r->m, key));
    }
    while (i < end) {
        bool item = data[i++] == '[';
        size_t start = i;
        while (i < end && (item ? data[i] != ']' : data[i] != '.' && data[i] != '['))
            i++;
        const struct nb_jstr *name = nb_jstr_part(r->m, f->format, start, i - start);
        p = data + start;
        number = item ? read_number(r, &p, data + i) : -1;
        v = !item                          ? nb_jattr(r, v, name)
            : number >= 0 && p == data + i ? nb_jitem(r, v, nb_jv_int(number))
                                           : nb_jitem(r, v, nb_jv_str(name));
        i += item && i < end;
    }
    return v;
}

// One field without its braces: name!conversion:spec, with fields in the specification.
static void format_field(struct fields *f, struct nb_jbuild *b, size_t at, size_t end)
{
    const char *data = f->format->data;
    size_t name = at, bracket = 0;
    struct nb_jbuild spec;
    char conversion = '\0';

    while (name < end && (bracket || (data[name] != '!' && data[name] != ':'))) {
        bracket += data[name] == '[';
        bracket -= bracket && data[name] == ']';
        name++;
    }
    struct nb_jv v = field_value(f, at, name);
    if (name + 1 < end && data[name] == '!') {
        conversion = data[name + 1];
        name += 2;
    }
    nb_jbuild_init(&spec, f->r->m);
    if (name < end && data[name] == ':')
        format_into(f, &spec, name + 1, end);
    else if (name < end)
        nb_jfail(f->r->m, -EINVAL, "expected ':' after conversion specifier");
    if (conversion == 'r' || conversion == 'a') {
        struct nb_jbuild repr;
        nb_jbuild_init(&repr, f->r->m);
        nb_jv_repr(&repr, v);
        v = nb_jv_str(nb_jbuild_end(&repr));
    } else if (conversion) {
        v = nb_jv_str(nb_jv_text(f->r->m, v));
    }
    if (f->format->markup)
        v = nb_jv_str(nb_jescape(f->r->m, v));
    nb_jformat_value(f->r, b, v, nb_jbuild_end(&spec));
}

static void format_into(struct fields *f, struct nb_jbuild *b, size_t at, size_t end)
{
    const char *data = f->format->data;

    if (++f->depth > 2)
        nb_jfail(f->r->m, -EINVAL, "Max string recursion exceeded");
    while (at < end) {
        size_t start = at, depth = 0;
        char brace = data[at];
        nb_jstep(f->r->m, 1);
        if ((brace == '{' || brace == '}') && at + 1 < end && data[at + 1] == brace) {
            nb_jbuild_part(b, f->format, at, 1);
            at += 2;
            continue;
        }
        if (brace == '}')
            nb_jfail(f->r->m, -EINVAL, "Single '}' encountered in format string");
        if (brace != '{') {
            while (at < end && data[at] != '{' && data[at] != '}')
                at++;
            nb_jbuild_part(b, f->format, start, at - start);
            continue;
        }
        do {
            depth += data[at] == '{';
            depth -= data[at] == '}';
            at++;
        } while (at < end && depth);
        if (depth)
            nb_jfail(f->r->m, -EINVAL, "expected '}' before end of string");
        format_field(f, b, start + 1, at - 1);
    }
    f->depth--;
}

struct nb_jv nb_jstr_format(struct nb_jrun *r, const struct nb_jstr *format,
                            const struct nb_jcall *c)
{
    struct fields f = {.r = r, .format = format, .c = c};
    struct nb_jbuild b;

    nb_jbuild_init(&b, r->m);
    format_into(&f, &b, 0, format->len);
    return nb_jv_str(nb_jstr_markup(r->m, nb_jbuild_end(&b), format->markup));
}

// --- "%s" %

struct percent {
    struct nb_jrun *r;
    struct nb_jv args;
    size_t next;
    bool markup;
};

static struct nb_jv next_arg(struct percent *p)
{
    bool tuple = p->args.kind == NB_J_TUPLE;

    if (p->next >= (tuple ? p->args.list->n : 1))
        nb_jfail(p->r->m, -EINVAL, "not enough arguments for format string");
    return tuple ? p->args.list->v[p->next++] : (p->next++, p->args);
}

static struct nb_jv keyed_arg(struct percent *p, const struct nb_jstr *key)
{
    if (p->args.kind != NB_J_DICT)
        nb_jfail(p->r->m, -EINVAL, "format requires a mapping");
    const struct nb_jv *there = nb_jdict_get(p->r->m, p->args.dict, nb_jv_str(key));
    p->next = 1;
    if (there)
        return *there;
    nb_jfail(p->r->m, -EINVAL, "%s", nb_jv_repr_c(p->r->m, nb_jv_str(key)));
}

static int64_t star_or_number(struct percent *p, const char **at, const char *end)
{
    if (*at == end || **at != '*')
        return read_number(p->r, at, end);
    (*at)++;
    struct nb_jv v = next_arg(p);
    if (!nb_jv_is_int(v) || nb_jv_as_int(v) > WIDTH_MAX || nb_jv_as_int(v) < -WIDTH_MAX)
        nb_jfail(p->r->m, -EINVAL, "* wants int");
    return nb_jv_as_int(v);
}

static void put_percent(struct percent *p, struct nb_jbuild *b, struct spec *s, struct nb_jv v)
{
    if (strchr("rsa", s->type)) {
        if (s->type != 's') {
            struct nb_jbuild repr;
            nb_jbuild_init(&repr, p->r->m);
            nb_jv_repr(&repr, v);
            v = nb_jv_str(nb_jbuild_end(&repr));
        }
        if (p->markup)
            v = nb_jv_str(nb_jescape(p->r->m, v));
        s->align = s->align == '<' ? '<' : '>';
        s->fill = blank;
        put_text(p->r, b, s, nb_jv_text(p->r->m, v));
        return;
    }
    if (v.kind == NB_J_UNDEFINED)
        nb_jv_fail_undefined(p->r->m, v);
    if (!nb_jv_is_number(v))
        nb_jfail(p->r->m, -EINVAL, "%%%c format: a number is required, not %s", s->type,
                 nb_jv_type(v));
    if (strchr("diu", s->type)) {
        if (v.kind == NB_J_FLOAT && !(fabs(v.f) < 9e18))
            nb_jfail(p->r->m, -EINVAL, "a number does not fit 64 bits");
        v = (struct nb_jv){.kind = NB_J_INT,
                           .client = v.client,
                           .i = v.kind == NB_J_FLOAT ? (int64_t)v.f : nb_jv_as_int(v)};
        s->type = 'd';
    }
    if (strchr("xXo", s->type) && v.kind == NB_J_FLOAT)
        nb_jfail(p->r->m, -EINVAL, "%%%c format: an integer is required, not float", s->type);
    put_number(p->r, b, s, v);
}

// One conversion after its '%'; returns where it ends.
static const char *convert(struct percent *p, struct nb_jbuild *b, const struct nb_jstr *format,
                           const char *at)
{
    const char *end = format->data + format->len, *key = NULL, *close = NULL;
    struct spec s = {.fill = blank, .precision = -1, .align = '>'};

    if (at < end && *at == '(') {
        key = at + 1;
        close = memchr(key, ')', (size_t)(end - key));
        if (!close)
            nb_jfail(p->r->m, -EINVAL, "incomplete format key");
        at = close + 1;
    }
    for (; at < end && strchr("-+ #0", *at) && *at; at++) {
        if (*at == '-')
            s.align = '<';
        else if (*at == '0' && s.align != '<') {
            s.align = '=';
            s.fill = zero;
        } else if (*at == '#')
            s.alternate = true;
        else if (*at != '0' && s.sign != '+')
            s.sign = *at;
    }
    s.width = star_or_number(p, &at, end);
    if (s.width < -1) {
        s.align = '<';
        s.width = -s.width;
    }
    if (at < end && *at == '.') {
        at++;
        s.precision = star_or_number(p, &at, end);
        s.precision = s.precision < 0 ? 0 : s.precision;
    }
    while (at < end && strchr("hlL", *at) && *at)
        at++;
    if (at == end)
        nb_jfail(p->r->m, -EINVAL, "incomplete format");
    s.type = *at++;
    if (s.type == '%') {
        nb_jbuild_c(b, "%", false);
        return at;
    }
    if (!s.type || !strchr("diuoxXeEfFgGrsa", s.type))
        nb_jfail(p->r->m, -EINVAL, "unsupported format character '%c'", s.type);
    if (s.align == '<')
        s.fill = blank;
    size_t from = key ? (size_t)(key - format->data) : 0;
    put_percent(p, b, &s,
                key ? keyed_arg(p, nb_jstr_part(p->r->m, format, from, (size_t)(close - key)))
                    : next_arg(p));
    return at;
}

const struct nb_jstr *nb_jpercent(struct nb_jrun *r, const struct nb_jstr *format,
                                  struct nb_jv args)
{
    const char *at = format->data, *end = at + format->len;
    struct percent p = {.r = r, .args = args, .markup = format->markup};
    struct nb_jbuild b;

    nb_jbuild_init(&b, r->m);
    while (at < end) {
        const char *sign = memchr(at, '%', (size_t)(end - at)), *stop = sign ? sign : end;
        nb_jstep(r->m, 1);
        nb_jbuild_part(&b, format, (size_t)(at - format->data), (size_t)(stop - at));
        at = sign ? convert(&p, &b, format, sign + 1) : end;
    }
    size_t given = args.kind == NB_J_TUPLE                            ? args.list->n
                   : args.kind == NB_J_DICT || args.kind == NB_J_LIST ? p.next
                                                                      : 1;
    if (p.next < given)
        nb_jfail(r->m, -EINVAL, "not all arguments converted during string formatting");
    return nb_jstr_markup(r->m, nb_jbuild_end(&b), format->markup);
}
