// Option structs of the public header. Each begins with its size, because the header that a program
// was built with may be older or newer than this library.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "libclient/include/nibble.h"

struct nb_option_struct {
    const char *name;
    uint32_t first; // bytes in the first release that has it: no caller's is smaller
    uint32_t size;  // bytes here
};

enum nb_options {
    NB_OPTIONS_LOAD,
    NB_OPTIONS_SESSION,
    NB_OPTIONS_CHAT,
    NB_OPTIONS_PROMPT,
    NB_OPTIONS_GENERATE,
    NB_OPTIONS_EMBED,
    NB_OPTIONS_MATRIX,
    NB_OPTIONS_COMPRESS,
    NB_OPTIONS_JOBS_WAIT,
    NB_OPTIONS_COUNT,
};

extern const struct nb_option_struct nb_option_structs[NB_OPTIONS_COUNT];

// Copies a caller's struct of any size to ret, of s->size bytes. Members that the caller does not
// have are 0, which always means their default. -EINVAL: its size is unset or cannot be; -E2BIG: it
// sets members that this library does not have. ret is untouched then.
int nb_options_copy(const struct nb_option_struct *s, const void *given, void *ret);
