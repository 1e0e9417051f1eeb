// A filter for the oracle: `formats decode|encode TYPE` turns blocks on stdin into floats on
// stdout, or back. `formats pack FILE...` packs each file and prints a line for it: empty, or why
// it was refused.
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tensor/image.h"
#include "tensor/fail.h"
#include "tests/support/pack.h"

#define BLOCKS 1024 // at a time; the largest has 256 weights, and fewer bytes

static void pack(const char *path)
{
    struct nb_error error = {""};
    uint64_t bytes;
    int file = open(path, O_RDONLY | O_CLOEXEC), image = memfd_create("image", MFD_CLOEXEC);
    if (test_pack(file, image, NULL, &bytes, &error) == 0)
        *error.text = 0;
    puts(error.text);
    close(image);
    close(file);
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "pack") == 0) {
        for (int i = 2; i < argc; i++)
            pack(argv[i]);
        return 0;
    }
    const struct nb_type_info *t = argc == 3 ? nb_type_by_name(argv[2]) : NULL;
    int encode = t && strcmp(argv[1], "encode") == 0;
    if (!t || (!encode && strcmp(argv[1], "decode") != 0) || (encode && !t->quantize)) {
        fprintf(stderr, "usage: formats decode|encode TYPE | pack FILE...\n");
        return 2;
    }
    static uint8_t blocks[BLOCKS * 256];
    static float values[BLOCKS * 256];
    size_t floats = t->block * sizeof(float), n;
    if (encode) {
        while ((n = fread(values, floats, BLOCKS, stdin)) > 0) {
            t->quantize(values, blocks, n);
            fwrite(blocks, t->bytes, n, stdout);
        }
    } else {
        while ((n = fread(blocks, t->bytes, BLOCKS, stdin)) > 0) {
            t->dequantize(blocks, values, n);
            fwrite(values, floats, n, stdout);
        }
    }
    return fflush(stdout) == 0 && !ferror(stdin) ? 0 : 1;
}
