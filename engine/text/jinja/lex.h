// A template's text as tokens, with the white space gone that trim_blocks, lstrip_blocks and the
// signs inside the braces take away. Knows no grammar.
#pragma once

#include "engine/text/jinja/text.h"

enum nb_jtoken_kind {
    NB_JT_END,
    NB_JT_DATA,
    NB_JT_PRINT, // {{
    NB_JT_PRINT_END,
    NB_JT_BLOCK, // {%
    NB_JT_BLOCK_END,
    NB_JT_NAME,
    NB_JT_STRING,
    NB_JT_INT,
    NB_JT_FLOAT,
    NB_JT_OP, // see `op`
};

// Operators of two characters are these two.
#define NB_JOP(a, b) ((unsigned)(a) | (unsigned)(b) << 8)

struct nb_jtoken {
    uint8_t kind;
    uint16_t op;
    uint32_t line;
    union {
        const struct nb_jstr *s; // data, a name, or a string with its escapes undone
        int64_t i;
        double f;
    };
};

// All tokens, the last an NB_JT_END. Fails as nb_jfail does, with m->line set.
struct nb_jtoken *nb_jlex(struct nb_jmem *m, const char *text, size_t len);
