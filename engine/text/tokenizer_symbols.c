// Strings with numbers, found by hash.
#include "engine/text/tokenizer_symbols.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define BYTES_MAX (1u << 31)

static uint32_t first_slot(const struct nb_symbols *s, const char *text, size_t len)
{
    return (uint32_t)XXH3_64bits_withSeed(text, len, s->seed) & s->mask;
}

// The slot that holds the text, or the empty one where it would go.
static uint32_t find_slot(const struct nb_symbols *s, const char *text, size_t len)
{
    uint32_t i = first_slot(s, text, len);

    for (; s->slot[i] != NB_SYMBOL_NONE; i = (i + 1) & s->mask) {
        struct nb_str have = nb_symbols_text(s, s->slot[i]);
        if (have.len == len && memcmp(have.data, text, len) == 0)
            break;
    }
    return i;
}

static int rehash(struct nb_symbols *s, uint32_t capacity)
{
    uint32_t n_slots = 4;

    while (n_slots < capacity * 2)
        n_slots *= 2;
    uint32_t *start = realloc(s->start, ((size_t)capacity + 1) * sizeof(*start));
    if (!start)
        return -ENOMEM;
    s->start = start;
    uint32_t *slot = malloc(n_slots * sizeof(*slot));
    if (!slot)
        return -ENOMEM;
    memset(slot, 0xff, n_slots * sizeof(*slot));
    free(s->slot);
    s->slot = slot;
    s->mask = n_slots - 1;
    s->capacity = capacity;
    for (uint32_t i = 0; i < s->n; i++) {
        struct nb_str text = nb_symbols_text(s, i);
        s->slot[find_slot(s, text.data, text.len)] = i;
    }
    return 0;
}

int nb_symbols_init(struct nb_symbols *s, uint32_t n)
{
    *s = (struct nb_symbols){.bytes_capacity = (size_t)n * 8 + 64};
    s->bytes = malloc(s->bytes_capacity);
    s->seed = (uintptr_t)s->bytes; // address space layout randomization, for want of more
    if (!s->bytes || rehash(s, n + 16) < 0) {
        nb_symbols_finish(s);
        return -ENOMEM;
    }
    s->start[0] = 0;
    return 0;
}

void nb_symbols_finish(struct nb_symbols *s)
{
    free(s->bytes);
    free(s->start);
    free(s->slot);
    *s = (struct nb_symbols){0};
}

uint32_t nb_symbols_find(const struct nb_symbols *s, const char *text, size_t len)
{
    return s->slot[find_slot(s, text, len)];
}

static int reserve_bytes(struct nb_symbols *s, size_t more)
{
    if (more >= BYTES_MAX - s->n_bytes)
        return -EFBIG;
    if (s->n_bytes + more <= s->bytes_capacity)
        return 0;
    size_t capacity = (s->n_bytes + more) * 2;
    char *bytes = realloc(s->bytes, capacity);
    if (!bytes)
        return -ENOMEM;
    s->bytes = bytes;
    s->bytes_capacity = capacity;
    return 0;
}

int nb_symbols_add(struct nb_symbols *s, const char *text, size_t len, uint32_t *ret)
{
    uint32_t slot = find_slot(s, text, len);

    if (s->slot[slot] == NB_SYMBOL_NONE) {
        int rc = reserve_bytes(s, len);
        if (rc == 0 && s->n == s->capacity) {
            rc = rehash(s, s->capacity * 2);
            slot = rc == 0 ? find_slot(s, text, len) : 0;
        }
        if (rc < 0)
            return rc;
        memcpy(s->bytes + s->n_bytes, text, len);
        s->n_bytes += len;
        s->slot[slot] = s->n++;
        s->start[s->n] = (uint32_t)s->n_bytes;
    }
    *ret = s->slot[slot];
    return 0;
}
