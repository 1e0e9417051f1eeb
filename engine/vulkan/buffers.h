// A model's buffers but for its weights: the values that a step computes, a row for each token, and
// what is kept beside them.
#pragma once

#include "engine/plan.h"
#include "engine/vulkan/device.h"

enum {
    NB_VULKAN_WANTED_ROWS = 64, // whose results one submission gives
    NB_VULKAN_VECTOR_PAD = 32,  // floats; so that a vector begins at a texel and ends in zeros
};

// How large they are.
struct nb_vulkan_extent {
    uint32_t max_rows, padded_rows; // of a step
    uint32_t wanted_rows;           // of those whose result is wanted, together
    uint32_t kv_blocks;
    uint32_t step_words;
    bool brings; // `best` holds all that the host wants of logits
};

struct nb_vulkan_buffers {
    struct nb_vulkan_buffer step;
    struct nb_vulkan_buffer vectors; // norms and biases
    struct nb_vulkan_buffer value[NB_VALUES];
    // Of the rows whose result is wanted, side by side: values that a plan's tail reads.
    struct nb_vulkan_buffer tail[NB_VALUES];
    // Quantized inputs of matrices: of X and N, and of all other values.
    struct nb_vulkan_buffer records[2];
    // Which experts a token takes and how much of each, two words; behind all of these the rows by
    // expert.
    struct nb_vulkan_buffer choices;
    struct nb_vulkan_buffer sync;  // who has finished: gemm.comp, gemv.glsl; zeros between
    struct nb_vulkan_buffer carry; // hidden states that come from, or go to, another device
    struct nb_vulkan_buffer shown; // what the host reads of vectors
    struct nb_vulkan_buffer best;  // of each row of logits the best id of each stripe; or `brings`
    struct nb_vulkan_buffer *kv;   // of each layer
    uint32_t n_kv;
};

// Floats of a value's row on the device: Q, K and V each begin at whole row groups.
uint32_t nb_vulkan_stride(const struct nb_plan *plan, enum nb_value v);
// Where K and V begin in a row of QKV whose parts have matrices of their own.
uint32_t nb_vulkan_k_column(const struct nb_hparams *hp);
uint32_t nb_vulkan_v_column(const struct nb_hparams *hp);

// Which of the two buffers of records has a value, and texels of a row of so many columns there.
static inline bool nb_vulkan_records_of(enum nb_value v)
{
    return v != NB_VALUE_X && v != NB_VALUE_N;
}

static inline uint32_t nb_vulkan_record_words4(uint32_t cols, uint32_t terms)
{
    return (cols + 31) / 32 * (1 + 2 * terms);
}

// What they take beside KV memory.
uint64_t nb_vulkan_buffers_bytes(const struct nb_plan *plan, const struct nb_vulkan_extent *e);
// Makes them, all zeros: columns past a row's last are read as zeros, and stay so.
int nb_vulkan_buffers_init(struct nb_vulkan_device *d, const struct nb_plan *plan,
                           const struct nb_vulkan_extent *e, struct nb_vulkan_buffers *ret);
void nb_vulkan_buffers_finish(struct nb_vulkan_device *d, struct nb_vulkan_buffers *b);
// Those of the same model with its ops apart (stages.h): `shared`, but for vectors and values that
// only this form has. Bytes: of these alone.
uint64_t nb_vulkan_buffers_apart_bytes(const struct nb_plan *plan,
                                       const struct nb_vulkan_extent *e);
int nb_vulkan_buffers_apart_init(struct nb_vulkan_device *d, const struct nb_plan *plan,
                                 const struct nb_vulkan_extent *e,
                                 const struct nb_vulkan_buffers *shared,
                                 struct nb_vulkan_buffers *ret);
void nb_vulkan_buffers_apart_finish(struct nb_vulkan_device *d,
                                    const struct nb_vulkan_buffers *shared,
                                    struct nb_vulkan_buffers *b);

static inline uint32_t nb_vulkan_pad(uint32_t n, uint32_t to)
{
    return (n + to - 1) / to * to;
}

// Elements of a key as the cache has it; of a value: whole blocks of 32, of which attention takes
// one at a time.
static inline uint32_t nb_vulkan_k_dim(const struct nb_hparams *hp)
{
    return nb_vulkan_pad(hp->k_dim, 2);
}

static inline uint32_t nb_vulkan_v_dim(const struct nb_hparams *hp)
{
    return nb_vulkan_pad(hp->v_dim, 32);
}

// Of one KV block, in one layer.
size_t nb_vulkan_kv_bytes(const struct nb_plan *plan);
