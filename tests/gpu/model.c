// Writes models of random weights: fast, because most of a check's minutes are the device's. Rows
// are slices of a pool of random blocks, so that no page equals the next; scales keep activations
// near 1.
#include "tests/gpu/model.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "engine/sampler.h"
#include "tensor/fail.h"
#include "tensor/gguf_write.h"
#include "tensor/image.h"
#include "tensor/type.h"
#include "tests/gpu/gpu.h"
#include "tests/support/pack.h"
#include "tests/support/random_model.h"

#define POOL_BYTES ((size_t)4 << 20)
#define MAX_POOLS  8
#define MEMORY_X   2.5 // of the file: the file in memory, its image, and room

static const struct shape {
    const char *name;
    uint32_t layers, embedding, ffn, heads, kv_heads, head_dim, vocab, context;
    float rope_base;
    bool tied; // the head is the embedding
} shapes[] = {
    {"tiny", 2, 256, 512, 4, 2, 64, 512, 512, 10000, false},
    {"smollm2-135m", 30, 576, 1536, 9, 3, 64, 49152, 8192, 100000, true},
    {"llama-3.2-1b", 16, 2048, 8192, 32, 8, 64, 128256, 8192, 500000, true},
    {"llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256, 8192, 500000, false},
};

// Blocks of a type for rows so wide: their scale depends on the width.
struct pool {
    uint32_t type, cols;
    size_t rows, row;
    uint8_t *data;
};

struct writer {
    const struct shape *shape;
    uint32_t type;
    struct nb_gguf_writer *w;
    struct pool pools[MAX_POOLS];
    uint32_t n_pools;
    uint64_t counter, bytes;
};

// Rows that no K-quant block divides are Q5_0, as llama.cpp has them.
static uint32_t type_for(const struct writer *w, uint32_t cols)
{
    return cols % nb_type_info(w->type)->block ? (uint32_t)NB_TYPE_Q5_0 : w->type;
}

static const struct pool *pool_of(struct writer *w, uint32_t cols)
{
    const uint32_t type = type_for(w, cols);
    for (uint32_t i = 0; i < w->n_pools; i++)
        if (w->pools[i].type == type && w->pools[i].cols == cols)
            return &w->pools[i];
    if (w->n_pools == MAX_POOLS)
        gpu_fail("a model of more than %d widths", MAX_POOLS);
    const struct nb_type_info *t = nb_type_info(type);
    struct pool *p = &w->pools[w->n_pools++];
    *p = (struct pool){.type = type, .cols = cols, .row = (size_t)cols / t->block * t->bytes};
    p->rows = POOL_BYTES / p->row;
    p->data = malloc(p->rows * p->row);
    gpu_check(p->data ? 0 : -ENOMEM, "memory");
    gpu_check(
        random_blocks(type, 1 / sqrtf((float)cols), cols, p->data, p->rows * (cols / t->block)),
        t->name);
    return p;
}

// Called twice for each tensor, in the same order: to announce it, and then to write it.
typedef void (*tensor_fn)(struct writer *w, const char *name, uint32_t rows, uint32_t cols);

static void announce(struct writer *w, const char *name, uint32_t rows, uint32_t cols)
{
    const uint64_t dims[2] = {cols, rows};
    const uint32_t type = rows ? type_for(w, cols) : (uint32_t)NB_TYPE_F32;
    const struct nb_type_info *t = nb_type_info(type);
    gpu_check(nb_gguf_add_tensor(w->w, name, type, rows ? 2 : 1, dims), name);
    w->bytes += (uint64_t)cols / t->block * t->bytes * (rows ? rows : 1);
}

static void write_vector(struct writer *w, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        float x = 0.8f + 0.4f * (float)(nb_random(1, w->counter++) >> 40) * 0x1p-24f;
        gpu_check(nb_gguf_write(w->w, &x, sizeof(x)), "writing");
    }
}

static void write_tensor(struct writer *w, const char *name, uint32_t rows, uint32_t cols)
{
    (void)name;
    if (!rows) {
        write_vector(w, cols);
        return;
    }
    const struct pool *p = pool_of(w, cols);
    for (uint32_t r = 0; r < rows;) {
        size_t from = nb_random(2, w->counter++) % p->rows, n = p->rows - from;
        n = n < rows - r ? n : rows - r;
        gpu_check(nb_gguf_write(w->w, p->data + from * p->row, n * p->row), "writing");
        r += (uint32_t)n;
    }
}

static void each_tensor(struct writer *w, tensor_fn fn)
{
    const struct shape *s = w->shape;
    const uint32_t e = s->embedding, q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    const struct {
        const char *name;
        uint32_t rows, cols;
    } layer[] = {{"attn_norm", 0, e},     {"attn_q", q, e},      {"attn_k", kv, e},
                 {"attn_v", kv, e},       {"attn_output", e, q}, {"ffn_norm", 0, e},
                 {"ffn_gate", s->ffn, e}, {"ffn_up", s->ffn, e}, {"ffn_down", e, s->ffn}};
    fn(w, "token_embd.weight", s->vocab, e);
    for (uint32_t l = 0; l < s->layers; l++)
        for (size_t i = 0; i < sizeof(layer) / sizeof(layer[0]); i++) {
            char name[64];
            snprintf(name, sizeof(name), "blk.%u.%s.weight", l, layer[i].name);
            fn(w, name, layer[i].rows, layer[i].cols);
        }
    fn(w, "output_norm.weight", 0, e);
    if (!s->tied)
        fn(w, "output.weight", s->vocab, e);
}

static struct nb_str str(const char *s)
{
    return (struct nb_str){s, strlen(s)};
}

static void *zeroed(size_t n, size_t size)
{
    void *p = calloc(n, size);
    if (!p)
        gpu_fail("out of memory");
    return p;
}

// 256 bytes, then words that tell their number; the last token ends a text.
static void put_tokens(struct writer *w)
{
    const uint32_t n = w->shape->vocab, end = n - 1;
    char(*text)[12] = zeroed(n, sizeof(*text));
    struct nb_str *tokens = zeroed(n, sizeof(*tokens));
    int32_t *types = zeroed(n, sizeof(*types));
    for (uint32_t i = 0; i < n; i++) {
        types[i] = i == end ? 3 : 1; // control, normal
        snprintf(text[i], sizeof(text[i]), i == end ? "<end>" : "t%u", i);
        tokens[i] = i < 256 ? random_byte_symbol(i, text[i]) : str(text[i]);
    }
    gpu_check(nb_gguf_put_str(w->w, "tokenizer.ggml.model", str("gpt2")), "tokenizer");
    gpu_check(nb_gguf_put_str(w->w, "tokenizer.ggml.pre", str("smollm")), "tokenizer");
    gpu_check(nb_gguf_put_strs(w->w, "tokenizer.ggml.tokens", tokens, n), "tokenizer");
    gpu_check(nb_gguf_put_array(w->w, "tokenizer.ggml.token_type", NB_GGUF_I32, types, n),
              "tokenizer");
    gpu_check(nb_gguf_put_strs(w->w, "tokenizer.ggml.merges", NULL, 0), "tokenizer");
    gpu_check(nb_gguf_put(w->w, "tokenizer.ggml.eos_token_id", NB_GGUF_U32, &end), "tokenizer");
    free(text);
    free(tokens);
    free(types);
}

static void put_numbers(struct writer *w)
{
    const struct shape *s = w->shape;
    const struct {
        const char *key;
        uint32_t value;
    } numbers[] = {
        {"llama.block_count", s->layers},
        {"llama.context_length", s->context},
        {"llama.embedding_length", s->embedding},
        {"llama.feed_forward_length", s->ffn},
        {"llama.attention.head_count", s->heads},
        {"llama.attention.head_count_kv", s->kv_heads},
        {"llama.rope.dimension_count", s->head_dim},
        {"llama.vocab_size", s->vocab},
    };
    const float eps = 1e-5f;
    gpu_check(nb_gguf_put_str(w->w, "general.architecture", str("llama")), "metadata");
    gpu_check(nb_gguf_put_str(w->w, "general.name", str(s->name)), "metadata");
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        gpu_check(nb_gguf_put(w->w, numbers[i].key, NB_GGUF_U32, &numbers[i].value), "metadata");
    gpu_check(nb_gguf_put(w->w, "llama.rope.freq_base", NB_GGUF_F32, &s->rope_base), "metadata");
    gpu_check(nb_gguf_put(w->w, "llama.attention.layer_norm_rms_epsilon", NB_GGUF_F32, &eps),
              "metadata");
}

static uint64_t free_memory(void)
{
    unsigned long long kb = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof(line), f) && sscanf(line, "MemAvailable: %llu kB", &kb) != 1)
        ;
    if (f)
        fclose(f);
    return (uint64_t)kb << 10;
}

// Where the machine has no room for the model, the part does not apply.
static void check_room(const struct writer *w, const char *path)
{
    struct statvfs fs;
    uint64_t memory = free_memory();
    char folder[4096];
    snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    snprintf(slash ? slash : folder, 3, "/.");
    if (memory && (double)memory < MEMORY_X * (double)w->bytes)
        gpu_skip("%s takes %.1f GB of memory to make, of which %.1f are free", w->shape->name,
                 MEMORY_X * (double)w->bytes * 1e-9, (double)memory * 1e-9);
    if (statvfs(slash ? folder : ".", &fs) == 0 &&
        (double)fs.f_bavail * (double)fs.f_frsize < 1.1 * (double)w->bytes)
        gpu_skip("%s takes %.1f GB of disk at %s, of which %.1f are free", w->shape->name,
                 1.1 * (double)w->bytes * 1e-9, path,
                 (double)fs.f_bavail * (double)fs.f_frsize * 1e-9);
}

static void write_gguf(const struct shape *s, uint32_t type, int fd, const char *path)
{
    struct writer w = {.shape = s, .type = type};
    gpu_check(nb_gguf_writer_create(&w.w), "writer");
    put_numbers(&w);
    put_tokens(&w);
    each_tensor(&w, announce);
    check_room(&w, path);
    gpu_check(nb_gguf_begin(w.w, fd), path);
    each_tensor(&w, write_tensor);
    gpu_check(nb_gguf_end(w.w), path);
    nb_gguf_writer_destroy(w.w);
    for (uint32_t i = 0; i < w.n_pools; i++)
        free(w.pools[i].data);
}

static void pack(int from, int to, const char *path)
{
    struct nb_error error = {""};
    uint64_t bytes;
    if (test_pack(from, to, NULL, &bytes, &error) < 0)
        gpu_fail("%s: %s", path, error.text);
}

static int in_memory(void)
{
    int fd = memfd_create("gpu-check", MFD_CLOEXEC);
    gpu_check(fd < 0 ? -errno : 0, "a memfd");
    return fd;
}

static const struct shape *shape_named(const char *name)
{
    size_t n = strcspn(name, ":");
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        if (strlen(shapes[i].name) == n && !strncmp(shapes[i].name, name, n))
            return &shapes[i];
    gpu_fail("%s: say tiny, smollm2-135m, llama-3.2-1b or llama-3.1-8b, a colon and a type", name);
}

void gpu_model_make(const char *what, const char *path)
{
    const char *dot = strrchr(path, '.'), *colon = strchr(what, ':');
    const struct shape *s = shape_named(what);
    const struct nb_type_info *t = nb_type_by_name(colon ? colon + 1 : "");
    const bool image = dot && !strcmp(dot, ".image");
    char part[4096];
    if (!t)
        gpu_fail("%s: there is no such type", what);
    if (access(path, F_OK) == 0)
        return;
    // Whole or not at all: a check may end at any time.
    snprintf(part, sizeof(part), "%s.part", path);
    int to = open(part, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    gpu_check(to < 0 ? -errno : 0, part);
    int gguf = image ? in_memory() : to;
    write_gguf(s, t->type, gguf, path);
    if (image) {
        pack(gguf, to, path);
        close(gguf);
    }
    gpu_check(rename(part, path) < 0 ? -errno : 0, path);
    close(to);
}

int gpu_model(int argc, char **argv)
{
    if (argc != 3)
        gpu_fail("model: SHAPE:TYPE FILE.gguf|FILE.image");
    gpu_model_make(argv[1], argv[2]);
    return 0;
}

// --- Images

int gpu_image(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        gpu_skip("%s is not there: the part that makes it says why", path);
    return fd;
}

int gpu_image_of(const struct random_model *model)
{
    int gguf = random_model_create(model), fd = in_memory();
    gpu_check(gguf, "a random model");
    pack(gguf, fd, "a random model");
    close(gguf);
    return fd;
}

int gpu_image_random(int type)
{
    return gpu_image_of(&(struct random_model){1, 256, 256, 4, 2, 512, 3, type});
}

void gpu_model_open(int image, const char *device, const struct nb_device_options *how,
                    const struct nb_model_options *options, struct test_model *ret)
{
    struct nb_image *map;
    struct nb_error error = {""};
    *ret = (struct test_model){0};
    if (nb_image_map(image, 0, &map, &error) < 0 ||
        nb_device_create(device, how, &ret->device, &error) < 0 ||
        nb_model_open(map, ret->device, options, &ret->model, &error) < 0)
        gpu_fail("%s", error.text);
}
