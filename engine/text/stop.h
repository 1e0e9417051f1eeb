// Stop strings in a stream of bytes: nothing of a stop string ever leaves, and nothing is held back
// but what may still become one.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "tensor/gguf.h"

#define NB_STOP_STRINGS_MAX 16
#define NB_STOP_BYTES_MAX   256 // of one string

struct nb_stop;

// Copies the strings. -EINVAL for an empty or too long one, or too many; -ENOMEM. No strings at all
// are fine.
int nb_stop_create(const struct nb_str *strings, size_t n, struct nb_stop **ret);
void nb_stop_destroy(struct nb_stop *s);

#define NB_STOP_OUT(n) ((n) + NB_STOP_BYTES_MAX) // bytes that n more can let out at most

// Takes n bytes; writes what may leave to `out`, its length to `ret_out`. True once a stop string
// was found: what came before it has left, what comes after is dropped, and so is everything in
// later calls.
bool nb_stop_push(struct nb_stop *s, const char *bytes, size_t n, char *out, size_t *ret_out);
// The stream has ended without one: writes what was held back (at most NB_STOP_BYTES_MAX) and
// returns its length.
size_t nb_stop_finish(struct nb_stop *s, char *out);
