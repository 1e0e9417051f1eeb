// The schemes that users name (bits, group, symmetric or with a minimum), and the GGUF type that is
// each exactly: the same codes, the same scales, nothing else in the bytes.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nb_scheme {
    const char
        *name; // "int4-g32", "int4-g32-min", "nf4"; a super-block's scheme has its type's name
    uint32_t bits, group;
    bool has_min;
    uint32_t type; // NB_TYPE_END: GGUF has none
    const char
        *instead; // the nearest that GGUF has, where it has none: ends a sentence for the user
};

// All schemes, ordered by bits. ret_n: how many.
const struct nb_scheme *nb_schemes(size_t *ret_n);
// NULL for a name that is no scheme.
const struct nb_scheme *nb_scheme_by_name(const char *name);
