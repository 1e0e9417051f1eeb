// The CPU device from the inside: what device.c sets up and step.c runs. Nobody else includes it.
#pragma once

#include <stdatomic.h>

#include "engine/cpu/kernels.h"
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

// Consecutive rows of one sequence for one attention call, and where the result goes.
struct nb_cpu_chunk {
    uint32_t row, n, out_row;
};

struct nb_cpu_chunks {
    struct nb_cpu_chunk *chunk; // max_rows of them
    uint32_t n;
};

// A thread's own.
struct nb_cpu_scratch {
    void *act;          // FEW_ROWS of quantized input
    void *kernel;       // what gemm and attention ask for
    const uint8_t **kv; // a sequence's block pointers
};

struct nb_cpu_device {
    struct nb_device base;
    const struct nb_kernels *kernels;
    struct nb_team *team;
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
    float *x; // residual stream
    float *q, *k, *v;
    float *attn;   // attention's result
    float *hidden; // gate's result, then down's input
    float *up;
    float *rope; // cos, sin of each row's position
    float *logits;
    void *act;                      // the quantized input of an op of many rows
    struct nb_cpu_scratch *scratch; // [thread]

    // Heads of q, then of k and v together: the row groups that make each, and those that are done,
    // by token tile.
    uint32_t *head_need;
    atomic_uint *head_done;

    // The step under way: attention covers all rows, in the last layer those alone whose logits are
    // wanted.
    const struct nb_rows *rows;
    struct nb_cpu_chunks all, wanted;
    struct nb_op_time times[NB_OP_KINDS];
};

void nb_cpu_step_prepare(struct nb_device_model *m, const struct nb_rows *rows);
// What each thread of the team runs.
void nb_cpu_step_thread(void *model, uint32_t thread);
void nb_cpu_step_finish(struct nb_device_model *m, const struct nb_rows *rows);

// matrix.c
int nb_cpu_matrix_open(struct nb_device *d, struct nb_device_model *dm, const struct nb_packed *w,
                       struct nb_device_matrix **ret);
void nb_cpu_matrix_close(struct nb_device_matrix *m);
int nb_cpu_gemm(struct nb_device_matrix *m, const struct nb_product *p);
int nb_cpu_dequantize(struct nb_device_matrix *m, const struct nb_decode *p);
