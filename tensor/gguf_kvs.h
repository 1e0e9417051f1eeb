// A growing list of typed key-values: the pairs of a GGUF metadata section, as bytes. A writer has
// one, and so has whatever makes a model's metadata from something else.
#pragma once

#include "tensor/gguf.h"

// All zero: an empty list.
struct nb_gguf_kvs {
    uint8_t *bytes; // the pairs, one behind the other
    size_t len, room;
    char **keys;
    uint64_t n;
};

void nb_gguf_kvs_finish(struct nb_gguf_kvs *kvs);

// A key that is there already keeps its first value, and general.alignment is never taken, because
// what we write has GGUF's own. All return 0 or -ENOMEM, -EINVAL for a type that does not fit.
int nb_gguf_kvs_put(struct nb_gguf_kvs *kvs, const char *key, enum nb_gguf_type type,
                    const void *value); // not strings
int nb_gguf_kvs_put_str(struct nb_gguf_kvs *kvs, const char *key, struct nb_str value);
int nb_gguf_kvs_put_array(struct nb_gguf_kvs *kvs, const char *key, enum nb_gguf_type type,
                          const void *data, uint64_t n);
int nb_gguf_kvs_put_strs(struct nb_gguf_kvs *kvs, const char *key, const struct nb_str *strs,
                         uint64_t n);
// Every pair of `source` that is not there yet, in its order, byte for byte; but for the keys that
// begin with `without` (NULL: all).
int nb_gguf_kvs_copy(struct nb_gguf_kvs *kvs, const struct nb_gguf *source, const char *without);

// A whole metadata section: the header of a file of `n_tensors`, then the pairs. malloc'ed, NULL
// without memory.
void *nb_gguf_kvs_section(const struct nb_gguf_kvs *kvs, uint64_t n_tensors, size_t *ret_len);
// The same, as what nb_gguf_parse_metadata makes of it, with its errors; -ENOMEM with its line.
int nb_gguf_kvs_parse(const struct nb_gguf_kvs *kvs, uint64_t n_tensors, struct nb_gguf **ret,
                      struct nb_error *ret_error);
