// A model on a Vulkan device: its buffers, and the dispatches that its plan became. program.c makes
// the dispatches, record.c command buffers of them, model.c owns the memory and runs steps.
#pragma once

#include "engine/plan.h"
#include "engine/vulkan/device.h"
#include "engine/vulkan/sets.h"

enum {
    NB_VULKAN_VECTOR_PAD = 32, // floats; so that a vector begins at a texel and ends in zeros
    NB_VULKAN_KV_TILE = 32,    // positions of a KV block
    NB_VULKAN_HEAD_ROWS = 64,  // logits of one submission
    NB_VULKAN_STRIPES = 512,   // of a row of logits: shaders/top.comp
    NB_VULKAN_PIPELINES = 40,  // of a model, wherever one for each kind of product suffices
    NB_VULKAN_NAMED = 256,     // pipelines that its dispatches may name
    NB_VULKAN_DISPATCHES = 4096,
};

// What a dispatch's count of invocations follows from.
enum nb_vulkan_shape {
    NB_VULKAN_ROWS,  // `units` for each row
    NB_VULKAN_TOKENS // `units` for each tile of tokens
};

struct nb_vulkan_dispatch {
    uint32_t op;     // of the plan
    bool beside;     // needs no barrier after the one before
    uint32_t unless; // not needed where the dispatch of this index + 1 finishes; 0: always needed
    enum nb_vulkan_shape shape;
    uint32_t units, few_units; // few_units: with few rows, and then the first push constant
    uint32_t teams;            // of a row, and the first push constant where teams are workgroups
    enum nb_shader shader;
    uint16_t pipeline[NB_TIER_TILES]; // of the model's
    uint8_t tile[NB_VULKAN_BUCKETS];  // that steps of so many rows take now,
    uint8_t best[NB_VULKAN_BUCKETS];  // and once its pipeline is ready
    uint8_t stand_in[NB_TIER_TILES];  // for each tile the one it is computed as: limit.c
    VkDescriptorSet set;
    uint32_t push[NB_VULKAN_PUSH_BYTES / 4];
};

// Word offsets into the step buffer: what the shaders read of a step's rows; and the workgroups of
// each dispatch.
struct nb_vulkan_tables {
    uint32_t token, position, sequence, logits_row, candidates, rope, blocks, block_stride, groups,
        words;
};

struct nb_vulkan_pipeline {
    const struct nb_tier_variant *variant;
    uint32_t constants[NB_VULKAN_CONSTANTS];
    VkPipeline pipeline; // or none
    bool ready;          // made, and run once where the device is to be warm
};

// A part of the image that holds some of the weights, and its buffer.
struct nb_vulkan_piece {
    const uint8_t *from;
    size_t bytes;
    struct nb_vulkan_buffer buffer;
};

// A submission: dispatches [first, end), and the timestamps that it writes.
struct nb_vulkan_segment {
    VkCommandBuffer commands; // that take the time before and after each op,
    VkCommandBuffer untimed;  // or not; VK_NULL_HANDLE until the recording is measured
    uint32_t first, end, query, n_queries;
};

// What a recording runs: the body of a step, to the keys and values of the last layer; what comes
// after them, for the rows whose logits are wanted; and the same with the best of their logits.
enum nb_vulkan_part { NB_VULKAN_BODY, NB_VULKAN_LOGITS, NB_VULKAN_BEST, NB_VULKAN_PARTS };

// A part of a step for as many rows as a bucket has.
struct nb_vulkan_recording {
    struct nb_vulkan_segment *segments;
    uint32_t n;
    uint32_t steps;                       // that it has run
    bool measured;                        // it is cut by the times of its ops
    struct nb_op_time times[NB_OP_KINDS]; // what it took when it was timed last
};

struct nb_device_model {
    struct nb_vulkan_device *device;
    const struct nb_plan *plan;
    uint32_t max_rows, padded_rows, kv_blocks, head_rows;

    struct nb_vulkan_piece *pieces; // the weights, by address
    uint32_t n_pieces;
    struct nb_vulkan_buffer vectors;
    float *laid;        // what goes there, until the program has it all
    uint32_t n_vectors; // floats laid
    struct nb_vulkan_buffer step, x, normed, qkv, attn, hidden, logits;
    struct nb_vulkan_buffer act, middle; // quantized: of x, and of attention or the hidden rows
    struct nb_vulkan_buffer sync;        // who has finished: gemm.comp, gemv.glsl; zeros between
    struct nb_vulkan_buffer tail;        // x of the rows whose logits are wanted, side by side
    struct nb_vulkan_buffer carry;       // hidden states that come from, or go to, another device
    struct nb_vulkan_buffer best; // of each row of logits the best id of each stripe; or `brings`
    struct nb_vulkan_buffer *kv;  // of each layer
    struct nb_vulkan_tables tables;
    float *host_logits;
    size_t host_logits_bytes;

    struct nb_vulkan_sets sets;
    struct nb_vulkan_pipeline *pipelines;
    uint32_t n_pipelines;
    struct nb_vulkan_tuning *tuning;       // what is still to be measured, or NULL
    struct nb_vulkan_dispatch *dispatches; // in the order of the plan, and then
    uint32_t n_dispatches;
    uint32_t tail_from, top; // those of NB_VULKAN_LOGITS begin here, those of candidates here
    bool brings; // those of candidates leave in `best` what a row wants, candidates or its logits
    struct nb_vulkan_recording recording[NB_VULKAN_PARTS][NB_VULKAN_BUCKETS];
    VkQueryPool queries; // of each segment one before each op, and one at the end
    uint64_t *ticks;     // room for all of them
    uint64_t *op_ns;     // what each op took in the last step that was timed
    struct nb_op_time times[NB_OP_KINDS];
};

static inline uint32_t nb_vulkan_pad(uint32_t n, uint32_t to)
{
    return (n + to - 1) / to * to;
}

// What the shaders are specialised by and given.
// shaders/common.glsl; OUT2 and FLOATS are what a shader writes beside its result.
enum {
    BIND_WEIGHTS,
    BIND_VECTORS,
    BIND_STEP,
    BIND_IN,
    BIND_ACT,
    BIND_OUT,
    BIND_OUT2,
    BIND_KV,
    BIND_FLOATS,
    BIND_SYNC
};
enum {
    CONST_PLANES = 1,
    CONST_CODEBOOK,
    CONST_SUB,
    CONST_OFFSET,
    CONST_SCALE_BLOCK,
    CONST_GROUP,
    CONST_HAS_MIN,
    CONST_SUB_BYTES,
    CONST_TERMS,
    CONST_TOKENS,
    CONST_MODE,
    CONST_HEADS,
    CONST_KV_HEADS,
    CONST_K_DIM,
    CONST_V_DIM,
    CONST_ROPE_DIMS,
    CONST_SHARE
};
enum { // gemm.comp
    MODE_STORE,
    MODE_ADD,
    MODE_SWIGLU,
    MODE_SWIGLU_UP,
    MODE_ROPE,
    MODE_ROPE_NEOX,
    MODE_FINISH = 8, // bits
    MODE_FINISH_NORM = 16
};
enum { // quantize, attention, rope
    MODE_NORM = 1,
    MODE_FLOAT = 2,
    MODE_QUANTIZED = 4,
    MODE_CAP = 8,
    MODE_CODES = 16
};
struct nb_vulkan_gemm_push {
    uint32_t count, groups, cols, stride1, high4, scale2, min2, sub1, in4, out4;
    uint32_t weight1[3], first[3], column4[3], rows[3], bias[3];
    float eps;
    uint32_t more[6];
};
void nb_vulkan_constants(const struct nb_packed *w, uint32_t c[NB_VULKAN_CONSTANTS]);

// pipelines.c. The index of a pipeline, named now and made later, or a negative errno.
int nb_vulkan_pipeline_name(struct nb_device_model *m, const struct nb_tier_variant *variant,
                            const uint32_t constants[NB_VULKAN_CONSTANTS]);
// Makes those of the list that are not there. `made`, where it is not NULL, is called for each in
// the list's order by the thread that calls this, as soon as it is there.
int nb_vulkan_pipelines_make(struct nb_device_model *m, const uint16_t *list, uint32_t n,
                             int (*made)(void *user, uint32_t pipeline), void *user);
void nb_vulkan_pipeline_drop(struct nb_device_model *m, uint32_t pipeline);
void nb_vulkan_pipelines_destroy(struct nb_device_model *m);

// limit.c: NB_VULKAN_PIPELINES of those that dispatches take, by fewer tiles for what computes
// least.
int nb_vulkan_pipelines_limit(struct nb_device_model *m);

// weights.c. Cutting makes no buffers, so that what the model needs is known before it is taken.
int nb_vulkan_weights_cut(struct nb_device_model *m, char *error, size_t error_size);
size_t nb_vulkan_weights_bytes(const struct nb_device_model *m);
// Decides once for a device, by its first model, whether weights are imported or copied.
void nb_vulkan_weights_choose(struct nb_device_model *m);
int nb_vulkan_weights_load(struct nb_device_model *m,
                           const struct nb_device_model_options *options);
void nb_vulkan_weights_finish(struct nb_device_model *m);
// The piece that holds the row group at this address.
const struct nb_vulkan_piece *nb_vulkan_piece_of(const struct nb_device_model *m,
                                                 const uint8_t *at);

int nb_vulkan_program(struct nb_device_model *m, char *ret_error, size_t error_size);
uint32_t nb_vulkan_bucket(uint32_t rows);
static inline const struct nb_tier_variant *nb_vulkan_variant(const struct nb_device_model *m,
                                                              const struct nb_vulkan_dispatch *p,
                                                              uint32_t tile)
{
    return &m->device->tier->variant[p->shader][p->stand_in[tile]];
}

// prepare.c: the pipelines that the first steps need, then, piece by piece, what makes steps fast.
int nb_vulkan_prepare_first(struct nb_device_model *m);
int nb_vulkan_prepare(struct nb_device_model *m, uint32_t free_block); // nb_device_ops.prepare
// tune.c: the best tile of each dispatch as far as it is known, and a list of what is to be
// measured; then one measurement after the other, from when all pipelines that it wants are ready:
// 1 as long as there is another.
int nb_vulkan_tune_begin(struct nb_device_model *m);
int nb_vulkan_tune_piece(struct nb_device_model *m, uint32_t free_block);
bool nb_vulkan_tune_wants(const struct nb_device_model *m, const struct nb_vulkan_dispatch *p);
void nb_vulkan_tune_end(struct nb_device_model *m);
// The tile that a bucket's steps take now, or once the best one is ready; and whether they then do
// without the dispatch, because the one before it finishes.
static inline uint32_t nb_vulkan_tile(const struct nb_vulkan_dispatch *p, uint32_t bucket,
                                      bool best)
{
    return (best ? p->best : p->tile)[bucket];
}
bool nb_vulkan_skips(const struct nb_device_model *m, const struct nb_vulkan_dispatch *p,
                     uint32_t bucket, bool best);
void nb_vulkan_dispatch(const struct nb_device_model *m, VkCommandBuffer c, uint32_t rows,
                        const struct nb_vulkan_dispatch *p, uint32_t tile);
void nb_vulkan_after_dispatch(const struct nb_device_model *m, VkCommandBuffer c); // a barrier
// A bucket's, recorded at its first use.
int nb_vulkan_recording_get(struct nb_device_model *m, uint32_t bucket, enum nb_vulkan_part part,
                            struct nb_vulkan_recording **ret);
// Says in the step buffer how many workgroups each of its dispatches has for so many rows.
void nb_vulkan_recording_size(struct nb_device_model *m, const struct nb_vulkan_recording *r,
                              uint32_t rows);
// Whether its next run is one that is timed.
bool nb_vulkan_recording_is_timed(const struct nb_vulkan_recording *r);
// After a run: cuts it again where op_ns says that its submissions are too long, or too short.
int nb_vulkan_recording_learn(struct nb_device_model *m, uint32_t bucket, enum nb_vulkan_part part,
                              struct nb_vulkan_recording *r);
// What was recorded for a bucket; it is recorded again at its next use.
void nb_vulkan_recordings_forget(struct nb_device_model *m, uint32_t bucket);

// top.c: the best n candidates of a row, NB_CANDIDATES_MAX and the vocabulary at most, from the
// best id of each stripe.
void nb_vulkan_top(const float *logits, uint32_t vocab, const uint32_t *stripes,
                   struct nb_candidate *ret, uint32_t n);

// -ENOTSUP for a model whose loops the driver would cut short.
int nb_vulkan_check_loops(const struct nb_device_model *m, char *ret_error, size_t error_size);

size_t nb_vulkan_kv_block_bytes(const struct nb_device *d, const struct nb_plan *plan);
// What steps of `max_rows` take beside weights and KV memory.
uint64_t nb_vulkan_step_bytes(const struct nb_vulkan_device *d, const struct nb_plan *plan,
                              uint32_t max_rows);

// budget.c. -ENOMEM with the figures when the model does not fit.
int nb_vulkan_budget_check(const struct nb_device_model *m, char *error, size_t size);
uint64_t nb_vulkan_kv_room(const struct nb_device *d, const struct nb_plan *plan,
                           uint32_t max_rows);
int nb_vulkan_model_open(struct nb_device *d, const struct nb_plan *plan,
                         const struct nb_device_model_options *options,
                         struct nb_device_model **ret, char *ret_error, size_t error_size);
void nb_vulkan_model_close(struct nb_device_model *m);
int nb_vulkan_step(struct nb_device_model *m, const struct nb_rows *rows, float **ret_logits);
void nb_vulkan_kv_clear(struct nb_device_model *m, uint32_t block);
void nb_vulkan_times(const struct nb_device_model *m, struct nb_op_time *ret);
