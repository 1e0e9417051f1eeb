// A stream of bytes as UTF-8 text: only whole sequences leave, whatever pieces they come in. Bytes
// that are no UTF-8 leave as U+FFFD, one for each longest run that a valid sequence could have
// begun with (the Unicode Standard's "maximal subparts", 3.9), so what a client reads is always
// valid.
#pragma once

#include <stddef.h>
#include <stdint.h>

// Zero it to begin.
struct nb_utf8 {
    char held[4]; // a sequence that is valid so far
    uint8_t n_held, length;
};

#define NB_UTF8_OUT(n) (3 * (n) + 3) // bytes that n more can let out at most

// Takes n bytes; writes what is whole to `out` and returns its length.
size_t nb_utf8_push(struct nb_utf8 *u, const char *bytes, size_t n, char *out);
// The stream has ended: what is held is no whole sequence. At most 3 bytes.
size_t nb_utf8_finish(struct nb_utf8 *u, char *out);
