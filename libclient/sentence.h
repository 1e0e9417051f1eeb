// Text that comes from outside: is it UTF-8, and is it fit for a person's terminal?
#pragma once

#include <stdbool.h>
#include <stddef.h>

// How many of the first bytes are whole UTF-8 sequences: `len` if all are.
size_t nb_utf8_valid(const char *text, size_t len);

// Makes a sentence of foreign bytes fit to be shown: it ends within `size`, in whole UTF-8; bytes
// that are none, control characters and marks that turn the direction of what follows become '?'.
void nb_sentence_clean(char *sentence, size_t size);

// Whether `name`, within its `size` with the NUL, may name a model: letters, digits and marks of
// any script in UTF-8, of ASCII [A-Za-z0-9._-] alone; no space and nothing that is not seen. It
// does not begin with '-', which is for options.
bool nb_name_sound(const char *name, size_t size);
#define NB_NAME_RULE "letters and digits of any script, '.', '_', and '-' but first"
