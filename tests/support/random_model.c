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
    const char *loud;             // a norm whose weights are all `value`, or NULL
    float value;
    const char *chat_template; // or NULL
    bool bert;
    uint32_t pooling;         // 0: the metadata says none
    uint32_t experts, chosen; // 0: none
    uint32_t rank;            // of an adapter, which is written in the model's place; 0: none
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
        t->quantize(&x, block, 1);
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

int random_blocks(uint32_t type, float deviation, uint64_t seed, uint8_t *to, size_t n)
{
    const struct random_model of = {.seed = seed};
    const struct nb_type_info *t = nb_type_info(type);
    struct writer w = {.r = &of};
    for (size_t i = 0; i < N_SHAPES && t; i++) {
        if (shapes[i].type != (int)type)
            continue;
        for (size_t b = 0; b < n; b++)
            fill_block(&w, &shapes[i], t, deviation, to + b * t->bytes);
        return 0;
    }
    return -EINVAL;
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
struct tensor {
    const char *name;
    uint32_t rows, cols; // rows 0: a vector
};

typedef int (*tensor_fn)(struct writer *w, const struct tensor *t);

// Of tensors that have a matrix for each expert how many; else 0.
static uint32_t count_of(const struct writer *w, const struct tensor *t)
{
    return strstr(t->name, "_exps.") ? w->experts : 0;
}

static int announce(struct writer *w, const struct tensor *t)
{
    uint64_t dims[3] = {t->cols, t->rows, count_of(w, t)};
    if (!t->rows)
        return nb_gguf_add_tensor(w->w, t->name, NB_TYPE_F32, 1, dims);
    return nb_gguf_add_tensor(w->w, t->name, (uint32_t)shape_of(w, t->name)->type, dims[2] ? 3 : 2,
                              dims);
}

static int write_vector(struct writer *w, const struct tensor *t)
{
    uint8_t row[ROW_BYTES];
    const bool bias = strstr(t->name, ".bias");
    for (uint32_t i = 0; i < t->cols; i++) {
        float x = bias ? uniform(w, -0.2f, 0.2f) : uniform(w, 0.8f, 1.2f);
        if (w->loud && !strcmp(w->loud, t->name))
            x = w->value;
        memcpy(row + i * sizeof(x), &x, sizeof(x));
    }
    return nb_gguf_write(w->w, row, t->cols * sizeof(float));
}

static int write_tensor(struct writer *w, const struct tensor *t)
{
    uint8_t row[ROW_BYTES];
    if (!t->rows)
        return write_vector(w, t);
    const struct shape *s = shape_of(w, t->name);
    const struct nb_type_info *type = nb_type_info((uint32_t)s->type);
    const uint32_t n = count_of(w, t), rows = t->rows * (n ? n : 1);
    int rc = 0;
    for (uint32_t r = 0; r < rows && rc == 0; r++) {
        for (uint32_t i = 0; i < t->cols / type->block; i++)
            fill_block(w, s, type, 1 / sqrtf((float)t->cols), row + i * type->bytes);
        rc = nb_gguf_write(w->w, row, (size_t)t->cols / type->block * type->bytes);
    }
    return rc;
}

static int each_tensor(struct writer *w, tensor_fn fn, const char *prefix, const struct tensor *t,
                       size_t n)
{
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        char name[64];
        snprintf(name, sizeof(name), "%s%s", prefix, t[i].name);
        rc = fn(w, &(const struct tensor){name, t[i].rows, t[i].cols});
    }
    return rc;
}

static int each_layer(struct writer *w, tensor_fn fn, const struct tensor *t, size_t n)
{
    int rc = 0;
    for (uint32_t l = 0; l < w->r->layers && rc == 0; l++) {
        char prefix[32];
        snprintf(prefix, sizeof(prefix), "blk.%u.", l);
        rc = each_tensor(w, fn, prefix, t, n);
    }
    return rc;
}

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static int llama_tensors(struct writer *w, tensor_fn fn)
{
    const uint32_t e = w->r->embedding, ffn = w->r->ffn, kv = e / w->r->heads * w->r->kv_heads,
                   x = w->experts;
    const struct tensor begin[] = {{"token_embd.weight", RANDOM_VOCAB, e}},
                        end[] = {{"output_norm.weight", 0, e}, {"output.weight", RANDOM_VOCAB, e}},
                        layer[] = {{"attn_norm.weight", 0, e},
                                   {"attn_q.weight", e, e},
                                   {"attn_k.weight", kv, e},
                                   {"attn_v.weight", kv, e},
                                   {"attn_output.weight", e, e},
                                   {"ffn_norm.weight", 0, e},
                                   {x ? "ffn_gate_exps.weight" : "ffn_gate.weight", ffn, e},
                                   {x ? "ffn_up_exps.weight" : "ffn_up.weight", ffn, e},
                                   {x ? "ffn_down_exps.weight" : "ffn_down.weight", e, ffn},
                                   {"ffn_gate_inp.weight", x, e}};
    int rc = each_tensor(w, fn, "", begin, COUNT(begin));
    if (rc == 0)
        rc = each_layer(w, fn, layer, COUNT(layer) - (x == 0));
    return rc == 0 ? each_tensor(w, fn, "", end, COUNT(end)) : rc;
}

static int bert_tensors(struct writer *w, tensor_fn fn)
{
    const uint32_t e = w->r->embedding, ffn = w->r->ffn;
    const struct tensor begin[] = {{"token_embd.weight", RANDOM_VOCAB, e},
                                   {"token_types.weight", 2, e},
                                   {"position_embd.weight", w->r->context, e},
                                   {"token_embd_norm.weight", 0, e},
                                   {"token_embd_norm.bias", 0, e}},
                        layer[] = {{"attn_q.weight", e, e},
                                   {"attn_q.bias", 0, e},
                                   {"attn_k.weight", e, e},
                                   {"attn_k.bias", 0, e},
                                   {"attn_v.weight", e, e},
                                   {"attn_v.bias", 0, e},
                                   {"attn_output.weight", e, e},
                                   {"attn_output.bias", 0, e},
                                   {"ffn_up.weight", ffn, e},
                                   {"ffn_up.bias", 0, ffn},
                                   {"ffn_down.weight", e, ffn},
                                   {"ffn_down.bias", 0, e},
                                   {"attn_output_norm.weight", 0, e},
                                   {"attn_output_norm.bias", 0, e},
                                   {"layer_output_norm.weight", 0, e},
                                   {"layer_output_norm.bias", 0, e}};
    int rc = each_tensor(w, fn, "", begin, COUNT(begin));
    return rc == 0 ? each_layer(w, fn, layer, COUNT(layer)) : rc;
}

static int tensors(struct writer *w, tensor_fn fn)
{
    w->matrices = 0;
    return (w->bert ? bert_tensors : llama_tensors)(w, fn);
}

static int put_u32(struct writer *w, const char *key, uint32_t value)
{
    return nb_gguf_put(w->w, key, NB_GGUF_U32, &value);
}

static struct nb_str str(const char *s)
{
    return (struct nb_str){s, strlen(s)};
}

struct nb_str random_byte_symbol(uint32_t b, char buffer[8])
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
            tokens[i] = random_byte_symbol(i, text[i]);
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

static const char *arch_of(const struct writer *w)
{
    return w->bert ? "bert" : "llama";
}

static const char *key_of(const struct writer *w, const char *name, char key[96])
{
    snprintf(key, 96, "%s.%s", arch_of(w), name);
    return key;
}

static int metadata(struct writer *w)
{
    const struct random_model *r = w->r;
    const char *eps_key =
        w->bert ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon";
    const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {{"block_count", r->layers},
                 {"context_length", r->context},
                 {"embedding_length", r->embedding},
                 {"feed_forward_length", r->ffn},
                 {"attention.head_count", r->heads},
                 {"attention.head_count_kv", w->bert ? r->heads : r->kv_heads},
                 {"expert_count", w->experts},
                 {"expert_used_count", w->chosen},
                 {"pooling_type", w->pooling}};
    float eps = 1e-5f;
    char key[96];
    int rc = nb_gguf_put_str(w->w, "general.architecture", str(arch_of(w)));
    for (size_t i = 0; i < COUNT(sizes) && rc == 0; i++)
        if (sizes[i].value)
            rc = put_u32(w, key_of(w, sizes[i].key, key), sizes[i].value);
    if (rc == 0)
        rc = nb_gguf_put(w->w, key_of(w, eps_key, key), NB_GGUF_F32, &eps);
    if (rc < 0)
        return rc;
    if (w->chat_template &&
        (rc = nb_gguf_put_str(w->w, "tokenizer.chat_template", str(w->chat_template))) < 0)
        return rc;
    return tokenizer(w);
}

static int adapter_metadata(struct writer *w)
{
    const float alpha = (float)w->rank;
    int rc = nb_gguf_put_str(w->w, "general.architecture", str(arch_of(w)));
    if (rc == 0)
        rc = nb_gguf_put_str(w->w, "general.type", str("adapter"));
    if (rc == 0)
        rc = nb_gguf_put_str(w->w, "adapter.type", str("lora"));
    return rc == 0 ? nb_gguf_put(w->w, "adapter.lora.alpha", NB_GGUF_F32, &alpha) : rc;
}

// What an adapter has in a matrix's place.
static int each_factor(struct writer *w, const struct tensor *t, tensor_fn fn)
{
    char a[80], b[80];
    if (!t->rows || !strncmp(t->name, "token_embd", 10))
        return 0;
    snprintf(a, sizeof(a), "%s.lora_a", t->name);
    snprintf(b, sizeof(b), "%s.lora_b", t->name);
    int rc = fn(w, &(const struct tensor){a, w->rank, t->cols});
    return rc == 0 ? fn(w, &(const struct tensor){b, t->rows, w->rank}) : rc;
}

static int announce_factors(struct writer *w, const struct tensor *t)
{
    return each_factor(w, t, announce);
}

static int write_factors(struct writer *w, const struct tensor *t)
{
    return each_factor(w, t, write_tensor);
}

static int create(struct writer w)
{
    const struct random_model *r = w.r;
    if (r->embedding > ROW_BYTES / 4 || r->ffn > ROW_BYTES / 4)
        return -EINVAL;
    int fd = memfd_create("random-model", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = nb_gguf_writer_create(&w.w);
    if (rc == 0)
        rc = (w.rank ? adapter_metadata : metadata)(&w);
    if (rc == 0)
        rc = tensors(&w, w.rank ? announce_factors : announce);
    if (rc == 0)
        rc = nb_gguf_begin(w.w, fd);
    if (rc == 0)
        rc = tensors(&w, w.rank ? write_factors : write_tensor);
    if (rc == 0)
        rc = nb_gguf_end(w.w);
    nb_gguf_writer_destroy(w.w);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return fd;
}

int random_model_create_loud(const struct random_model *r, const char *norm, float value)
{
    return create((struct writer){.r = r, .loud = norm, .value = value});
}

int random_model_create(const struct random_model *r)
{
    return create((struct writer){.r = r});
}

int random_adapter_create(const struct random_model *r, uint32_t rank, uint32_t type, uint64_t seed)
{
    struct random_model factors = *r;
    factors.type = (int)type;
    factors.seed = seed;
    return create((struct writer){.r = &factors, .rank = rank});
}

int random_model_create_pooled(const struct random_model *r, bool bert, uint32_t pooling,
                               const char *norm, float value)
{
    return create(
        (struct writer){.r = r, .bert = bert, .pooling = pooling, .loud = norm, .value = value});
}

int random_model_create_experts(const struct random_model *r, uint32_t experts, uint32_t chosen)
{
    return create((struct writer){.r = r, .experts = experts, .chosen = chosen});
}

int random_model_create_chat(const struct random_model *r, const char *chat_template)
{
    return create((struct writer){.r = r, .chat_template = chat_template});
}

int random_model_create_mixed(const struct random_model *r, const struct random_mix *mix)
{
    return create((struct writer){.r = r, .mix = mix});
}
