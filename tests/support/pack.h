// Packing and measuring one GGUF file by its fd, as most tests have it.
#pragma once

#include "tensor/image.h"
#include "tensor/fail.h"

static inline int test_open_source(int fd, struct nb_source **ret, struct nb_error *error)
{
    const struct nb_source_file file = {"model.gguf", fd};
    return nb_source_open_gguf(&file, 1, ret, error);
}

static inline int test_pack(int fd, int image, const struct nb_pack_options *options,
                            uint64_t *ret_bytes, struct nb_error *error)
{
    struct nb_source *source;
    int rc = test_open_source(fd, &source, error);
    if (rc < 0)
        return rc;
    rc = nb_image_pack(source, image, options, ret_bytes, error);
    nb_source_close(source);
    return rc;
}

static inline int test_pack_size(int fd, uint64_t *ret_bytes, struct nb_error *error)
{
    struct nb_source *source;
    int rc = test_open_source(fd, &source, error);
    if (rc < 0)
        return rc;
    rc = nb_image_size(source, ret_bytes, error);
    nb_source_close(source);
    return rc;
}
