// The packed model's bytes. In order and without gaps: header, metadata, directory, names; then
// each tensor at the next multiple of 64 bytes; nothing after the last. Private to tensor/.
#pragma once

#include "tensor/image.h"

#define NB_IMAGE_MAGIC      "NBMODEL" // with its NUL
#define NB_IMAGE_ALIGNMENT  64
#define NB_IMAGE_MAX_BYTES  ((uint64_t)1 << 46)
#define NB_IMAGE_MAX_VECTOR ((uint64_t)1 << 24) // elements of a one-dimensional tensor
#define NB_IMAGE_MAX_SLICES 65536               // matrices of a three-dimensional tensor

struct nb_image_header {
    char magic[8];
    uint32_t version;
    uint32_t n_tensors;
    uint64_t bytes; // of the whole image
    uint64_t metadata_len;
    uint64_t names_len;
    uint64_t reserved[3]; // zero
};

struct nb_image_entry {
    uint32_t name_len; // the names follow each other in the order of the entries
    uint32_t type;
    uint32_t n_dims;
    uint32_t reserved; // zero
    uint64_t dims[4];
    uint64_t offset, bytes;
};

_Static_assert(sizeof(struct nb_image_header) == 64 && sizeof(struct nb_image_entry) == 64,
               "an image has no padding");

// Where a tensor of this type and shape lies when the one before ends at *end: sets offset and
// bytes, moves *end, and fills ret_packed (a slice) of all but vectors. Both packing and mapping
// use it. -EINVAL, -EOVERFLOW for what an image cannot hold.
int nb_image_place(struct nb_image_entry *e, uint64_t *end, struct nb_packed *ret_packed);
