// One string looked for in a stream of bytes, by Knuth, Morris and Pratt's automaton: linear in the
// bytes, whatever they are.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "tensor/gguf.h"

#define NB_PATTERN_BYTES_MAX 256

struct nb_pattern {
    char text[NB_PATTERN_BYTES_MAX + 1];
    uint16_t len, matched; // how much of it the stream's end may be the beginning of
    uint16_t
        fallback[NB_PATTERN_BYTES_MAX]; // after i + 1 matched bytes, the next shorter candidate
};

void nb_pattern_init(struct nb_pattern *p, struct nb_str text); // 1 to NB_PATTERN_BYTES_MAX bytes
// One more byte. True: the stream ends with the string; nothing may be pushed after that.
bool nb_pattern_push(struct nb_pattern *p, char byte);
