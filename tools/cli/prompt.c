// PROMPT and standard input as one text. Must not wait for a terminal.
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cli/run.h"

#define WAIT_MS 2000 // until a standard input that says nothing is told of

// Whoever has left a pipe open for another reason wants to know what this waits for.
static void tell_of_waiting(void)
{
    struct pollfd in = {STDIN_FILENO, POLLIN, 0};
    if (!isatty(STDIN_FILENO) && poll(&in, 1, WAIT_MS) == 0)
        fputs("nibble: waiting for the end of standard input, which is part of the prompt "
              "(</dev/null: none)\n",
              stderr);
}

// Standard input without the newline at its end; NULL after saying why not.
static char *read_input(size_t *ret_len)
{
    tell_of_waiting();
    char *text = cli_read_file("-", ret_len);
    if (!text)
        return NULL;
    const char *nul = memchr(text, '\0', *ret_len);
    if (nul) {
        cli_error("standard input has a NUL byte at offset %td: a prompt is text", nul - text);
        free(text);
        return NULL;
    }
    if (*ret_len && text[*ret_len - 1] == '\n')
        text[--*ret_len] = '\0';
    return text;
}

int prompt_check(const char *prompt, const struct conversation_options *about)
{
    const struct {
        const char *name, *path;
    } texts[] = {{"PROMPT", prompt},
                 {"--messages", about->messages_file},
                 {"--tools", about->tools_file},
                 {"--documents", about->documents_file},
                 {"--template", about->template_file}};
    const char *taken = NULL;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (!texts[i].path || strcmp(texts[i].path, "-") != 0)
            continue;
        if (taken)
            return cli_usage_error("%s and %s: only one can be standard input", taken,
                                   texts[i].name);
        taken = texts[i].name;
    }
    return CLI_OK;
}

int prompt_read(const char *prompt, const struct conversation_options *about, char **ret_text,
                size_t *ret_len)
{
    bool dash = prompt && !strcmp(prompt, "-");
    // Messages from a file are a prompt already: then standard input is read where it is named.
    bool reads = dash || (!about->messages_file && !isatty(STDIN_FILENO));
    size_t len = 0, before = prompt && !dash ? strlen(prompt) : 0;
    char *input = reads ? read_input(&len) : NULL;
    if (reads && !input)
        return CLI_FAILED;
    if (!prompt && !len) {
        free(input);
        *ret_text = NULL;
        return CLI_OK;
    }
    const char *between = before && len ? "\n\n" : "";
    char *text = cli_alloc(before + strlen(between) + len + 1, 1);
    *ret_len = (size_t)sprintf(text, "%s%s%s", before ? prompt : "", between, input ? input : "");
    *ret_text = text;
    free(input);
    return CLI_OK;
}
