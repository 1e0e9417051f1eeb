// GGUF files: a reader for hostile input and a writer. Little-endian, versions 2 and 3.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/fail.h"

enum nb_gguf_type {
    NB_GGUF_U8,
    NB_GGUF_I8,
    NB_GGUF_U16,
    NB_GGUF_I16,
    NB_GGUF_U32,
    NB_GGUF_I32,
    NB_GGUF_F32,
    NB_GGUF_BOOL,
    NB_GGUF_STRING,
    NB_GGUF_ARRAY,
    NB_GGUF_U64,
    NB_GGUF_I64,
    NB_GGUF_F64,
};

// A view into the reader's buffer; not NUL-terminated and of any bytes.
struct nb_str {
    const char *data;
    size_t len;
};

struct nb_gguf_tensor {
    struct nb_str name;
    uint32_t type; // one of GGUF's; perhaps one we do not load
    uint32_t n_dims;
    uint64_t dims[4]; // dims[0] is the contiguous one; 1 past n_dims
    uint64_t offset;  // from the start of the file
    uint64_t bytes;   // 0 when the type is unknown to us
};

struct nb_gguf;

// Reads the header, metadata and tensor directory of `fd` by pread, whole, into private memory;
// checks every count, length, alignment, overlap and bound against the file's size and fixed
// limits. On failure `ret_error` says in one line what is wrong and where.
// -EINVAL malformed, -ENOTSUP version or byte order, -EFBIG over a limit, or an errno of pread. The
// fd is borrowed and needed no longer.
int nb_gguf_open(int fd, struct nb_gguf **ret, struct nb_error *ret_error);
// The same for the metadata section alone, as nb_gguf_metadata gave it (a packed model carries it
// verbatim).
int nb_gguf_parse_metadata(const void *data, size_t len, struct nb_gguf **ret,
                           struct nb_error *ret_error);
void nb_gguf_close(struct nb_gguf *g); // NULL is fine

// The raw bytes of the metadata section, from the magic to the end of the last key-value pair.
const void *nb_gguf_metadata(const struct nb_gguf *g, size_t *ret_len);
uint64_t nb_gguf_n_tensors(const struct nb_gguf *g);
const struct nb_gguf_tensor *nb_gguf_tensor(const struct nb_gguf *g, uint64_t i);
const struct nb_gguf_tensor *nb_gguf_find_tensor(const struct nb_gguf *g, const char *name);

// Metadata by key. Each returns 0, -ENOENT (no such key) or -EINVAL (another type, or out of
// range), and leaves ret_ untouched on failure. A number is read whatever integer or float type it
// comes in, when it fits: an integer from a float only where that has a whole value.
int nb_gguf_u64(const struct nb_gguf *g, const char *key, uint64_t *ret);
int nb_gguf_f64(const struct nb_gguf *g, const char *key, double *ret);
int nb_gguf_bool(const struct nb_gguf *g, const char *key, bool *ret);
int nb_gguf_str(const struct nb_gguf *g, const char *key, struct nb_str *ret);
// Arrays: element type and count, then elements by index (strings are indexed at open: constant
// time).
int nb_gguf_array(const struct nb_gguf *g, const char *key, enum nb_gguf_type *ret_type,
                  uint64_t *ret_n);
int nb_gguf_array_bool(const struct nb_gguf *g, const char *key, uint64_t i, bool *ret);
int nb_gguf_array_str(const struct nb_gguf *g, const char *key, uint64_t i, struct nb_str *ret);
// Whether both have an array of that key, with the same strings in the same order.
bool nb_gguf_same_strings(const struct nb_gguf *a, const struct nb_gguf *b, const char *key);
int nb_gguf_array_f64(const struct nb_gguf *g, const char *key, uint64_t i, double *ret);
int nb_gguf_array_i64(const struct nb_gguf *g, const char *key, uint64_t i, int64_t *ret);
// Iteration, for listings: key i of n.
uint64_t nb_gguf_n_keys(const struct nb_gguf *g);
struct nb_str nb_gguf_key(const struct nb_gguf *g, uint64_t i, enum nb_gguf_type *ret_type);
// The whole pair i as the file has it (key, type, value): what a writer copies.
struct nb_str nb_gguf_pair_bytes(const struct nb_gguf *g, uint64_t i);
