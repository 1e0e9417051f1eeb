// Whether a text is JSON (RFC 8259), and where not. It keeps nothing of it: what is written there
// is the worker's to read.
#pragma once

#include <stddef.h>

struct nb_json_fault {
    const char *what;    // "a string that does not end"
    size_t line, column; // of the byte, from 1
};

// The whole text is one value that begins with `opens`, '[' or '{': 0, or -EINVAL; -EILSEQ for
// bytes that are no UTF-8.
int nb_json_check(const char *text, size_t len, char opens, struct nb_json_fault *ret_fault);
