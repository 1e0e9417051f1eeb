// Stop strings in a stream of bytes, each by an automaton of its own.
#include "engine/text/stop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/pattern.h"

_Static_assert(NB_STOP_BYTES_MAX <= NB_PATTERN_BYTES_MAX, "a stop string is a pattern");

struct nb_stop {
    size_t n_strings, n_held;
    bool found;
    char held[NB_STOP_BYTES_MAX];
    struct nb_pattern string[];
};

int nb_stop_create(const struct nb_str *strings, size_t n, struct nb_stop **ret)
{
    if (n > NB_STOP_STRINGS_MAX)
        return -EINVAL;
    for (size_t i = 0; i < n; i++)
        if (strings[i].len == 0 || strings[i].len > NB_STOP_BYTES_MAX)
            return -EINVAL;
    struct nb_stop *s = calloc(1, sizeof(*s) + n * sizeof(*s->string));
    if (!s)
        return -ENOMEM;
    s->n_strings = n;
    for (size_t i = 0; i < n; i++)
        nb_pattern_init(&s->string[i], strings[i]);
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
        struct nb_pattern *t = &s->string[i];
        if (nb_pattern_push(t, byte) && t->len > whole)
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
