// The CPU device from the inside: what device.c sets up and step.c runs. Nobody else includes it.
// stages.c says which ops run together, step.c walks through the stages, products.c, attention.c
// and rows.c run them.
#pragma once

#include <stdatomic.h>

#include "engine/adapter.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/stages.h"
#include "engine/cpu/threads.h"
#include "engine/device.h"
#include "engine/plan.h"

// Up to this many rows every thread normalizes and quantizes all of them for itself: cheaper than a
// barrier.
#define NB_CPU_FEW_ROWS 4
// Tokens that one call of a product covers: their quantized inputs stay in the L2 cache.
#define NB_CPU_TOKEN_TILE 128
// Queries of one attention call.
#define NB_CPU_QUERY_TILE 32

// Consecutive rows of one sequence for one attention call, and where the result goes. `end`: past
// the last position of the sequence, where tokens see those after them too; else 0.
struct nb_cpu_chunk {
    uint32_t row, n, out_row, end;
};

struct nb_cpu_chunks {
    struct nb_cpu_chunk *chunk; // max_rows of them
    uint32_t n;
};

// Consecutive rows with one adapter.
struct nb_cpu_run {
    uint32_t row, n;
    const struct nb_adapter *adapter;
};

struct nb_cpu_runs {
    struct nb_cpu_run *run; // max_rows of them
    uint32_t n;
};

// Rows of a product's input that one call takes, and whose matrix they meet.
struct nb_cpu_tile {
    uint32_t row, n, expert;
};

// The rows of experts, by expert: choice c of token t is row place[t * n_chosen + c], and the rows
// of expert e are [first[e], first[e + 1]).
struct nb_cpu_groups {
    uint32_t *place;
    uint32_t *token;  // of each row
    uint16_t *expert; // likewise
    uint32_t *first;  // n_experts + 1
    struct nb_cpu_tile *tile;
    uint32_t n_tiles;
};

// A thread's own.
struct nb_cpu_scratch {
    void *act;          // FEW_ROWS of quantized input
    void *gathered;     // a tile of quantized input, for an expert
    void *kernel;       // what gemm and attention ask for
    const uint8_t **kv; // a sequence's block pointers
    struct nb_cpu_groups groups;
};

struct nb_cpu_device {
    struct nb_device base;
    const struct nb_kernels *kernels;
    struct nb_team *team;
    struct nb_cpu_allowed allowed;
    uint64_t share_id; // of the last piece of work
    void *scratch;     // of products for clients, as large as the largest so far
    size_t scratch_bytes;
};

struct nb_device_model {
    struct nb_cpu_device *device;
    const struct nb_plan *plan;
    uint32_t max_rows, kv_blocks;

    // KV memory: [block][layer]{K, V}.
    struct nb_kv_form kv_form;
    uint8_t *kv;
    int kv_fd;
    size_t kv_block_bytes, kv_layer_bytes, kv_v_offset;

    // Rows of a step, all in one mapping.
    void *memory;
    size_t memory_bytes;
    float *value[NB_VALUES];
    float *rope; // cos, sin of each row's position, for each of the model's ropes
    void *act;   // the quantized input of an op of many rows
    struct nb_cpu_scratch *scratch; // [thread]
    uint16_t *expert;               // [row][n_chosen]: which a token takes,
    float *expert_weight;           // and how much of each

    struct nb_cpu_stage *stages;
    uint32_t n_stages;
    uint32_t tail_values; // nb_plan_tail_values
    // Heads of q, then of k and v together: how many of their numbers are made, by token tile.
    atomic_uint *head_done;

    // The step under way: attention covers all rows, from the tail on those alone whose result is
    // wanted.
    const struct nb_rows *rows;
    struct nb_cpu_chunks all, wanted;
    struct nb_cpu_runs all_runs, wanted_runs; // likewise, with adapters
    float *thin;                              // [product of a stage][max_rows][16 thin_groups]
    uint32_t thin_groups;                     // row groups of the highest rank in the step
    struct nb_op_time times[NB_SECTIONS];

    bool watched;
    uint32_t first_odd; // the first op that gave a number that is not finite; n_ops: none
    nb_cpu_capture_fn *capture;
    void *capture_user;
};

// A thread's walk through the stages.
struct nb_cpu_walk {
    struct nb_device_model *m;
    const struct nb_kernels *k;
    const struct nb_plan *plan;
    struct nb_cpu_scratch *s;
    uint32_t thread;
    uint32_t n;        // tokens
    bool in_tail;      // they are those whose result is wanted, side by side
    uint64_t share_id; // counted alike by all threads
};

static inline uint32_t nb_cpu_min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline float *nb_cpu_row(const struct nb_device_model *m, const struct nb_slice *s,
                                uint32_t row)
{
    return m->value[s->value] + (size_t)row * s->stride + s->at;
}

static inline struct nb_share nb_cpu_share(struct nb_cpu_walk *w, uint32_t units, uint32_t most)
{
    return (struct nb_share){++w->share_id, units, most};
}

static inline bool nb_cpu_take(struct nb_cpu_walk *w, const struct nb_share *share, uint32_t *first,
                               uint32_t *end)
{
    uint32_t n = nb_team_take(w->m->device->team, w->thread, share, first);
    *end = *first + n;
    return n > 0;
}

// The K part of a layer in a block.
static inline uint8_t *nb_cpu_kv(const struct nb_device_model *m, uint32_t layer, uint32_t block)
{
    return m->kv + block * m->kv_block_bytes + (layer - m->plan->first_layer) * m->kv_layer_bytes;
}

// step.c. The angles of a row's position.
void nb_cpu_turn_row(const struct nb_device_model *m, uint32_t row);

// rows.c. Runs an op on one row of the step, or of those that a token's experts have.
void nb_cpu_row_op(const struct nb_cpu_walk *w, const struct nb_op *op, uint32_t row);
// A NORM of one head (0: of a whole row), from x to out; they may be the same.
void nb_cpu_norm(const struct nb_cpu_walk *w, const struct nb_op *op, uint32_t head, const float *x,
                 float *out);
// Runs it on one of its heads alone.
void nb_cpu_head_op(const struct nb_cpu_walk *w, const struct nb_op *op, uint32_t head,
                    uint32_t row);
void nb_cpu_run_rows(struct nb_cpu_walk *w, const struct nb_cpu_stage *s);

// adapters.c. Finds the rows of a step that have some.
void nb_cpu_adapters_prepare(struct nb_device_model *m, const struct nb_rows *rows);
// Before the n products of a stage, whose input is there: what their factors A make of it. Ends in
// a barrier where there is anything to do.
void nb_cpu_adapters_begin(struct nb_cpu_walk *w, const struct nb_op *products, uint32_t n,
                           const struct nb_act *a);
// Adds B of that to columns of the nth product's result for the rows of a tile.
void nb_cpu_adapters_add(const struct nb_cpu_walk *w, const struct nb_op *product, uint32_t nth,
                         const struct nb_cpu_tile *tile, uint32_t group0, uint32_t group1);

// products.c
void nb_cpu_run_products(struct nb_cpu_walk *w, const struct nb_cpu_stage *s);

// experts.c. Sorts the rows of `n` tokens by expert.
void nb_cpu_group(const struct nb_device_model *m, uint32_t n, struct nb_cpu_groups *ret);

// attention.c
void nb_cpu_run_attention(struct nb_cpu_walk *w, const struct nb_cpu_stage *s);

void nb_cpu_step_prepare(struct nb_device_model *m, const struct nb_rows *rows);
// What each thread of the team runs.
void nb_cpu_step_thread(void *model, uint32_t thread);
void nb_cpu_step_finish(struct nb_device_model *m, const struct nb_rows *rows);

// matrix.c
int nb_cpu_matrix_open(struct nb_device *d, struct nb_device_model *dm, const struct nb_packed *w,
                       struct nb_device_matrix **ret);
void nb_cpu_matrix_close(struct nb_device_matrix *m);
int nb_cpu_gemm(struct nb_device_matrix *m, const struct nb_product *p);
int nb_cpu_dequantize(struct nb_device_matrix *m, const struct nb_dequantize *p);
