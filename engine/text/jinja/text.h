// Strings that know whose their bytes are: the template's own, or the client's. Immutable, in an
// arena; every operation keeps each byte's origin. What is made up on the way (padding, the
// punctuation of JSON) counts as the client's.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/text/jinja/memory.h"
#include "tensor/gguf.h"

struct nb_jbuild;

struct nb_jstr {
    const char *data;
    size_t len;
    const uint8_t *from;    // for each byte 1 where it is the client's; NULL: all as `client` says
    size_t chars;           // code points; SIZE_MAX: not counted yet
    struct nb_jbuild *tail; // the string is the beginning of this, and may grow there
    bool client;
    bool markup; // Jinja's Markup: what is added to it gets escaped
};

// A string that grows. `from` exists once bytes of both origins are there.
struct nb_jbuild {
    struct nb_jmem *mem;
    char *data;
    uint8_t *from;
    size_t len, capacity, limit; // 0: no limit but the arena's
    bool client;
};

// For a static object, or one used within its block alone.
#define NB_JSTR_INIT(s)                                                                            \
    {                                                                                              \
        .data = (s), .len = sizeof(s) - 1, .chars = sizeof(s) - 1                                  \
    }
extern const struct nb_jstr nb_jstr_empty;

void nb_jbuild_init(struct nb_jbuild *b, struct nb_jmem *m);
void nb_jbuild_bytes(struct nb_jbuild *b, const char *data, size_t len, bool client);
void nb_jbuild_str(struct nb_jbuild *b, const struct nb_jstr *s);
void nb_jbuild_part(struct nb_jbuild *b, const struct nb_jstr *s, size_t at, size_t len);
void nb_jbuild_fill(struct nb_jbuild *b, const struct nb_jstr *s, size_t times);
void nb_jbuild_c(struct nb_jbuild *b, const char *text, bool client);
const struct nb_jstr *nb_jbuild_end(struct nb_jbuild *b);

// Copies nothing: `data` must live as long as the arena.
const struct nb_jstr *nb_jstr_view(struct nb_jmem *m, const char *data, size_t len, bool client);
// Copies.
const struct nb_jstr *nb_jstr_copy(struct nb_jmem *m, const char *data, size_t len, bool client);
const struct nb_jstr *nb_jstr_part(struct nb_jmem *m, const struct nb_jstr *s, size_t at,
                                   size_t len);
// Linear over a chain of them: the result grows behind the left one where that is the last.
const struct nb_jstr *nb_jstr_concat(struct nb_jmem *m, const struct nb_jstr *a,
                                     const struct nb_jstr *b);
const struct nb_jstr *nb_jstr_markup(struct nb_jmem *m, const struct nb_jstr *s, bool markup);

size_t nb_jstr_chars(struct nb_jmem *m, const struct nb_jstr *s);
// The byte where code point i begins, or the length.
size_t nb_jstr_offset(struct nb_jmem *m, const struct nb_jstr *s, size_t i);
// The length of the character at byte `at`, which is before the end.
size_t nb_jstr_step(const struct nb_jstr *s, size_t at);
bool nb_jstr_client(const struct nb_jstr *s, size_t at);
bool nb_jstr_any_client(const struct nb_jstr *s);
bool nb_jstr_eq(const struct nb_jstr *a, const struct nb_jstr *b);
bool nb_jstr_is(const struct nb_jstr *s, const char *text);
int nb_jstr_cmp(const struct nb_jstr *a, const struct nb_jstr *b);
// The first or last place of `what` in bytes [from, to), or SIZE_MAX.
size_t nb_jstr_find(struct nb_jmem *m, const struct nb_jstr *s, const struct nb_jstr *what,
                    size_t from, size_t to);
size_t nb_jstr_rfind(struct nb_jmem *m, const struct nb_jstr *s, const struct nb_jstr *what,
                     size_t from, size_t to);
