// A folder that appears whole or not at all. A folder that is there is never written over.
#pragma once

#include <stddef.h>

#include "tools/cli/cli.h"

// Whether --format, or --to where that is not given, asks for a Hugging Face folder: GGUF has no
// INT8 and no NF4. CLI_OK or an error of usage.
int folder_wanted(const char *format, const char *to, const char *out, bool *ret);

struct folder;

// Says on stderr what is wrong. CLI_OK or CLI_FAILED, all of them.
int folder_check(const char *out); // before work whose result it will be
int folder_open(const char *out, struct folder **ret);
// A new file, whose name may have a folder's before it; and its end, which closes it.
int folder_create(struct folder *f, const char *name, int *ret_fd);
int folder_end(const struct folder *f, const char *name, int fd, int status);
int folder_put(struct folder *f, const char *name, const char *text, size_t len);
// Gives the folder its name where `status` is CLI_OK, else removes what was made. Frees it.
int folder_close(struct folder *f, const char *out, int status);
