// Text that comes from outside. It decides nothing about what a text means.
#include "libclient/sentence.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

// By lead byte: the sequence's length, and the least that it may stand for, so that overlong forms
// are none.
static size_t length_of(uint8_t lead, uint32_t *ret_bits, uint32_t *ret_least)
{
    static const struct {
        uint8_t mask, lead;
        uint32_t least;
    } forms[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
    for (size_t i = 0; i < sizeof(forms) / sizeof(*forms); i++)
        if ((lead & forms[i].mask) == forms[i].lead) {
            *ret_bits = lead & (uint8_t)~forms[i].mask;
            *ret_least = forms[i].least;
            return i + 1;
        }
    return 0;
}

// The character at the text's beginning and its length, or 0 where it is no whole one.
static size_t character(const char *text, size_t len, uint32_t *ret)
{
    uint32_t code, least;
    size_t n = len ? length_of((uint8_t)*text, &code, &least) : 0;
    if (!n || n > len)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if (((uint8_t)text[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | ((uint8_t)text[i] & 0x3f);
    }
    if (code < least || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
        return 0;
    *ret = code;
    return n;
}

size_t nb_utf8_valid(const char *text, size_t len)
{
    uint32_t code;
    size_t at = 0;
    for (size_t n; at < len && (n = character(text + at, len - at, &code)) > 0;)
        at += n;
    return at;
}

// Of these characters a terminal makes more than a letter: C0, DEL, C1, separators of lines, and
// what turns the direction of writing.
static bool is_shown(uint32_t code)
{
    static const uint32_t hidden[][2] = {
        {0, 0x1f}, {0x7f, 0x9f}, {0x200e, 0x200f}, {0x2028, 0x202e}, {0x2066, 0x2069},
    };
    for (size_t i = 0; i < sizeof(hidden) / sizeof(*hidden); i++)
        if (code >= hidden[i][0] && code <= hidden[i][1])
            return false;
    return true;
}

// Spaces and signs without a shape, but for the two joiners that some scripts spell with.
static bool is_blank(uint32_t code)
{
    static const uint32_t blank[][2] = {{0xa0, 0xa0},     {0xad, 0xad},     {0x1680, 0x1680},
                                        {0x180e, 0x180e}, {0x2000, 0x200b}, {0x202f, 0x202f},
                                        {0x205f, 0x206f}, {0x3000, 0x3000}, {0xfeff, 0xfeff},
                                        {0xfff0, 0xfffb}, {0xfffe, 0xffff}, {0xe0000, 0xe0fff}};
    for (size_t i = 0; i < sizeof(blank) / sizeof(*blank); i++)
        if (code >= blank[i][0] && code <= blank[i][1])
            return true;
    return false;
}

bool nb_name_sound(const char *name, size_t size)
{
    static const char ascii[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t len = strnlen(name, size), at = 0;
    if (!len || len == size || *name == '-')
        return false;
    while (at < len) {
        uint32_t code;
        size_t n = character(name + at, len - at, &code);
        if (!n || (code < 0x80 ? !strchr(ascii, (int)code) : !is_shown(code) || is_blank(code)))
            return false;
        at += n;
    }
    return true;
}

void nb_sentence_clean(char *sentence, size_t size)
{
    size_t len = strnlen(sentence, size - 1), at = 0, out = 0;
    while (at < len) {
        uint32_t code;
        size_t n = character(sentence + at, len - at, &code);
        if (n && is_shown(code))
            memmove(sentence + out, sentence + at, n);
        else
            sentence[out] = '?';
        out += n && is_shown(code) ? n : 1;
        at += n ? n : 1;
    }
    memset(sentence + out, 0, size - out);
}
