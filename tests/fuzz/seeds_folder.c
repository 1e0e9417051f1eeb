// Seeds for fuzz_folder: a small model of each family, its files one behind the other with NULs
// between them.
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/fuzz/seeds.h"

#define SHAPE                                                                                      \
    "\"vocab_size\":2,\"hidden_size\":4,\"intermediate_size\":3,\"num_hidden_layers\":1,"          \
    "\"num_attention_heads\":2,\"max_position_embeddings\":8,"
#define DECODER(name)                                                                              \
    "{\"architectures\":[\"" name "\"]," SHAPE "\"num_key_value_heads\":1,\"rms_norm_eps\":1e-5,"
#define BYTES                                                                                      \
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]},\"pre_tokenizer\":{"  \
    "\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},\"added_tokens\":[]}"
#define PIECES                                                                                     \
    "{\"model\":{\"type\":\"WordPiece\",\"unk_token\":\"a\",\"continuing_subword_prefix\":\"##\"," \
    "\"vocab\":{\"a\":0,\"##b\":1}},\"normalizer\":{\"type\":\"BertNormalizer\",\"clean_text\":"   \
    "true,\"handle_chinese_chars\":true,\"strip_accents\":null,\"lowercase\":true},"               \
    "\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"},\"added_tokens\":[]}"
#define MODULES                                                                                    \
    "[{\"idx\":0,\"path\":\"\",\"type\":\"a.Transformer\"},{\"path\":\"\",\"type\":\"Normalize\"}" \
    "]"

struct tensor {
    const char *name;
    unsigned rows, cols; // 0 rows: a vector
};

#define ATTENTION                                                                                  \
    {"model.embed_tokens.weight", 2, 4}, {"model.norm.weight", 0, 4},                              \
        {"model.layers.0.input_layernorm.weight", 0, 4},                                           \
        {"model.layers.0.post_attention_layernorm.weight", 0, 4},                                  \
        {"model.layers.0.self_attn.q_proj.weight", 4, 4},                                          \
        {"model.layers.0.self_attn.k_proj.weight", 2, 4},                                          \
        {"model.layers.0.self_attn.v_proj.weight", 2, 4},                                          \
    {                                                                                              \
        "model.layers.0.self_attn.o_proj.weight", 4, 4                                             \
    }
#define FFN                                                                                        \
    {"model.layers.0.mlp.gate_proj.weight", 3, 4}, {"model.layers.0.mlp.up_proj.weight", 3, 4},    \
    {                                                                                              \
        "model.layers.0.mlp.down_proj.weight", 4, 3                                                \
    }
#define EXPERT(e)                                                                                  \
    {"model.layers.0.block_sparse_moe.experts." e ".w1.weight", 3, 4},                             \
        {"model.layers.0.block_sparse_moe.experts." e ".w2.weight", 4, 3},                         \
    {                                                                                              \
        "model.layers.0.block_sparse_moe.experts." e ".w3.weight", 3, 4                            \
    }
#define LINEAR(name, rows, cols)                                                                   \
    {name ".weight", rows, cols},                                                                  \
    {                                                                                              \
        name ".bias", 0, rows                                                                      \
    }
#define NORM(name)                                                                                 \
    {name ".weight", 0, 4},                                                                        \
    {                                                                                              \
        name ".bias", 0, 4                                                                         \
    }

static const struct {
    const char *name, *config, *tokenizer, *modules;
    struct tensor tensors[24];
} seeds[] = {
    {"llama",
     DECODER("LlamaForCausalLM") "\"tie_word_embeddings\":true,\"rope_scaling\":{\"rope_type\":"
                                 "\"llama3\",\"factor\":2,\"low_freq_factor\":1,"
                                 "\"high_freq_factor\":4,\"original_max_position_embeddings\":4}}",
     BYTES,
     "",
     {ATTENTION, FFN}},
    {"mixtral",
     DECODER("MixtralForCausalLM") "\"tie_word_embeddings\":true,\"num_local_experts\":2,"
                                   "\"num_experts_per_tok\":1,\"rope_theta\":1e4}",
     BYTES,
     "",
     {ATTENTION, {"model.layers.0.block_sparse_moe.gate.weight", 2, 4}, EXPERT("0"), EXPERT("1")}},
    {"qwen3",
     DECODER("Qwen3Model") "\"head_dim\":2,\"layer_types\":[\"full_attention\"],\"rope_parameters\""
                           ":{\"rope_type\":\"yarn\",\"factor\":2,\"rope_theta\":1e4}}",
     BYTES,
     MODULES,
     {ATTENTION,
      FFN,
      {"model.layers.0.self_attn.q_norm.weight", 0, 2},
      {"model.layers.0.self_attn.k_norm.weight", 0, 2}}},
    {"bert",
     "{\"architectures\":[\"BertModel\"]," SHAPE "\"type_vocab_size\":2,\"layer_norm_eps\":1e-12}",
     PIECES,
     MODULES,
     {{"embeddings.word_embeddings.weight", 2, 4},
      {"embeddings.position_embeddings.weight", 8, 4},
      {"embeddings.token_type_embeddings.weight", 2, 4},
      NORM("embeddings.LayerNorm"),
      LINEAR("encoder.layer.0.attention.self.query", 4, 4),
      LINEAR("encoder.layer.0.attention.self.key", 4, 4),
      LINEAR("encoder.layer.0.attention.self.value", 4, 4),
      LINEAR("encoder.layer.0.attention.output.dense", 4, 4),
      NORM("encoder.layer.0.attention.output.LayerNorm"),
      LINEAR("encoder.layer.0.intermediate.dense", 3, 4),
      LINEAR("encoder.layer.0.output.dense", 4, 3),
      NORM("encoder.layer.0.output.LayerNorm")}},
};

static void put(int fd, const void *data, size_t len)
{
    seed_check(write(fd, data, len) == (ssize_t)len ? 0 : -EIO, "folder");
}

static void write_weights(int fd, const struct tensor *tensors, size_t n)
{
    char header[8192] = "{", shape[32];
    size_t data = 0, len = 1;
    for (size_t i = 0; i < n && tensors[i].name; i++) {
        const unsigned rows = tensors[i].rows, cols = tensors[i].cols;
        const size_t bytes = (rows ? rows : 1) * (size_t)cols * 2;
        if (rows)
            snprintf(shape, sizeof(shape), "%u,%u", rows, cols);
        else
            snprintf(shape, sizeof(shape), "%u", cols);
        len += (size_t)snprintf(header + len, sizeof(header) - len,
                                "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%zu,"
                                "%zu]}",
                                i ? "," : "", tensors[i].name, shape, data, data + bytes);
        data += bytes;
    }
    len += (size_t)snprintf(header + len, sizeof(header) - len, "}");
    const uint64_t header_len = len;
    put(fd, &header_len, sizeof(header_len));
    put(fd, header, len);
    const uint16_t half = 0x3f00;
    for (size_t i = 0; i < data / 2; i++)
        put(fd, &half, sizeof(half));
}

void write_folder_seeds(const char *dir)
{
    for (size_t i = 0; i < sizeof(seeds) / sizeof(*seeds); i++) {
        int fd = seed_create(dir, "fuzz_folder", seeds[i].name);
        put(fd, seeds[i].config, strlen(seeds[i].config) + 1);
        put(fd, seeds[i].tokenizer, strlen(seeds[i].tokenizer) + 1);
        put(fd, seeds[i].modules, strlen(seeds[i].modules) + 1);
        put(fd, "", 1); // no index
        write_weights(fd, seeds[i].tensors, sizeof(seeds[i].tensors) / sizeof(*seeds[i].tensors));
        close(fd);
    }
}
