// A small llama or BERT model of random weights in a memfd, of every weight type in turn: for what
// must hold of any model.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/gguf.h"

struct random_model {
    uint32_t layers, embedding, ffn, heads, kv_heads, context;
    uint64_t seed;
    int type; // of all matrices; -1: every type we load, one after the other
};

// The widths divide into every type's blocks. 300 tokens: 256 bytes, then others; token 299 ends a
// text.
#define RANDOM_MODEL ((struct random_model){3, 256, 512, 4, 2, 512, 1, -1})
#define RANDOM_VOCAB 300
#define RANDOM_EOS   299

// Other types for some matrices: in even layers and outside of layers, and in odd layers.
struct random_mix {
    const char *name; // as GGUF has it, without the layer and ".weight"; NULL: the end
    int even, odd;
};

int random_model_create(const struct random_model *r); // the memfd, or a negative errno
// An encoder or a llama, which pools a text's vector as `pooling` says (pooling_type in GGUF); one
// of its norms may be loud.
int random_model_create_pooled(const struct random_model *r, bool bert, uint32_t pooling,
                               const char *norm, float value);
// One norm, by its name in the file, has weights that are all `value`.
int random_model_create_loud(const struct random_model *r, const char *norm, float value);
// A llama each of whose layers has `experts` feed-forwards, of which a token takes `chosen`.
int random_model_create_experts(const struct random_model *r, uint32_t experts, uint32_t chosen);
// With a chat template.
int random_model_create_chat(const struct random_model *r, const char *chat_template);
int random_model_create_mixed(const struct random_model *r, const struct random_mix *mix);

// An adapter of it in a memfd: factors of rank `rank` and a type of floats, for each matrix of its
// layers and the head; with alpha `rank`, so that its scale is the one it is opened with.
int random_adapter_create(const struct random_model *r, uint32_t rank, uint32_t type,
                          uint64_t seed);

// For larger models (tests/gpu/model.c): n blocks of random codes, whose weights deviate by about
// `deviation`; -EINVAL for another type. And the symbol of a byte as byte-level BPE writes it:
// bytes that are no visible characters as U+0100 and on.
int random_blocks(uint32_t type, float deviation, uint64_t seed, uint8_t *to, size_t n);
struct nb_str random_byte_symbol(uint32_t byte, char buffer[8]);
