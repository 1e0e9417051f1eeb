// The seed corpora: `seeds DIR` writes DIR/fuzz_gguf/TYPE, a small model of each type with every
// kind of metadata, DIR/fuzz_image/TYPE, the same packed, and DIR/fuzz_client (client_input.h).
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tensor/gguf_write.h"
#include "tensor/image.h"
#include "tests/fuzz/client_input.h"

#define STR(s) ((struct nb_str){(s), strlen(s)})

static void check(int r, const char *what)
{
    if (r < 0) {
        fprintf(stderr, "seeds: %s: %s\n", what, strerror(-r));
        exit(1);
    }
}

static int create(const char *dir, const char *target, const char *name)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", dir, target);
    check(mkdir(path, 0755) < 0 && errno != EEXIST ? -errno : 0, path);
    snprintf(path, sizeof(path), "%s/%s/%s", dir, target, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    check(fd < 0 ? -errno : 0, path);
    return fd;
}

static void put_metadata(struct nb_gguf_writer *w)
{
    const uint8_t value[8] = {1, 2, 3, 4};
    const bool yes = true;
    const struct nb_str words[] = {STR("a"), STR(""), STR("the")};
    char key[16];
    check(nb_gguf_put_str(w, "general.architecture", STR("llama")), "metadata");
    for (unsigned type = NB_GGUF_U8; type <= NB_GGUF_F64; type++) {
        if (type == NB_GGUF_BOOL || type == NB_GGUF_STRING || type == NB_GGUF_ARRAY)
            continue;
        snprintf(key, sizeof(key), "k%u", type);
        check(nb_gguf_put(w, key, type, value), key);
        snprintf(key, sizeof(key), "a%u", type);
        check(nb_gguf_put_array(w, key, type, value, 1), key);
    }
    check(nb_gguf_put(w, "yes", NB_GGUF_BOOL, &yes), "metadata");
    check(nb_gguf_put_strs(w, "words", words, 3), "metadata");
}

static void write_model(int fd, const struct nb_type_info *t)
{
    uint8_t data[2048];
    struct nb_gguf_writer *w;
    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * i / 3);
    check(nb_gguf_writer_create(&w), "writer");
    put_metadata(w);
    check(nb_gguf_add_tensor(w, "m", t->type, 2, (uint64_t[]){t->block, 2}), "matrix");
    check(nb_gguf_add_tensor(w, "v", t->type, 1, (uint64_t[]){t->block}), "vector");
    check(nb_gguf_begin(w, fd), "begin");
    check(nb_gguf_write(w, data, 2 * t->bytes), "matrix");
    check(nb_gguf_write(w, data, t->bytes), "vector");
    check(nb_gguf_end(w), "end");
    nb_gguf_writer_destroy(w);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: seeds DIR\n");
        return 2;
    }
    check(mkdir(argv[1], 0755) < 0 && errno != EEXIST ? -errno : 0, argv[1]);
    for (uint32_t type = 0; type < 64; type++) {
        const struct nb_type_info *t = nb_type_info(type);
        char error[256] = "";
        uint64_t bytes;
        if (!t)
            continue;
        int model = create(argv[1], "fuzz_gguf", t->name);
        int image = create(argv[1], "fuzz_image", t->name);
        write_model(model, t);
        check(nb_image_pack(model, image, NULL, NULL, &bytes, error, sizeof(error)), error);
        close(model);
        close(image);
    }
    write_client_seeds(argv[1]);
    return 0;
}
