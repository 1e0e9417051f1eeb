// Names of models as people type them and as files have them, in one form: UTF-8, NFC. Which of
// them may be is the library's to say.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utf8proc.h>

#include "tools/cli/cli.h"

#define ZWNJ 0x200c
#define ZWJ  0x200d

// In NFC, malloc'ed; NULL for bytes that are no UTF-8.
static char *composed(const char *text)
{
    return (char *)utf8proc_NFC((const utf8proc_uint8_t *)text);
}

int cli_name(const char *given, char ret[CLI_NAME_SIZE])
{
    char *name = composed(given);
    if (!name)
        return cli_usage_error("'%.80s' is no model's name: it is not UTF-8", given);
    size_t len = strlen(name);
    int status = len < CLI_NAME_SIZE
                     ? CLI_OK
                     : cli_usage_error("'%.80s' is no model's name: it has %zu bytes, and %d are "
                                       "the most",
                                       name, len, CLI_NAME_SIZE - 1);
    if (status == CLI_OK)
        memcpy(ret, name, len + 1);
    free(name);
    return status;
}

// Whether a file's name may keep the character in a model's: letters, marks, digits and signs of
// any script; of ASCII some signs.
static bool is_kept(utf8proc_int32_t code)
{
    utf8proc_category_t category = utf8proc_category(code);
    if (code < 0x80)
        return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NO) ||
               strchr("._-", code);
    return category < UTF8PROC_CATEGORY_ZS || code == ZWNJ || code == ZWJ;
}

// The last part of a path without slashes at its end, in NFC; NULL for bytes that are no UTF-8.
static char *last_part(const char *path)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    char *whole = strndup(path, end), *slash = whole ? strrchr(whole, '/') : NULL;
    char *name = whole ? composed(slash ? slash + 1 : whole) : NULL;
    free(whole);
    return name;
}

// Without .gguf, and without the number that the first of a GGUF's parts has before it.
static size_t stem(const char *name)
{
    static const char part[] = "-00001-of-";
    const size_t n = sizeof(part) - 1 + 5;
    size_t len = strlen(name);
    if (len <= 5 || strcasecmp(name + len - 5, ".gguf") != 0)
        return len;
    len -= 5;
    bool is_part = len > n && !strncmp(name + len - n, part, sizeof(part) - 1);
    return is_part ? len - n : len;
}

int cli_name_of_file(const char *file, char ret[CLI_NAME_SIZE])
{
    char *name = last_part(file), *to = ret;
    size_t len = name ? stem(name) : 0;
    for (size_t at = 0; at < len;) {
        utf8proc_int32_t code = 0;
        size_t n = (size_t)utf8proc_iterate((utf8proc_uint8_t *)name + at, -1, &code);
        bool kept = code != 0 && is_kept(code) && (code != '-' || to > ret);
        size_t room = (size_t)(ret + CLI_NAME_SIZE - 1 - to);
        if ((kept ? n : 1) > room)
            break; // the beginning says enough
        if (kept)
            to = mempcpy(to, name + at, n);
        else if (to > ret) // a name does not begin as options do
            *to++ = '-';
        at += n;
    }
    *to = '\0';
    free(name);
    if (*ret)
        return CLI_OK;
    return cli_usage_error("%s: name the model by --name, its file's name gives none", file);
}
