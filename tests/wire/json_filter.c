// For test_json.py: texts on stdin, each after its length as a u32, to what nb_json_check says of
// each, an i32 on stdout.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "libclient/json.h"

int main(void)
{
    uint32_t len;
    while (fread(&len, sizeof(len), 1, stdin) == 1) {
        struct nb_json_fault fault;
        char *text = malloc(len ? len : 1); // of its own size, for sanitizers
        if (!text || fread(text, 1, len, stdin) != len)
            return 1;
        int32_t r = nb_json_check(text, len, '[', &fault);
        fwrite(&r, sizeof(r), 1, stdout);
        free(text);
    }
    return 0;
}
