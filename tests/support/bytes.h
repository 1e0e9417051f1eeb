// Bytes in memory that a state is written to and read from (quant/state.h).
#pragma once

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct bytes {
    uint8_t *data;
    size_t n, at; // at: of the next that is read
};

static inline void add_bytes(struct bytes *b, const void *data, size_t n)
{
    b->data = realloc(b->data, b->n + n);
    assert_non_null(b->data);
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

static inline int write_bytes(void *user, void *data, size_t n)
{
    add_bytes(user, data, n);
    return 0;
}

static inline int read_bytes(void *user, void *data, size_t n)
{
    struct bytes *b = user;
    if (n > b->n - b->at)
        return -EIO;
    memcpy(data, b->data + b->at, n);
    b->at += n;
    return 0;
}
