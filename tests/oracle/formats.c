// A filter for the oracle: `formats decode|encode TYPE` turns blocks on stdin into floats on
// stdout, or back.
#include <stdio.h>
#include <string.h>

#include "tensor/type.h"

#define BLOCKS 1024 // at a time; the largest has 256 weights, and fewer bytes

int main(int argc, char **argv)
{
    const struct nb_type_info *t = argc == 3 ? nb_type_by_name(argv[2]) : NULL;
    int encode = t && strcmp(argv[1], "encode") == 0;
    if (!t || (!encode && strcmp(argv[1], "decode") != 0) || (encode && !t->encode)) {
        fprintf(stderr, "usage: formats decode|encode TYPE\n");
        return 2;
    }
    static uint8_t blocks[BLOCKS * 256];
    static float values[BLOCKS * 256];
    size_t floats = t->block * sizeof(float), n;
    if (encode) {
        while ((n = fread(values, floats, BLOCKS, stdin)) > 0) {
            t->encode(values, blocks, n);
            fwrite(blocks, t->bytes, n, stdout);
        }
    } else {
        while ((n = fread(blocks, t->bytes, BLOCKS, stdin)) > 0) {
            t->decode(blocks, values, n);
            fwrite(values, floats, n, stdout);
        }
    }
    return fflush(stdout) == 0 && !ferror(stdin) ? 0 : 1;
}
