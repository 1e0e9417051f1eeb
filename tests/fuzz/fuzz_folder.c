// Any bytes as the files of a Hugging Face folder, cut at the first NULs: config.json,
// tokenizer.json, modules.json, model.safetensors.index.json, and model.safetensors, the rest. What
// opens is packed, and what was packed maps.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tensor/hf/folder.h"
#include "tensor/fail.h"
#include "tests/fuzz/walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const names[] = {"config.json", "tokenizer.json", "modules.json",
                                    "model.safetensors.index.json", "model.safetensors"};
#define N_FILES (sizeof(names) / sizeof(names[0]))

static int new_file(const uint8_t *data, size_t size)
{
    int fd = memfd_create("file", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    return fd;
}

// An empty text is a file that is absent.
static uint32_t cut(const uint8_t *data, size_t size, struct nb_source_file *files)
{
    uint32_t n = 0;
    for (size_t i = 0; i < N_FILES; i++) {
        const uint8_t *end = i < N_FILES - 1 && size ? memchr(data, 0, size) : NULL;
        const size_t len = end ? (size_t)(end - data) : size;
        if (len)
            files[n++] = (struct nb_source_file){names[i], new_file(data, len)};
        data += len + (end ? 1 : 0);
        size -= len + (end ? 1 : 0);
    }
    return n;
}

static void pack(const struct nb_source *s)
{
    const struct nb_pack_options options = {.zeros = true};
    struct nb_image *img;
    struct nb_error error;
    uint64_t bytes;
    int image = memfd_create("image", MFD_CLOEXEC);
    if (nb_image_pack(s, image, &options, &bytes, &error) >= 0) {
        if (nb_image_map(image, 0, &img, &error) < 0) {
            fprintf(stderr, "a packed folder does not map: %s\n", error.text);
            abort();
        }
        walk_gguf(nb_image_metadata(img));
        walk_image(img);
        nb_image_unmap(img);
    }
    close(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nb_source_file files[N_FILES];
    struct nb_source *s;
    struct nb_error error;
    const uint32_t n = cut(data, size, files);
    if (n && nb_source_open(files, n, &s, &error) == 0) {
        pack(s);
        nb_source_close(s);
    }
    for (uint32_t i = 0; i < n; i++)
        close(files[i].fd);
    return 0;
}
