// Pre-tokenizers: how a byte-level BPE vocabulary wants text cut into pieces before any merge. A
// family is a list of patterns, each applied inside the pieces that the one before it left.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NB_PRE_STEPS 6

struct nb_code_range {
    uint32_t first, last;
};

// A pattern runs over one byte for each code point: ASCII as it is, other white space as \v, and
// the rest by class (see tokenizer_pre_table.c). Where a pattern names single code points beyond
// ASCII, `sets` tells them from their class.
struct nb_pre_step {
    const char *pattern;                 // PCRE2, without UTF; never matches the empty string
    const struct nb_code_range *sets[2]; // each ends with {0, 0}
};

struct nb_pre {
    const char *names; // of tokenizer.ggml.pre, with a space after each
    const struct nb_pre_step *steps[NB_PRE_STEPS];
    bool ignore_merges; // a piece that is a token is that token, whatever the merges say
    bool add_bos;       // unless the metadata says otherwise
    bool no_bos;        // there is no default BOS token
};

// NULL when the name is unknown.
const struct nb_pre *nb_pre_find(const char *name, size_t len);

struct nb_splitter;

// -ENOMEM, or -EINVAL for a pattern that PCRE2 refuses.
int nb_splitter_create(const struct nb_pre *pre, struct nb_splitter **ret);
void nb_splitter_destroy(struct nb_splitter *s);

// What one thread needs for splitting, and the result. Zeroed by its owner, kept from call to call.
struct nb_split {
    char *text;       // canonical UTF-8: each invalid byte became U+FFFD
    uint32_t *offset; // n_code + 1: of each code point in text
    uint8_t *class;
    uint32_t *end, *next_end; // n_pieces ends, as code points
    uint32_t n_code, n_pieces, capacity;
    void *match_data, *match_context, *jit_stack;
};
void nb_split_finish(struct nb_split *w);

// Cuts `len` (< 2^28) bytes into w->n_pieces. -ENOMEM; -EOVERFLOW when a pattern ran into its
// limit.
int nb_splitter_run(const struct nb_splitter *s, struct nb_split *w, const char *text, size_t len);
