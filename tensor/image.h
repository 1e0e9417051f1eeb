// The packed model: one flat image that lies in a sealed memfd (or in the disk cache), shared by
// every process that serves it. Header, the source's metadata verbatim, tensor directory, packed
// data. Whoever maps it checks it again.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/gguf.h"
#include "tensor/fail.h"
#include "tensor/layout.h"
#include "tensor/source.h"

#define NB_IMAGE_VERSION 2

// A tensor of the image. Vectors (n_dims 1: norms, biases, rope factors) are F32, decoded. Matrices
// (n_dims 2) are packed. A stack of matrices (n_dims 3: one matrix an expert) is packed slice by
// slice: slice e is the matrix `packed` with its data at packed.data + e * slice_bytes.
struct nb_image_tensor {
    struct nb_str name;
    uint32_t type; // the type in the file, before packing
    uint32_t n_dims;
    uint64_t dims[4];        // as GGUF: dims[0] = cols, dims[1] = rows, dims[2] = slices
    struct nb_packed packed; // the first slice; rows and cols are those of one slice
    uint32_t n_slices;       // 1 for a matrix, 0 for a vector
    uint64_t slice_bytes;    // a multiple of 64
    const float *f32;        // for vectors; dims[0] elements
};

struct nb_image;

struct nb_pack_options {
    nb_progress progress; // may be NULL
    void *user;
    bool zeros; // zeros to a file's end are loaded as the zeros they are
};

// Packs the model to the empty `image_fd` (a memfd or a file), which it sizes. Does not seal.
// Refuses by name what cannot be served: types, shapes, a NaN or an infinity among the weights or
// their scales, tensors that are zero to the end of their file. Returns 1 where such zeros were
// loaded, else 0. Peak extra memory is a few MB, not a second copy. `options` may be NULL.
int nb_image_pack(const struct nb_source *source, int image_fd,
                  const struct nb_pack_options *options, uint64_t *ret_bytes,
                  struct nb_error *ret_error);
// Size that nb_image_pack would write, without writing: to refuse a model larger than memory before
// touching it.
int nb_image_size(const struct nb_source *source, uint64_t *ret_bytes, struct nb_error *ret_error);

// Maps `fd` MAP_PRIVATE|PROT_READ and validates header, directory and every bound. `require_seals`:
// the fd must carry WRITE|SHRINK|GROW|SEAL. The fd is borrowed.
int nb_image_map(int fd, int require_seals, struct nb_image **ret, struct nb_error *ret_error);
void nb_image_unmap(struct nb_image *img);
// Gives back the memory of the matrices, for who has them otherwise: header, metadata, directory
// and vectors stay where they are. Reading a matrix afterwards is a fault. Where another process
// maps the image too, it keeps all. -ENOMEM with nothing changed.
int nb_image_forget_matrices(struct nb_image *img);

const struct nb_gguf *nb_image_metadata(const struct nb_image *img);
uint32_t nb_image_n_tensors(const struct nb_image *img);
const struct nb_image_tensor *nb_image_tensor(const struct nb_image *img, uint32_t i);
const struct nb_image_tensor *nb_image_find(const struct nb_image *img,
                                            const char *name); // NULL when absent
uint64_t nb_image_bytes(const struct nb_image *img);
