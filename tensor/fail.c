// The one-line error of tensor/: see fail.h.
#include "tensor/fail.h"

#include <stdarg.h>
#include <stdio.h>

int nb_fail(char *ret_error, size_t size, int code, const char *format, ...)
{
    if (ret_error && size) {
        va_list args;
        va_start(args, format);
        vsnprintf(ret_error, size, format, args);
        va_end(args);
    }
    return code;
}
