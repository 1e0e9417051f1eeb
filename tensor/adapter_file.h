// What a LoRA adapter's file must say, and how its tensors must fit the base: the one walk for
// whoever merges it into a source (adapters.h) and for whoever serves it beside the base
// (engine/adapter.h).
#pragma once

#include <stdbool.h>

#include "tensor/fail.h"
#include "tensor/gguf.h"

#define NB_ADAPTER_SCALE 1e3 // at most, either way

struct nb_shape {
    struct nb_str name;
    uint32_t n_dims;
    const uint64_t *dims; // as GGUF: columns, rows
};

struct nb_adapter_file {
    const char *name; // for errors
    const struct nb_gguf *metadata;
    const struct nb_gguf *base; // the base's
    const struct nb_shape *tensors;
    uint32_t n;
    double scale;
    // Sets *ret to the base's tensor of this name; false: it has none.
    bool (*find)(void *user, struct nb_str matrix, struct nb_shape *ret);
    // A matrix and its factors, by their places in `tensors`: `by` * B A is what they add to it.
    // Each is told once. An error is told as of nb_adapter_check.
    int (*pair)(void *user, struct nb_str matrix, uint32_t a, uint32_t b, float by);
    void *user;
    struct nb_error *error;
};

// Metadata, names, shapes and ranks; numbers are the caller's. -EINVAL: no adapter, or one of
// another base; -ENOTSUP: of embeddings or experts; or what `pair` returns; with its line.
int nb_adapter_check(const struct nb_adapter_file *file);
// The line begins with the adapter's name, and returns rc.
__attribute__((format(printf, 4, 5))) int nb_adapter_fail(const char *name, struct nb_error *error,
                                                          int rc, const char *format, ...);
