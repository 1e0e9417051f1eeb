// How a model is to be served, as its load said: one table of the members of struct nb_load_params
// with their choices, by which they are checked, told to the store and read back.
#pragma once

#include <stddef.h>

#include "daemon/refusal.h"
#include "libclient/wire.h"

// Of a text that nb_params_write makes, with its NUL.
#define NB_PARAMS_TEXT 72

// 0, or -EINVAL with a sentence of the choices.
int nb_params_check(const struct nb_load_params *params, struct nb_refusal *refusal);
// Names what was left to the daemon. The context and the KV memory are the worker's to choose.
void nb_params_settle(struct nb_load_params *params);
// "+77+4096+exact+f32", and back; -EINVAL for a text of another shape or choices that are none. A
// text of an older daemon may lack the last ones.
void nb_params_write(const struct nb_load_params *params, char ret[NB_PARAMS_TEXT]);
int nb_params_read(const char *text, struct nb_load_params *ret);
