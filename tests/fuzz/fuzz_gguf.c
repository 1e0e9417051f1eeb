// Any bytes as a model file: opened, asked everything, packed, and what was packed mapped and read.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/walk.h"
#include "tensor/fail.h"
#include "tests/support/pack.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void pack(int fd, bool zeros)
{
    struct nb_error error;
    uint64_t bytes, expected;
    struct nb_image *img;
    const struct nb_pack_options options = {.zeros = zeros};
    int image = memfd_create("image", MFD_CLOEXEC);
    if (test_pack(fd, image, &options, &bytes, &error) >= 0) {
        // What we packed ourselves must be what we promised, and must map.
        if (test_pack_size(fd, &expected, &error) < 0 || expected != bytes ||
            nb_image_map(image, 0, &img, &error) < 0) {
            fprintf(stderr, "a packed model does not map: %s\n", error.text);
            abort();
        }
        walk_image(img);
        nb_image_unmap(img);
    }
    close(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nb_error error;
    struct nb_gguf *g;
    int fd = memfd_create("model", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    if (nb_gguf_open(fd, &g, &error) == 0) {
        walk_gguf(g);
        nb_gguf_close(g);
        pack(fd, size % 2);
    }
    if (nb_gguf_parse_metadata(data, size, &g, &error) == 0) {
        walk_gguf(g);
        nb_gguf_close(g);
    }
    close(fd);
    return 0;
}
