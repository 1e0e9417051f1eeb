// A filter for the oracle: `images PATH...` packs each model, a GGUF, the first of its parts or a
// folder, and prints a line for it: the image's size and hash, or why it was refused.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "libclient/files.h"
#include "tensor/fail.h"
#include "tensor/hf/folder.h"
#include "tensor/image.h"

static int pack(const struct nb_model_files *files, int image, uint64_t *ret_bytes,
                struct nb_error *error)
{
    struct nb_source_file list[NB_WIRE_FILES];
    struct nb_source *source;
    for (size_t i = 0; i < files->n; i++)
        list[i] = (struct nb_source_file){files->items[i].name, files->items[i].fd};
    int rc = nb_source_open(list, (uint32_t)files->n, &source, error);
    if (rc < 0)
        return rc;
    rc = nb_image_pack(source, image, NULL, ret_bytes, error);
    nb_source_close(source);
    return rc;
}

static void print_image(const char *path)
{
    struct nb_model_files files = {0};
    struct nb_error error = {""};
    uint64_t bytes = 0;
    int image = memfd_create("image", MFD_CLOEXEC);
    int rc = nb_model_files_open(path, &files, error.text, sizeof(error.text));
    if (rc == 0)
        rc = pack(&files, image, &bytes, &error);
    void *data = rc < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, image, 0);
    if (data == MAP_FAILED)
        printf("error: %s\n", error.text);
    else
        printf("%llu %016llx\n", (unsigned long long)bytes,
               (unsigned long long)XXH3_64bits(data, bytes));
    if (data != MAP_FAILED)
        munmap(data, bytes);
    nb_model_files_close(&files);
    close(image);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        print_image(argv[i]);
    return 0;
}
