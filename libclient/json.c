// A reader of JSON that only checks. No recursion: a text may nest as deep as the stack of bits
// below, no deeper.
#include "libclient/json.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "libclient/sentence.h"

#define DEPTH_MAX 512

struct reader {
    const char *at, *end;
    const char *fault; // what is wrong at `at`
    unsigned depth;
    uint8_t objects[DEPTH_MAX / 8]; // a bit for each open bracket: it is an object's
};

static bool wrong(struct reader *r, const char *fault)
{
    if (!r->fault)
        r->fault = fault;
    return false;
}

static int peek(const struct reader *r)
{
    return r->at < r->end ? (uint8_t)*r->at : -1;
}

static bool take(struct reader *r, char byte)
{
    if (peek(r) != (uint8_t)byte)
        return false;
    r->at++;
    return true;
}

static void skip_space(struct reader *r)
{
    while (r->at < r->end && strchr(" \t\r\n", *r->at) && *r->at)
        r->at++;
}

static bool is_digit(int byte)
{
    return byte >= '0' && byte <= '9';
}

static bool digits(struct reader *r)
{
    if (!is_digit(peek(r)))
        return wrong(r, "a number without a digit where one belongs");
    while (is_digit(peek(r)))
        r->at++;
    return true;
}

static bool number(struct reader *r)
{
    take(r, '-');
    if (!take(r, '0') && !digits(r))
        return false;
    if (is_digit(peek(r)))
        return wrong(r, "a number that begins with 0");
    if (take(r, '.') && !digits(r))
        return false;
    if (!take(r, 'e') && !take(r, 'E'))
        return true;
    if (!take(r, '+'))
        take(r, '-');
    return digits(r);
}

static bool escape(struct reader *r)
{
    int byte = peek(r);
    if (byte <= 0 || !strchr("\"\\/bfnrtu", byte))
        return wrong(r, "a backslash before what is no escape");
    r->at++;
    for (int i = 0; byte == 'u' && i < 4; i++, r->at++) {
        int digit = peek(r);
        if (digit <= 0 || !strchr("0123456789abcdefABCDEF", digit))
            return wrong(r, "\\u without four hexadecimal digits");
    }
    return true;
}

static bool string(struct reader *r)
{
    const char *begin = r->at++;
    while (r->at < r->end && *r->at != '"') {
        if ((uint8_t)*r->at < 0x20)
            return wrong(r, "a control character within a string: write it as an escape");
        bool escaped = *r->at++ == '\\';
        if (escaped && !escape(r))
            return false;
    }
    if (take(r, '"'))
        return true;
    r->at = begin;
    return wrong(r, "a string that does not end");
}

static bool word(struct reader *r)
{
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
        size_t n = strlen(words[i]);
        if ((size_t)(r->end - r->at) >= n && !memcmp(r->at, words[i], n)) {
            r->at += n;
            return true;
        }
    }
    return wrong(r, r->at == r->end ? "the end, where a value belongs" : "no value");
}

static bool key(struct reader *r)
{
    skip_space(r);
    if (peek(r) != '"')
        return wrong(r, "no name in quotes, which an object's member begins with");
    if (!string(r))
        return false;
    skip_space(r);
    return take(r, ':') || wrong(r, "no colon after a member's name");
}

static bool in_object(const struct reader *r)
{
    unsigned i = r->depth - 1;
    return r->objects[i / 8] >> i % 8 & 1;
}

// A bracket that opens. *ret_value: a value is next.
static bool open_bracket(struct reader *r, bool *ret_value)
{
    bool object = *r->at == '{';
    if (r->depth == DEPTH_MAX)
        return wrong(r, "brackets more than 512 deep");
    uint8_t bit = (uint8_t)(1 << r->depth % 8), *byte = &r->objects[r->depth / 8];
    *byte = object ? *byte | bit : (uint8_t)(*byte & ~bit);
    r->depth++;
    r->at++;
    skip_space(r);
    *ret_value = peek(r) != (object ? '}' : ']');
    return !*ret_value || !object || key(r);
}

// After a value, or an empty pair's first bracket: brackets that close, or a comma and what
// follows.
static bool close_brackets(struct reader *r)
{
    for (skip_space(r); r->depth; skip_space(r)) {
        bool object = in_object(r);
        if (take(r, object ? '}' : ']')) {
            r->depth--;
            continue;
        }
        if (!take(r, ','))
            return wrong(r, object ? "no comma and no } after an object's member"
                                   : "no comma and no ] after an array's element");
        return !object || key(r);
    }
    return true;
}

static bool scalar(struct reader *r)
{
    int byte = peek(r);
    return byte == '"' ? string(r) : byte == '-' || is_digit(byte) ? number(r) : word(r);
}

static bool value(struct reader *r)
{
    do {
        bool more = false;
        skip_space(r);
        int byte = peek(r);
        if (byte == '[' || byte == '{' ? !open_bracket(r, &more) : !scalar(r))
            return false;
        if (more)
            continue;
        if (!close_brackets(r))
            return false;
    } while (r->depth);
    return r->at == r->end || wrong(r, "more than one value");
}

static int tell(const char *text, const char *at, const char *what, int code,
                struct nb_json_fault *ret)
{
    *ret = (struct nb_json_fault){what, 1, 1};
    for (; text < at; text++) {
        ret->column = *text == '\n' ? 1 : ret->column + 1;
        ret->line += *text == '\n';
    }
    return code;
}

int nb_json_check(const char *text, size_t len, char opens, struct nb_json_fault *ret_fault)
{
    struct reader r = {.at = text, .end = text + len};
    size_t valid = nb_utf8_valid(text, len);
    if (valid < len)
        return tell(text, text + valid, "bytes that are no UTF-8", -EILSEQ, ret_fault);
    skip_space(&r);
    if (peek(&r) != opens)
        wrong(&r, opens == '[' ? "no [, which an array begins with"
                               : "no {, which an object begins with");
    if (!r.fault && value(&r))
        return 0;
    return tell(text, r.at, r.fault, -EINVAL, ret_fault);
}
