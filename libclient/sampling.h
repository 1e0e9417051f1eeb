// Which values sampling takes: one table, by which the library refuses at once and the worker in
// the end.
#pragma once

#include <stddef.h>

#include "libclient/include/nibble.h"

#define NB_SAMPLING_WINDOW_MAX 4096u // of repeat_window

// 0, or -EINVAL with a sentence that has the member, its value and its range.
int nb_sampling_fault(const struct nibble_sampling *sampling, char *ret_sentence, size_t size);
