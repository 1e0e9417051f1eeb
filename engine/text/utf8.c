// A stream of bytes as UTF-8 text.
#include "engine/text/utf8.h"

#include <stdbool.h>
#include <string.h>

// By lead byte: the sequence's length, and what its second byte may be. The bounds leave out
// overlong forms, surrogates, and what lies past U+10FFFF.
static const struct lead {
    uint8_t first, last, length, low, high;
} leads[] = {
    {0x00, 0x7f, 1, 0, 0},       {0xc2, 0xdf, 2, 0x80, 0xbf}, {0xe0, 0xe0, 3, 0xa0, 0xbf},
    {0xe1, 0xec, 3, 0x80, 0xbf}, {0xed, 0xed, 3, 0x80, 0x9f}, {0xee, 0xef, 3, 0x80, 0xbf},
    {0xf0, 0xf0, 4, 0x90, 0xbf}, {0xf1, 0xf3, 4, 0x80, 0xbf}, {0xf4, 0xf4, 4, 0x80, 0x8f},
};

static const struct lead *find_lead(uint8_t byte)
{
    for (size_t i = 0; i < sizeof(leads) / sizeof(*leads); i++)
        if (byte >= leads[i].first && byte <= leads[i].last)
            return &leads[i];
    return NULL;
}

static size_t put_replacement(char *out)
{
    static const char replacement[] = {'\xef', '\xbf', '\xbd'};

    memcpy(out, replacement, sizeof(replacement));
    return sizeof(replacement);
}

static bool continues(const struct nb_utf8 *u, uint8_t byte)
{
    if (u->n_held > 1)
        return byte >= 0x80 && byte <= 0xbf;
    const struct lead *lead = find_lead((uint8_t)u->held[0]);
    return byte >= lead->low && byte <= lead->high;
}

static size_t begin(struct nb_utf8 *u, uint8_t byte, char *out)
{
    const struct lead *lead = find_lead(byte);

    if (!lead)
        return put_replacement(out);
    if (lead->length == 1) {
        *out = (char)byte;
        return 1;
    }
    u->held[0] = (char)byte;
    u->n_held = 1;
    u->length = lead->length;
    return 0;
}

static size_t push_byte(struct nb_utf8 *u, uint8_t byte, char *out)
{
    if (u->n_held == 0)
        return begin(u, byte, out);
    if (!continues(u, byte)) {
        size_t n = nb_utf8_finish(u, out);
        return n + begin(u, byte, out + n);
    }
    u->held[u->n_held++] = (char)byte;
    if (u->n_held < u->length)
        return 0;
    memcpy(out, u->held, u->length);
    u->n_held = 0;
    return u->length;
}

size_t nb_utf8_push(struct nb_utf8 *u, const char *bytes, size_t n, char *out)
{
    size_t written = 0;

    for (size_t i = 0; i < n; i++)
        written += push_byte(u, (uint8_t)bytes[i], out + written);
    return written;
}

size_t nb_utf8_finish(struct nb_utf8 *u, char *out)
{
    bool broken = u->n_held > 0;

    u->n_held = 0;
    return broken ? put_replacement(out) : 0;
}
