// Seeds of fuzz_plan: the smallest llama models that open, which say what they can of their
// computation.
#include <string.h>
#include <unistd.h>

#include "tensor/gguf_write.h"
#include "tensor/type.h"
#include "tests/fuzz/seeds.h"

enum { SIZE = 32 }; // embedding, FFN and the one head

static const struct {
    const char *name;
    int rows; // 0: a vector
} tensors[] = {
    {"token_embd.weight", 2},      {"output_norm.weight", 0},
    {"rope_freqs.weight", 0},      {"blk.0.attn_norm.weight", 0},
    {"blk.0.attn_q.weight", SIZE}, {"blk.0.attn_k.weight", SIZE},
    {"blk.0.attn_v.weight", SIZE}, {"blk.0.attn_output.weight", SIZE},
    {"blk.0.ffn_norm.weight", 0},  {"blk.0.ffn_gate.weight", SIZE},
    {"blk.0.ffn_up.weight", SIZE}, {"blk.0.ffn_down.weight", SIZE},
    {"blk.0.attn_q.bias", 0},
};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static void put_numbers(struct nb_gguf_writer *w)
{
    static const struct {
        const char *key;
        uint32_t value;
    } numbers[] = {{"llama.block_count", 1},
                   {"llama.context_length", 64},
                   {"llama.embedding_length", SIZE},
                   {"llama.feed_forward_length", SIZE},
                   {"llama.rope.dimension_count", SIZE},
                   {"llama.attention.key_length", SIZE},
                   {"llama.attention.sliding_window", 9},
                   {"llama.rope.scaling.original_context_length", 16},
                   {"llama.expert_count", 0}};
    static const struct {
        const char *key;
        float value;
    } floats[] = {{"llama.attention.layer_norm_rms_epsilon", 1e-5f},
                  {"llama.attention.head_count", 1},
                  {"llama.attention.scale", 0.2f},
                  {"llama.rope.freq_base", 1e4f},
                  {"llama.rope.scaling.factor", 4},
                  {"llama.rope.scale_linear", 2},
                  {"llama.rope.scaling.attn_factor", 1.1f},
                  {"llama.rope.scaling.yarn_ext_factor", 0.5f},
                  {"llama.rope.scaling.yarn_beta_fast", 16},
                  {"llama.rope.scaling.yarn_beta_slow", 2},
                  {"llama.logit_scale", 1}};
    for (unsigned i = 0; i < COUNT(numbers); i++)
        seed_check(nb_gguf_put(w, numbers[i].key, NB_GGUF_U32, &numbers[i].value), numbers[i].key);
    for (unsigned i = 0; i < COUNT(floats); i++)
        seed_check(nb_gguf_put(w, floats[i].key, NB_GGUF_F32, &floats[i].value), floats[i].key);
    const int32_t kv_heads = 1;
    seed_check(nb_gguf_put_array(w, "llama.attention.head_count_kv", NB_GGUF_I32, &kv_heads, 1),
               "an array");
}

static uint64_t bytes_of(size_t i, uint64_t dims[2])
{
    const struct nb_type_info *t = nb_type_info(tensors[i].rows ? NB_TYPE_Q4_0 : NB_TYPE_F32);
    // rope's factors are of pairs.
    dims[0] = strcmp(tensors[i].name, "rope_freqs.weight") ? SIZE : SIZE / 2;
    dims[1] = tensors[i].rows ? (uint64_t)tensors[i].rows : 1;
    return dims[0] / t->block * t->bytes * dims[1];
}

static void write_model(int fd, const char *scaling)
{
    struct nb_gguf_writer *w;
    uint8_t data[SIZE * SIZE];
    uint64_t dims[2];
    memset(data, 0x3c, sizeof(data));
    seed_check(nb_gguf_writer_create(&w), "writer");
    seed_check(nb_gguf_put_str(w, "general.architecture", (struct nb_str){"llama", 5}), "name");
    seed_check(
        nb_gguf_put_str(w, "llama.rope.scaling.type", (struct nb_str){scaling, strlen(scaling)}),
        "scaling");
    put_numbers(w);
    for (size_t i = 0; i < COUNT(tensors); i++) {
        (void)bytes_of(i, dims);
        seed_check(nb_gguf_add_tensor(w, tensors[i].name,
                                      tensors[i].rows ? NB_TYPE_Q4_0 : NB_TYPE_F32,
                                      tensors[i].rows ? 2 : 1, dims),
                   tensors[i].name);
    }
    seed_check(nb_gguf_begin(w, fd), "begin");
    for (size_t i = 0; i < COUNT(tensors); i++)
        seed_check(nb_gguf_write(w, data, bytes_of(i, dims)), tensors[i].name);
    seed_check(nb_gguf_end(w), "end");
    nb_gguf_writer_destroy(w);
}

void write_plan_seeds(const char *dir)
{
    static const char *const scalings[] = {"none", "linear", "yarn", "longrope"};
    for (size_t i = 0; i < COUNT(scalings); i++) {
        int fd = seed_create(dir, "fuzz_plan", scalings[i]);
        write_model(fd, scalings[i]);
        close(fd);
    }
}
