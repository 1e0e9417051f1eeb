// The one-line error of tensor/: see fail.h.
#include "tensor/fail.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int nb_fail(struct nb_error *ret_error, int code, const char *format, ...)
{
    if (ret_error) {
        char text[sizeof(ret_error->text)]; // the arguments may lie in the old sentence
        va_list args;
        va_start(args, format);
        vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        memcpy(ret_error->text, text, sizeof(text));
    }
    return code;
}
