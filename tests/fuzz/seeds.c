// The seed corpora: `seeds DIR` writes DIR/fuzz_gguf/TYPE, a small model of each type with every
// kind of metadata, DIR/fuzz_image/TYPE, the same packed, DIR/fuzz_folder (seeds_folder.c),
// DIR/fuzz_plan (seeds_plan.c), DIR/fuzz_template (seeds_template.c), DIR/fuzz_hf_tokenizer
// (seeds_hf.c), DIR/fuzz_lessons (seeds_lessons.c), and DIR/fuzz_client (client_input.h).
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tensor/gguf_write.h"
#include "tensor/fail.h"
#include "tensor/image.h"
#include "tests/fuzz/client_input.h"
#include "tests/fuzz/seeds.h"
#include "tests/support/pack.h"

#define STR(s) ((struct nb_str){(s), strlen(s)})

void seed_check(int rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "seeds: %s: %s\n", what, strerror(-rc));
        exit(1);
    }
}

int seed_create(const char *dir, const char *target, const char *name)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", dir, target);
    seed_check(mkdir(path, 0755) < 0 && errno != EEXIST ? -errno : 0, path);
    snprintf(path, sizeof(path), "%s/%s/%s", dir, target, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    seed_check(fd < 0 ? -errno : 0, path);
    return fd;
}

static void put_metadata(struct nb_gguf_writer *w)
{
    const uint8_t value[8] = {1, 2, 3, 4};
    const bool yes = true;
    const struct nb_str words[] = {STR("a"), STR(""), STR("the")};
    char key[16];
    seed_check(nb_gguf_put_str(w, "general.architecture", STR("llama")), "metadata");
    for (unsigned type = NB_GGUF_U8; type <= NB_GGUF_F64; type++) {
        if (type == NB_GGUF_BOOL || type == NB_GGUF_STRING || type == NB_GGUF_ARRAY)
            continue;
        snprintf(key, sizeof(key), "k%u", type);
        seed_check(nb_gguf_put(w, key, type, value), key);
        snprintf(key, sizeof(key), "a%u", type);
        seed_check(nb_gguf_put_array(w, key, type, value, 1), key);
    }
    seed_check(nb_gguf_put(w, "yes", NB_GGUF_BOOL, &yes), "metadata");
    seed_check(nb_gguf_put_strs(w, "words", words, 3), "metadata");
}

static void write_model(int fd, const struct nb_type_info *t)
{
    uint8_t data[2048];
    struct nb_gguf_writer *w;
    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (1 + i * i / 3) & 0xbf; // not zero, and no float is NaN or infinite
    seed_check(nb_gguf_writer_create(&w), "writer");
    put_metadata(w);
    seed_check(nb_gguf_add_tensor(w, "m", t->type, 2, (uint64_t[]){t->block, 2}), "matrix");
    seed_check(nb_gguf_add_tensor(w, "v", t->type, 1, (uint64_t[]){t->block}), "vector");
    seed_check(nb_gguf_add_tensor(w, "e", t->type, 3, (uint64_t[]){t->block, 1, 2}), "experts");
    seed_check(nb_gguf_begin(w, fd), "begin");
    seed_check(nb_gguf_write(w, data, 2 * t->bytes), "matrix");
    seed_check(nb_gguf_write(w, data, t->bytes), "vector");
    seed_check(nb_gguf_write(w, data, 2 * t->bytes), "experts");
    seed_check(nb_gguf_end(w), "end");
    nb_gguf_writer_destroy(w);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: seeds DIR\n");
        return 2;
    }
    seed_check(mkdir(argv[1], 0755) < 0 && errno != EEXIST ? -errno : 0, argv[1]);
    for (uint32_t type = 0; type < 64; type++) {
        const struct nb_type_info *t = nb_type_info(type);
        struct nb_error error = {""};
        uint64_t bytes;
        if (!t)
            continue;
        int model = seed_create(argv[1], "fuzz_gguf", t->name);
        int image = seed_create(argv[1], "fuzz_image", t->name);
        write_model(model, t);
        seed_check(test_pack(model, image, NULL, &bytes, &error), error.text);
        close(model);
        close(image);
    }
    write_client_seeds(argv[1]);
    write_folder_seeds(argv[1]);
    write_hf_seeds(argv[1]);
    write_plan_seeds(argv[1]);
    write_lessons_seeds(argv[1]);
    write_template_seeds(argv[1]);
    return 0;
}
