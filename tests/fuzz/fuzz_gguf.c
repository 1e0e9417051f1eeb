// Any bytes as a model file: opened, asked everything, packed, and what was packed mapped and read.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void pack(int fd)
{
    char error[256];
    uint64_t bytes, expected;
    struct nb_image *img;
    int image = memfd_create("image", MFD_CLOEXEC);
    if (nb_image_pack(fd, image, NULL, NULL, &bytes, error, sizeof(error)) == 0) {
        // What we packed ourselves must be what we promised, and must map.
        if (nb_image_size(fd, &expected, error, sizeof(error)) < 0 || expected != bytes ||
            nb_image_map(image, 0, &img, error, sizeof(error)) < 0) {
            fprintf(stderr, "a packed model does not map: %s\n", error);
            abort();
        }
        walk_image(img);
        nb_image_unmap(img);
    }
    close(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char error[256];
    struct nb_gguf *g;
    int fd = memfd_create("model", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    if (nb_gguf_open(fd, &g, error, sizeof(error)) == 0) {
        walk_gguf(g);
        nb_gguf_close(g);
        pack(fd);
    }
    if (nb_gguf_parse_metadata(data, size, &g, error, sizeof(error)) == 0) {
        walk_gguf(g);
        nb_gguf_close(g);
    }
    close(fd);
    return 0;
}
