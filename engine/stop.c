// Stop strings in a stream of bytes, each by Knuth, Morris and Pratt's automaton: linear in the
// bytes, whatever they are.
#include "engine/stop.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct string {
    char text[NB_STOP_BYTES_MAX + 1];
    uint16_t len, matched;                // how much of it the stream's end may be the beginning of
    uint16_t fallback[NB_STOP_BYTES_MAX]; // after i + 1 matched bytes, the next shorter candidate
};

struct nb_stop {
    size_t n_strings, n_held;
    bool found;
    char held[NB_STOP_BYTES_MAX];
    struct string string[];
};

static uint16_t advance(const struct string *s, uint16_t matched, char byte)
{
    while (matched > 0 && s->text[matched] != byte)
        matched = s->fallback[matched - 1];
    return s->text[matched] == byte ? matched + 1 : 0;
}

int nb_stop_create(const struct nb_str *strings, size_t n, struct nb_stop **ret)
{
    if (n > NB_STOP_STRINGS_MAX)
        return -EINVAL;
    for (size_t i = 0; i < n; i++)
        if (strings[i].len == 0 || strings[i].len > NB_STOP_BYTES_MAX)
            return -EINVAL;
    struct nb_stop *s = calloc(1, sizeof *s + n * sizeof *s->string);
    if (!s)
        return -ENOMEM;
    s->n_strings = n;
    for (size_t i = 0; i < n; i++) {
        struct string *to = &s->string[i];
        to->len = (uint16_t)strings[i].len;
        memcpy(to->text, strings[i].data, to->len);
        for (uint16_t k = 1; k < to->len; k++)
            to->fallback[k] = advance(to, to->fallback[k - 1], to->text[k]);
    }
    *ret = s;
    return 0;
}

void nb_stop_destroy(struct nb_stop *s)
{
    free(s);
}

static size_t release(struct nb_stop *s, size_t n, char *out)
{
    memcpy(out, s->held, n);
    s->n_held -= n;
    memmove(s->held, s->held + n, s->n_held);
    return n;
}

// One more byte: the longest stop string that it completes (0: none), and how many bytes may still
// become one.
static size_t match(struct nb_stop *s, char byte, size_t *ret_partial)
{
    size_t whole = 0, partial = 0;

    for (size_t i = 0; i < s->n_strings; i++) {
        struct string *t = &s->string[i];
        t->matched = advance(t, t->matched, byte);
        if (t->matched == t->len && t->len > whole)
            whole = t->len;
        if (t->matched > partial)
            partial = t->matched;
    }
    *ret_partial = partial;
    return whole;
}

bool nb_stop_push(struct nb_stop *s, const char *bytes, size_t n, char *out, size_t *ret_out)
{
    size_t written = 0;

    for (size_t i = 0; i < n && !s->found; i++) {
        size_t partial, whole = match(s, bytes[i], &partial);
        s->held[s->n_held++] = bytes[i];
        written += release(s, s->n_held - (whole ? whole : partial), out + written);
        s->found = whole > 0;
    }
    *ret_out = written;
    return s->found;
}

size_t nb_stop_finish(struct nb_stop *s, char *out)
{
    return s->found ? 0 : release(s, s->n_held, out);
}
