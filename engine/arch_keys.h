// A model's metadata as its architecture reads it: numbers of whatever type, arrays that say one
// thing of every layer, and no key passed over in silence.
#pragma once

#include "engine/arch.h"
#include "tensor/fail.h"
#include "tensor/gguf.h"

struct nb_keys {
    const struct nb_gguf *g;
    const struct nb_arch *arch;
    uint32_t n_layers; // 0 until block_count was read
    struct nb_error *error;
};

// Each takes a name without the architecture before it. A key that is absent leaves *ret (the
// default) as it is, or is an error where it is required. Errors are in the keys' `error`: -EINVAL
// of a value, -ENOTSUP of layers that differ.
int nb_keys_u32(const struct nb_keys *k, const char *name, bool required, uint32_t min,
                uint32_t max, uint32_t *ret);
int nb_keys_float(const struct nb_keys *k, const char *name, bool required, double min, double max,
                  double *ret);
int nb_keys_bool(const struct nb_keys *k, const char *name, bool *ret);
int nb_keys_str(const struct nb_keys *k, const char *name, struct nb_str *ret);

// Refuses by its name a file that is no whole model (a part, an adapter), a key of the architecture
// with a value that Nibble does not compute, and a key that it does not know.
int nb_keys_check(const struct nb_keys *k);

// The whole key.
#define NB_KEY_MAX 128
void nb_keys_name(const struct nb_keys *k, const char *name, char ret[NB_KEY_MAX]);

// A file's string as a user may see it: cut, and with no byte that could move the terminal.
#define NB_SHOWN_MAX 64
const char *nb_shown(struct nb_str s, char buffer[NB_SHOWN_MAX]);
