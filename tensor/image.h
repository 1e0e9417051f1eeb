// The packed model: one flat image that lies in a sealed memfd (or in the disk cache), shared by
// every process that serves it. Header, the source's metadata verbatim, tensor directory, packed
// data. Whoever maps it checks it again.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "tensor/gguf.h"
#include "tensor/layout.h"

#define NB_IMAGE_VERSION 1

// A tensor of the image. Matrices (n_dims 2) are packed; vectors (norms, biases, rope factors) are
// F32, decoded.
struct nb_image_tensor {
    struct nb_str name;
    uint32_t type; // the type in the file, before packing
    uint32_t n_dims;
    uint64_t dims[4];        // as GGUF: dims[0] = cols, dims[1] = rows
    struct nb_packed packed; // for matrices
    const float *f32;        // for vectors; dims[0] elements
};

struct nb_image;

// Progress of a packing: `done` of `total` bytes. A return below 0 cancels it with that errno.
typedef int (*nb_image_progress)(void *user, uint64_t done, uint64_t total);

// Packs the model in `file_fd` (GGUF, by pread) to the empty `image_fd` (a memfd or a file), which
// it sizes. Does not seal. Refuses by name what cannot be served: types, shapes. Peak extra memory
// is a few MB, not a second copy.
int nb_image_pack(int file_fd, int image_fd, nb_image_progress progress, void *user,
                  uint64_t *ret_bytes, char *ret_error, size_t error_size);
// Size that nb_image_pack would write, without writing: to refuse a model larger than memory before
// touching it.
int nb_image_size(int file_fd, uint64_t *ret_bytes, char *ret_error, size_t error_size);

// Maps `fd` MAP_PRIVATE|PROT_READ and validates header, directory and every bound. `require_seals`:
// the fd must carry WRITE|SHRINK|GROW|SEAL. The fd is borrowed.
int nb_image_map(int fd, int require_seals, struct nb_image **ret, char *ret_error,
                 size_t error_size);
void nb_image_unmap(struct nb_image *img);

const struct nb_gguf *nb_image_metadata(const struct nb_image *img);
uint32_t nb_image_n_tensors(const struct nb_image *img);
const struct nb_image_tensor *nb_image_tensor(const struct nb_image *img, uint32_t i);
const struct nb_image_tensor *nb_image_find(const struct nb_image *img,
                                            const char *name); // NULL when absent
uint64_t nb_image_bytes(const struct nb_image *img);
