// A plan as dispatches, in the order of its ops: which pipeline each takes, what it is told, what
// it reads and writes.
#pragma once

#include "engine/vulkan/pipelines.h"
#include "engine/vulkan/sets.h"
#include "engine/vulkan/tune.h"
#include "tensor/fail.h"

enum {
    NB_VULKAN_PIPELINES = 40, // of a model, wherever one for each kind of GEMM suffices
    NB_VULKAN_DISPATCHES = 4096,
};

// What a dispatch's count of invocations follows from.
enum nb_vulkan_shape {
    NB_VULKAN_ROWS,  // `units` for each row
    NB_VULKAN_TOKENS // `units` for each tile of tokens
};

struct nb_vulkan_dispatch {
    uint32_t op;     // of the plan; of several that it computes the first
    bool beside;     // needs no barrier after the one before
    uint32_t unless; // not needed where the dispatch of this index + 1 finishes; 0: always needed
    uint32_t
        orders; // needed where one of those before this index takes several experts' rows; or 0
    enum nb_vulkan_shape shape;
    uint32_t each;             // rows of a token
    uint32_t units, few_units; // few_units: with few rows, and then the first push constant
    uint32_t teams;            // of a row, and the first push constant where teams are workgroups
    uint32_t cols;             // of a GEMM's matrix; else 1
    size_t group_bytes;        // of a row group of it; else 0
    enum nb_shader shader;
    uint16_t pipeline[NB_TIER_TILES]; // of the model's
    uint8_t tile[NB_VULKAN_BUCKETS];  // that steps of so many rows take now,
    uint8_t best[NB_VULKAN_BUCKETS];  // and once its pipeline is ready
    uint8_t stand_in[NB_TIER_TILES];  // for each tile the one it is computed as: limit.c
    VkDescriptorSet set;
    uint32_t push[PUSH_BYTES / 4];
};

struct nb_vulkan_program {
    struct nb_vulkan_dispatch *dispatches;
    uint32_t n;
    // From `tail` on they are for the rows whose result is wanted; those up to `shown` make their
    // vectors, those up to `top` their logits, the rest the best of these.
    uint32_t tail, shown, top;
};

static inline const struct nb_tier_variant *nb_vulkan_variant(const struct nb_vulkan_device *d,
                                                              const struct nb_vulkan_dispatch *p,
                                                              uint32_t tile)
{
    return &d->tier->variant[p->shader][p->stand_in[tile]];
}

// The tile that a bucket's steps take now, or once the best one is ready; and whether they then do
// without the dispatch, because the one before it finishes.
static inline uint32_t nb_vulkan_tile(const struct nb_vulkan_dispatch *p, uint32_t bucket,
                                      bool best)
{
    return (best ? p->best : p->tile)[bucket];
}

bool nb_vulkan_skips(const struct nb_vulkan_device *d, const struct nb_vulkan_program *program,
                     const struct nb_vulkan_dispatch *p, uint32_t bucket, bool best);

// A dispatch for so many tokens, its workgroups counted here.
void nb_vulkan_dispatch(const struct nb_vulkan_pipelines *all, VkCommandBuffer c, uint32_t tokens,
                        const struct nb_vulkan_dispatch *p, uint32_t tile);
// The same, its workgroups read from a buffer when it runs: for as many tokens as nb_vulkan_launch
// was asked for then, and for which `most` is the same.
void nb_vulkan_dispatch_indirect(const struct nb_vulkan_pipelines *all, VkCommandBuffer c,
                                 uint32_t most, const struct nb_vulkan_dispatch *p, uint32_t tile,
                                 VkBuffer groups, VkDeviceSize at);
VkDispatchIndirectCommand nb_vulkan_launch(const struct nb_vulkan_device *d, uint32_t tokens,
                                           const struct nb_vulkan_dispatch *p, uint32_t tile);
// A barrier between what was computed and what reads it.
void nb_vulkan_after_dispatch(const struct nb_vulkan_device *d, VkCommandBuffer c);

struct nb_device_model;
// Makes the model's program, its sets, and the pipelines that its first steps need.
int nb_vulkan_program_make(struct nb_device_model *m, struct nb_error *ret_error);
// limit.c: NB_VULKAN_PIPELINES of those that dispatches take, by fewer tiles for what computes
// least.
int nb_vulkan_pipelines_limit(struct nb_device_model *m);
