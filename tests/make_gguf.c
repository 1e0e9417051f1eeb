// Makes the GGUF files that tests need: `make-gguf convert IN OUT TYPE` rewrites a model's matrices
// in another type (to F32 for the float oracles, or rounded to nearest), `make-gguf random OUT TYPE
// [SEED [NORM VALUE]]` makes a small random llama with a byte-level tokenizer, of any type that
// Nibble loads, one of whose norms has weights that are all VALUE. Not the product's quantizer:
// that one is `nibble compress`.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tensor/block.h"
#include "tensor/fail.h"
#include "tensor/gguf_write.h"

#define STR(s) ((struct nb_str){(s), strlen(s)})

static void check(int rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "make-gguf: %s: %s\n", what, strerror(-rc));
        exit(1);
    }
}

static void *allocate(size_t n)
{
    void *p = malloc(n ? n : 1);
    check(p ? 0 : -12, "memory");
    return p;
}

static int open_output(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    check(fd < 0 ? -1 : 0, path);
    return fd;
}

static const struct nb_type_info *type_named(const char *name)
{
    const struct nb_type_info *t = nb_type_by_name(name);
    if (!t) {
        fprintf(stderr, "make-gguf: no type %s\n", name);
        exit(2);
    }
    return t;
}

// general.file_type of a file whose matrices are of this type, as llama.cpp numbers them.
static uint32_t file_type(uint32_t type)
{
    static const uint8_t numbers[] = {
        [NB_TYPE_F32] = 0,     [NB_TYPE_F16] = 1,     [NB_TYPE_Q4_0] = 2,  [NB_TYPE_Q4_1] = 3,
        [NB_TYPE_Q8_0] = 7,    [NB_TYPE_Q5_0] = 8,    [NB_TYPE_Q5_1] = 9,  [NB_TYPE_Q2_K] = 10,
        [NB_TYPE_Q3_K] = 12,   [NB_TYPE_Q4_K] = 15,   [NB_TYPE_Q5_K] = 17, [NB_TYPE_Q6_K] = 18,
        [NB_TYPE_IQ4_NL] = 25, [NB_TYPE_IQ4_XS] = 30, [NB_TYPE_BF16] = 32, [NB_TYPE_Q2_0] = 41,
    };
    return numbers[type];
}

// --- convert ---

static const struct nb_type_info *target_of(const struct nb_gguf_tensor *t,
                                            const struct nb_type_info *wanted)
{
    return t->n_dims == 1 ? nb_type_info(NB_TYPE_F32) : wanted;
}

static void convert_tensor(struct nb_gguf_writer *w, int fd, const struct nb_gguf_tensor *t,
                           const struct nb_type_info *to)
{
    const struct nb_type_info *from = nb_type_info(t->type);
    size_t cols = t->dims[0], in = cols / from->block * from->bytes;
    size_t out = cols / to->block * to->bytes;
    void *source = allocate(in), *encoded = allocate(out);
    float *row = allocate(cols * sizeof(float));
    for (uint64_t r = 0; r < t->bytes / in; r++) {
        ssize_t n = pread(fd, source, in, (off_t)(t->offset + r * in));
        check(n == (ssize_t)in ? 0 : -5, "reading the source");
        from->dequantize(source, row, cols / from->block);
        to->quantize(row, encoded, cols / to->block);
        check(nb_gguf_write(w, encoded, out), "writing");
    }
    free(source);
    free(encoded);
    free(row);
}

static void add_converted(struct nb_gguf_writer *w, const struct nb_gguf_tensor *t,
                          const struct nb_type_info *wanted)
{
    const struct nb_type_info *to = target_of(t, wanted);
    char name[256];
    snprintf(name, sizeof(name), "%.*s", (int)t->name.len, t->name.data);
    if (!nb_type_info(t->type) || t->dims[0] % to->block) {
        fprintf(stderr, "make-gguf: %s (%s) does not convert to %s\n", name, nb_type_name(t->type),
                to->name);
        exit(1);
    }
    check(nb_gguf_add_tensor(w, name, to->type, t->n_dims, t->dims), name);
}

static int convert(const char *in, const char *out, const struct nb_type_info *wanted)
{
    struct nb_error error = {""};
    struct nb_gguf *g;
    struct nb_gguf_writer *w;
    int fd = open(in, O_RDONLY | O_CLOEXEC);
    check(fd < 0 ? -2 : 0, in);
    if (nb_gguf_open(fd, &g, &error) < 0 || !wanted->quantize) {
        fprintf(stderr, "make-gguf: %s: %s\n", in,
                *error.text ? error.text : "no encoder for that type");
        return 1;
    }
    check(nb_gguf_writer_create(&w), "writer");
    uint32_t number = file_type(wanted->type);
    check(nb_gguf_put(w, "general.file_type", NB_GGUF_U32, &number), "file type");
    check(nb_gguf_copy_metadata(w, g), "metadata");
    for (uint64_t i = 0; i < nb_gguf_n_tensors(g); i++)
        add_converted(w, nb_gguf_tensor(g, i), wanted);
    int to = open_output(out);
    check(nb_gguf_begin(w, to), out);
    for (uint64_t i = 0; i < nb_gguf_n_tensors(g); i++)
        convert_tensor(w, fd, nb_gguf_tensor(g, i), target_of(nb_gguf_tensor(g, i), wanted));
    check(nb_gguf_end(w), out);
    check(close(to), out);
    nb_gguf_writer_destroy(w);
    nb_gguf_close(g);
    close(fd);
    return 0;
}

// --- random ---

enum { LAYERS = 2, EMBED = 256, FFN = 512, HEADS = 4, KV_HEADS = 2, CONTEXT = 512, SPECIALS = 3 };
enum { VOCAB = 256 + SPECIALS, KV_DIM = EMBED / HEADS * KV_HEADS };

static uint64_t state;

static uint32_t random_u32(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static float random_weight(void)
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)random_u32() * 0x1p-32f - 0.5f;
    return sum * 0.1f;
}

// A block of a type without an encoder: any codes, under scales that give weights of the usual
// size.
static void random_block(const struct nb_type_info *t, uint8_t *dst)
{
    struct nb_block b;
    uint8_t *bytes = (uint8_t *)&b;
    for (size_t i = 0; i < sizeof(b); i++)
        bytes[i] = (uint8_t)random_u32();
    const struct nb_layout *l = nb_layout_of(t->type);
    static const float sub_reach[] = {[NB_SUB_NONE] = 1, [NB_SUB_SM8] = 64, [NB_SUB_SM4] = 16,
                                      [NB_SUB_S6] = 32,  [NB_SUB_S8] = 128, [NB_SUB_S6X8] = 32};
    uint32_t bits = t->bytes * 8 / t->block;
    float reach = l->codebook == NB_CODEBOOK_IQ4 ? 127 : (float)(1u << bits);
    float d = 0.1f / reach / sub_reach[l->sub];
    b.scale = nb_f32_to_f16(d);
    b.min = nb_f32_to_f16(d);
    nb_codec_of(t->type)->join(&b, dst);
}

static void write_random(struct nb_gguf_writer *w, const struct nb_type_info *t, uint64_t n)
{
    float values[NB_BLOCK_MAX];
    uint8_t block[NB_BLOCK_MAX * 4];
    for (uint64_t i = 0; i < n / t->block; i++) {
        for (unsigned k = 0; k < t->block; k++)
            values[k] = random_weight();
        if (t->quantize)
            t->quantize(values, block, 1);
        else
            random_block(t, block);
        check(nb_gguf_write(w, block, t->bytes), "writing");
    }
}

static const char *loud; // a norm whose weights are all `loud_value`; NULL: none
static float loud_value;

static void write_ones(struct nb_gguf_writer *w, const char *name, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        float v = 1 + random_weight();
        if (loud && !strcmp(loud, name))
            v = loud_value;
        check(nb_gguf_write(w, &v, sizeof(v)), "writing");
    }
}

static const struct {
    const char *name;
    uint64_t cols, rows; // rows 0: a vector
} shapes[] = {
    {"attn_norm", EMBED, 0},   {"attn_q", EMBED, EMBED},      {"attn_k", EMBED, KV_DIM},
    {"attn_v", EMBED, KV_DIM}, {"attn_output", EMBED, EMBED}, {"ffn_norm", EMBED, 0},
    {"ffn_gate", EMBED, FFN},  {"ffn_up", EMBED, FFN},        {"ffn_down", FFN, EMBED},
};

#define N_SHAPES (sizeof(shapes) / sizeof(shapes[0]))

static const char *tensor_name(unsigned layer, unsigned shape)
{
    static char name[64];
    snprintf(name, sizeof(name), "blk.%u.%s.weight", layer, shapes[shape].name);
    return name;
}

static void add_random(struct nb_gguf_writer *w, const struct nb_type_info *t)
{
    check(nb_gguf_add_tensor(w, "token_embd.weight", t->type, 2, (uint64_t[]){EMBED, VOCAB}),
          "add");
    for (unsigned layer = 0; layer < LAYERS; layer++)
        for (unsigned s = 0; s < N_SHAPES; s++) {
            const char *name = tensor_name(layer, s);
            uint64_t dims[2] = {shapes[s].cols, shapes[s].rows};
            uint32_t type = shapes[s].rows ? t->type : NB_TYPE_F32;
            check(nb_gguf_add_tensor(w, name, type, shapes[s].rows ? 2 : 1, dims), name);
        }
    check(nb_gguf_add_tensor(w, "output_norm.weight", NB_TYPE_F32, 1, (uint64_t[]){EMBED}), "add");
}

static void put_numbers(struct nb_gguf_writer *w, const struct nb_type_info *t)
{
    const struct {
        const char *key;
        uint32_t value;
    } numbers[] = {
        {"llama.block_count", LAYERS},
        {"llama.context_length", CONTEXT},
        {"llama.embedding_length", EMBED},
        {"llama.feed_forward_length", FFN},
        {"llama.attention.head_count", HEADS},
        {"llama.attention.head_count_kv", KV_HEADS},
        {"llama.rope.dimension_count", EMBED / HEADS},
        {"llama.vocab_size", VOCAB},
        {"general.file_type", file_type(t->type)},
        {"general.quantization_version", 2},
        {"tokenizer.ggml.bos_token_id", 256},
        {"tokenizer.ggml.eos_token_id", 258},
    };
    float base = 10000, epsilon = 1e-5f;
    for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        check(nb_gguf_put(w, numbers[i].key, NB_GGUF_U32, &numbers[i].value), numbers[i].key);
    check(nb_gguf_put(w, "llama.rope.freq_base", NB_GGUF_F32, &base), "metadata");
    check(nb_gguf_put(w, "llama.attention.layer_norm_rms_epsilon", NB_GGUF_F32, &epsilon),
          "metadata");
}

// GPT-2's alphabet: a printable byte stands for itself, the others for U+0100 onwards in their
// order.
static void byte_token(unsigned byte, char out[3])
{
    static unsigned next;
    unsigned c = byte;
    if (byte == 0)
        next = 256;
    if (byte < 33 || (byte > 126 && byte < 161) || byte == 173)
        c = next++;
    out[0] = (char)(c < 128 ? c : 0xc0 | c >> 6);
    out[1] = (char)(c < 128 ? 0 : 0x80 | (c & 63));
    out[2] = 0;
}

static void put_tokenizer(struct nb_gguf_writer *w)
{
    static char bytes[256][3];
    static int32_t types[VOCAB];
    struct nb_str tokens[VOCAB] = {
        [256] = STR("<|endoftext|>"), STR("<|im_start|>"), STR("<|im_end|>")};
    bool add_bos = false;
    for (unsigned i = 0; i < VOCAB; i++) {
        types[i] = i < 256 ? 1 : 3; // normal, control
        if (i < 256) {
            byte_token(i, bytes[i]);
            tokens[i] = STR(bytes[i]);
        }
    }
    check(nb_gguf_put_str(w, "tokenizer.ggml.model", STR("gpt2")), "tokenizer");
    check(nb_gguf_put_str(w, "tokenizer.ggml.pre", STR("gpt-2")), "tokenizer");
    check(nb_gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, VOCAB), "tokenizer");
    check(nb_gguf_put_array(w, "tokenizer.ggml.token_type", NB_GGUF_I32, types, VOCAB),
          "tokenizer");
    check(nb_gguf_put_strs(w, "tokenizer.ggml.merges", NULL, 0), "tokenizer");
    check(nb_gguf_put(w, "tokenizer.ggml.add_bos_token", NB_GGUF_BOOL, &add_bos), "tokenizer");
}

static int make_random(const char *out, const struct nb_type_info *t, uint64_t seed)
{
    struct nb_gguf_writer *w;
    state = seed;
    check(nb_gguf_writer_create(&w), "writer");
    check(nb_gguf_put_str(w, "general.architecture", STR("llama")), "metadata");
    check(nb_gguf_put_str(w, "general.name", STR("random")), "metadata");
    put_numbers(w, t);
    put_tokenizer(w);
    add_random(w, t);
    int fd = open_output(out);
    check(nb_gguf_begin(w, fd), out);
    write_random(w, t, EMBED * VOCAB);
    for (unsigned s = 0; s < LAYERS * N_SHAPES; s++) {
        uint64_t cols = shapes[s % N_SHAPES].cols, rows = shapes[s % N_SHAPES].rows;
        if (rows)
            write_random(w, t, cols * rows);
        else
            write_ones(w, tensor_name(s / N_SHAPES, s % N_SHAPES), cols);
    }
    write_ones(w, "output_norm.weight", EMBED);
    check(nb_gguf_end(w), out);
    check(close(fd), out);
    nb_gguf_writer_destroy(w);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "convert") == 0)
        return convert(argv[2], argv[3], type_named(argv[4]));
    if (argc == 7) {
        loud = argv[5];
        loud_value = strtof(argv[6], NULL);
    }
    if ((argc == 4 || argc == 5 || argc == 7) && strcmp(argv[1], "random") == 0)
        return make_random(argv[2], type_named(argv[3]),
                           argc > 4 ? strtoull(argv[4], NULL, 10) : 1);
    fprintf(stderr, "usage: make-gguf convert IN OUT TYPE | "
                    "make-gguf random OUT TYPE [SEED [NORM VALUE]]\n");
    return 2;
}
