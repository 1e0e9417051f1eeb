// Refusals' sentences.
#include "daemon/refusal.h"

#include <stdarg.h>
#include <stdio.h>

#include "libclient/sentence.h"

int nb_refuse(struct nb_refusal *refusal, int status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(refusal->text, sizeof(refusal->text), format, args);
    va_end(args);
    nb_sentence_clean(refusal->text, sizeof(refusal->text));
    return status;
}
