// A small llama model of random weights in a memfd, of every weight type in turn: for what must
// hold of any model.
#pragma once

#include <stdint.h>

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
int random_model_create_mixed(const struct random_model *r, const struct random_mix *mix);
