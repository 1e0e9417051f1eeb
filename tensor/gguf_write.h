// Writing a GGUF file (version 3) in one pass: metadata, then the list of tensors, then begin, then
// the tensors' bytes in that order. The fd is borrowed and written from its present position, which
// should be 0.
#pragma once

#include "tensor/gguf_kvs.h"

struct nb_gguf_writer;

int nb_gguf_writer_create(struct nb_gguf_writer **ret);
void nb_gguf_writer_destroy(struct nb_gguf_writer *w); // NULL is fine
// The file is the writer's own: its tensors may be of a folder's types too, and no reader takes it.
void nb_gguf_writer_own(struct nb_gguf_writer *w);

// Metadata, by the rules of gguf_kvs.h: put overrides first, then copy the rest. After
// nb_gguf_begin -EINVAL.
int nb_gguf_put(struct nb_gguf_writer *w, const char *key, enum nb_gguf_type type,
                const void *value); // not strings
int nb_gguf_put_str(struct nb_gguf_writer *w, const char *key, struct nb_str value);
int nb_gguf_put_array(struct nb_gguf_writer *w, const char *key, enum nb_gguf_type type,
                      const void *data, uint64_t n);
int nb_gguf_put_strs(struct nb_gguf_writer *w, const char *key, const struct nb_str *strs,
                     uint64_t n);
// Every pair of `source` whose key was not put, in its order, byte for byte.
int nb_gguf_copy_metadata(struct nb_gguf_writer *w, const struct nb_gguf *source);

// A tensor that will be written, at the place in the order of these calls. -EINVAL for a type that
// no GGUF has or Nibble does not load, a shape that does not fit it, a name that is there already.
int nb_gguf_add_tensor(struct nb_gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                       const uint64_t *dims);

// Writes everything before the data. Then the bytes of all tensors, in any pieces (a piece does not
// cross from one tensor to the next); padding is put between them. nb_gguf_end: -EINVAL when bytes
// are missing. A failed write leaves its errno (-ENOSPC, -EIO ...).
int nb_gguf_begin(struct nb_gguf_writer *w, int fd);
int nb_gguf_write(struct nb_gguf_writer *w, const void *data, size_t len);
int nb_gguf_end(struct nb_gguf_writer *w);

// For a file whose tensors are written in another order: the size of the whole file, before
// nb_gguf_begin (0 without memory), and after it where a tensor's bytes begin. Between tensors lie
// zeros.
uint64_t nb_gguf_size(const struct nb_gguf_writer *w);
uint64_t nb_gguf_offset(const struct nb_gguf_writer *w, uint64_t tensor);
