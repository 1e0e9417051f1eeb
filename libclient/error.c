// Codes and sentences. The library prints nothing: a failure's sentence waits in its connection.
#include "libclient/client.h"

#include <stdarg.h>
#include <stdio.h>

#include "libclient/sentence.h"

// Of this thread's last failed connect, which leaves no connection to keep it.
static _Thread_local char connect_error[NB_SENTENCE] = "no failure";

static const struct {
    int code;
    const char *text;
} names[] = {
    {NIBBLE_E_NO_DAEMON, "no daemon"},
    {NIBBLE_E_VERSION, "no common version"},
    {NIBBLE_E_DENIED, "not allowed"},
    {NIBBLE_E_NO_MODEL, "no such model"},
    {NIBBLE_E_EXISTS, "exists already"},
    {NIBBLE_E_FORMAT, "not a valid model"},
    {NIBBLE_E_UNSUPPORTED, "not supported"},
    {NIBBLE_E_TOO_LARGE, "too large for the memory"},
    {NIBBLE_E_CONTEXT, "longer than the context"},
    {NIBBLE_E_QUOTA, "over a limit"},
    {NIBBLE_E_BUSY, "busy"},
    {NIBBLE_E_CANCELLED, "cancelled"},
    {NIBBLE_E_LOST, "the worker is lost"},
    {NIBBLE_E_POISON, "the job kills its worker"},
    {NIBBLE_E_PROTOCOL, "broken protocol"},
    {NIBBLE_E_CLOSED, "the daemon closed the connection"},
};

const char *nibble_strerror(int code)
{
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (names[i].code == code)
            return names[i].text;
    // strerror would share a buffer between threads
    const char *text = code <= 0 && code > -4096 ? strerrordesc_np(-code) : NULL;
    return text ? text : "unknown error";
}

const char *nibble_version(void)
{
    return NB_VERSION;
}

const char *nibble_error(const nibble *connection)
{
    return connection ? connection->error : connect_error;
}

int nb_fail(nibble *connection, int code, const char *format, ...)
{
    char sentence[NB_SENTENCE]; // the arguments may lie in the old sentence
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof(sentence), format, arguments);
    va_end(arguments);
    nb_sentence_clean(sentence, sizeof(sentence)); // names in it may be anyone's
    memcpy(connection ? connection->error : connect_error, sentence, sizeof(sentence));
    return code;
}
