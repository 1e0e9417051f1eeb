// How a function of tensor/ reports a failure that a user must read: one line into the caller's
// buffer, and the errno.
#pragma once

#include <stddef.h>

// Writes the line (cut to `size`; no buffer is fine) and returns `code`.
int nb_fail(char *ret_error, size_t size, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
