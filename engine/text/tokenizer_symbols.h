// Strings with numbers, found by hash: a vocabulary's tokens, then what else its merges name. Ids
// are in the order of insertion.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "tensor/gguf.h"

#define NB_SYMBOL_NONE UINT32_MAX

struct nb_symbols {
    char *bytes;
    size_t n_bytes, bytes_capacity;
    uint32_t *start; // n + 1: of each string in bytes
    uint32_t *slot;  // open addressing: symbol or NB_SYMBOL_NONE
    uint32_t n, capacity, mask;
    uint64_t seed; // unforeseeable, so that no file can aim its tokens at one slot
};

// Room for about `n` strings to begin with. -ENOMEM.
int nb_symbols_init(struct nb_symbols *s, uint32_t n);
void nb_symbols_finish(struct nb_symbols *s);
uint32_t nb_symbols_find(const struct nb_symbols *s, const char *text, size_t len);
// Finds or appends. -ENOMEM; -EFBIG past 2^31 bytes of strings.
int nb_symbols_add(struct nb_symbols *s, const char *text, size_t len, uint32_t *ret);

static inline struct nb_str nb_symbols_text(const struct nb_symbols *s, uint32_t i)
{
    return (struct nb_str){s->bytes + s->start[i], s->start[i + 1] - s->start[i]};
}
