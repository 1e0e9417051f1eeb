// Writes the model by our own GGUF writer. Codes are random bits; scales are set so that
// activations stay near 1.
#include "tests/support/random_model.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/sampler.h"
#include "tensor/gguf_write.h"
#include "tensor/type.h"

// Where a block has its fp16 scale and minimum (-1: none), and what a code's standard deviation is
// about, with its sub-scale. The rest of a block may be any bits.
static const struct shape {
    int type, scale, min;
    float spread;
} shapes[] = {
    {NB_TYPE_Q4_0, 0, -1, 4.6f},   {NB_TYPE_Q4_1, 0, 2, 4.6f},  {NB_TYPE_Q5_0, 0, -1, 9.2f},
    {NB_TYPE_Q5_1, 0, 2, 9.2f},    {NB_TYPE_Q8_0, 0, -1, 74},   {NB_TYPE_Q2_K, 80, 82, 10},
    {NB_TYPE_Q3_K, 108, -1, 42},   {NB_TYPE_Q4_K, 0, 2, 170},   {NB_TYPE_Q5_K, 0, 2, 340},
    {NB_TYPE_Q6_K, 208, -1, 1370}, {NB_TYPE_IQ4_NL, 0, -1, 66}, {NB_TYPE_IQ4_XS, 0, -1, 1220},
    {NB_TYPE_Q2_0, 0, -1, 1.1f},   {NB_TYPE_F32, -1, -1, 0},    {NB_TYPE_F16, -1, -1, 0},
    {NB_TYPE_BF16, -1, -1, 0},
};
#define N_SHAPES (sizeof(shapes) / sizeof(shapes[0]))

#define ROW_BYTES 8192 // of the widest matrix, or vector

struct writer {
    const struct random_model *r;
    const struct random_mix *mix; // or NULL
    struct nb_gguf_writer *w;
    uint64_t counter;
    uint32_t matrices;
};

static uint64_t next(struct writer *w)
{
    return nb_random(w->r->seed, w->counter++);
}

static float uniform(struct writer *w, float low, float high)
{
    return low + (high - low) * (float)(next(w) >> 40) * 0x1p-24f;
}

static void put_half(uint8_t *at, float value)
{
    uint16_t h = nb_f32_to_f16(value);
    memcpy(at, &h, sizeof(h));
}

static void fill_block(struct writer *w, const struct shape *s, const struct nb_type_info *t,
                       float deviation, uint8_t *block)
{
    if (s->scale < 0) {
        float x = uniform(w, -1.7f, 1.7f) * deviation;
        t->encode(&x, block, 1);
        return;
    }
    for (uint32_t i = 0; i < t->bytes; i += 8) {
        uint64_t bits = next(w);
        memcpy(block + i, &bits, t->bytes - i < 8 ? t->bytes - i : 8);
    }
    float d = deviation / s->spread * uniform(w, 0.5f, 1.5f);
    put_half(block + s->scale, d);
    if (s->min >= 0)
        put_half(block + s->min, t->block == 256 ? d / 2 : -deviation * uniform(w, 1, 2));
}

static int type_of(const struct writer *w, const char *name)
{
    unsigned layer = 0;
    int skip = 0;
    if (sscanf(name, "blk.%u.%n", &layer, &skip) < 1)
        skip = 0;
    size_t n = strlen(name + skip) - strlen(".weight");
    for (const struct random_mix *m = w->mix; m && m->name; m++)
        if (strlen(m->name) == n && !strncmp(m->name, name + skip, n))
            return layer % 2 ? m->odd : m->even;
    return w->r->type;
}

static const struct shape *shape_of(struct writer *w, const char *name)
{
    const int type = type_of(w, name);
    const uint32_t matrix = w->matrices++;
    for (size_t i = 0; type >= 0 && i < N_SHAPES; i++)
        if (shapes[i].type == type)
            return &shapes[i];
    return &shapes[matrix % N_SHAPES];
}

// Called twice for each tensor, in the same order: to announce it, and then to write it.
typedef int (*tensor_fn)(struct writer *w, const char *name, uint32_t rows, uint32_t cols);

static int announce(struct writer *w, const char *name, uint32_t rows, uint32_t cols)
{
    uint64_t dims[2] = {cols, rows};
    if (!rows)
        return nb_gguf_add_tensor(w->w, name, NB_TYPE_F32, 1, dims);
    return nb_gguf_add_tensor(w->w, name, (uint32_t)shape_of(w, name)->type, 2, dims);
}

static int write_tensor(struct writer *w, const char *name, uint32_t rows, uint32_t cols)
{
    uint8_t row[ROW_BYTES];
    if (!rows) {
        for (uint32_t i = 0; i < cols; i++) {
            float x = uniform(w, 0.8f, 1.2f);
            memcpy(row + i * sizeof(x), &x, sizeof(x));
        }
        return nb_gguf_write(w->w, row, cols * sizeof(float));
    }
    const struct shape *s = shape_of(w, name);
    const struct nb_type_info *t = nb_type_info((uint32_t)s->type);
    int rc = 0;
    for (uint32_t r = 0; r < rows && rc == 0; r++) {
        for (uint32_t i = 0; i < cols / t->block; i++)
            fill_block(w, s, t, 1 / sqrtf((float)cols), row + i * t->bytes);
        rc = nb_gguf_write(w->w, row, (size_t)cols / t->block * t->bytes);
    }
    return rc;
}

static int tensors(struct writer *w, tensor_fn fn)
{
    const struct random_model *r = w->r;
    uint32_t e = r->embedding, kv = e / r->heads * r->kv_heads;
    const struct {
        const char *name;
        uint32_t rows, cols;
    } layer[] = {{"attn_norm", 0, e},     {"attn_q", e, e},      {"attn_k", kv, e},
                 {"attn_v", kv, e},       {"attn_output", e, e}, {"ffn_norm", 0, e},
                 {"ffn_gate", r->ffn, e}, {"ffn_up", r->ffn, e}, {"ffn_down", e, r->ffn}};
    w->matrices = 0;
    int rc = fn(w, "token_embd.weight", RANDOM_VOCAB, e);
    for (uint32_t l = 0; l < r->layers; l++)
        for (size_t i = 0; i < sizeof(layer) / sizeof(layer[0]) && rc == 0; i++) {
            char name[64];
            snprintf(name, sizeof(name), "blk.%u.%s.weight", l, layer[i].name);
            rc = fn(w, name, layer[i].rows, layer[i].cols);
        }
    if (rc == 0)
        rc = fn(w, "output_norm.weight", 0, e);
    return rc == 0 ? fn(w, "output.weight", RANDOM_VOCAB, e) : rc;
}

static int put_u32(struct writer *w, const char *key, uint32_t value)
{
    return nb_gguf_put(w->w, key, NB_GGUF_U32, &value);
}

static struct nb_str str(const char *s)
{
    return (struct nb_str){s, strlen(s)};
}

// Byte-level BPE writes bytes that are no visible characters as U+0100 and on.
static struct nb_str byte_symbol(uint32_t b, char buffer[8])
{
    static const uint8_t visible[][2] = {{33, 126}, {161, 172}, {174, 255}};
    uint32_t code = 256, is_visible = 0;
    for (uint32_t c = 0; c <= b; c++) {
        is_visible = 0;
        for (int i = 0; i < 3; i++)
            is_visible |= c >= visible[i][0] && c <= visible[i][1];
        code += c < b && !is_visible;
    }
    code = is_visible ? b : code;
    size_t n = 0;
    if (code >= 0x80)
        buffer[n++] = (char)(0xC0 | code >> 6);
    buffer[n] = (char)(code >= 0x80 ? 0x80 | (code & 63) : code);
    return (struct nb_str){buffer, n + 1};
}

static int tokenizer(struct writer *w)
{
    char text[RANDOM_VOCAB][8];
    struct nb_str tokens[RANDOM_VOCAB];
    int32_t types[RANDOM_VOCAB];
    for (uint32_t i = 0; i < RANDOM_VOCAB; i++) {
        if (i < 256) {
            tokens[i] = byte_symbol(i, text[i]);
        } else {
            snprintf(text[i], sizeof(text[i]), "<%u>", i);
            tokens[i] = str(text[i]);
        }
        types[i] = i < 256 ? 1 : 3; // normal, control
    }
    struct nb_str merge = str("a b");
    int rc;
    if ((rc = nb_gguf_put_str(w->w, "tokenizer.ggml.model", str("gpt2"))) < 0 ||
        (rc = nb_gguf_put_str(w->w, "tokenizer.ggml.pre", str("smollm"))) < 0 ||
        (rc = nb_gguf_put_strs(w->w, "tokenizer.ggml.tokens", tokens, RANDOM_VOCAB)) < 0 ||
        (rc = nb_gguf_put_array(w->w, "tokenizer.ggml.token_type", NB_GGUF_I32, types,
                                RANDOM_VOCAB)) < 0 ||
        (rc = nb_gguf_put_strs(w->w, "tokenizer.ggml.merges", &merge, 0)) < 0 ||
        (rc = put_u32(w, "tokenizer.ggml.eos_token_id", RANDOM_EOS)) < 0)
        return rc;
    return 0;
}

static int metadata(struct writer *w)
{
    const struct random_model *r = w->r;
    float eps = 1e-5f;
    int rc;
    if ((rc = nb_gguf_put_str(w->w, "general.architecture", str("llama"))) < 0 ||
        (rc = put_u32(w, "llama.block_count", r->layers)) < 0 ||
        (rc = put_u32(w, "llama.context_length", r->context)) < 0 ||
        (rc = put_u32(w, "llama.embedding_length", r->embedding)) < 0 ||
        (rc = put_u32(w, "llama.feed_forward_length", r->ffn)) < 0 ||
        (rc = put_u32(w, "llama.attention.head_count", r->heads)) < 0 ||
        (rc = put_u32(w, "llama.attention.head_count_kv", r->kv_heads)) < 0 ||
        (rc = nb_gguf_put(w->w, "llama.attention.layer_norm_rms_epsilon", NB_GGUF_F32, &eps)) < 0)
        return rc;
    return tokenizer(w);
}

int random_model_create_mixed(const struct random_model *r, const struct random_mix *mix)
{
    struct writer w = {.r = r, .mix = mix};
    if (r->embedding > ROW_BYTES / 4 || r->ffn > ROW_BYTES / 4)
        return -EINVAL;
    int fd = memfd_create("random-model", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = nb_gguf_writer_create(&w.w);
    if (rc == 0)
        rc = metadata(&w);
    if (rc == 0)
        rc = tensors(&w, announce);
    if (rc == 0)
        rc = nb_gguf_begin(w.w, fd);
    if (rc == 0)
        rc = tensors(&w, write_tensor);
    if (rc == 0)
        rc = nb_gguf_end(w.w);
    nb_gguf_writer_destroy(w.w);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return fd;
}

int random_model_create(const struct random_model *r)
{
    return random_model_create_mixed(r, NULL);
}
