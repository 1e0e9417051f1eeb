// A model on a Vulkan device, put together. model.c owns it; program.c makes its dispatches,
// record.c command buffers of them, step.c runs them, prepare.c and tune.c make them faster.
#pragma once

#include "engine/candidate.h"
#include "engine/vulkan/buffers.h"
#include "engine/vulkan/prepare.h"
#include "engine/vulkan/record.h"
#include "engine/vulkan/tables.h"
#include "engine/vulkan/weights.h"
#include "engine/vulkan/window.h"
#include "tensor/fail.h"

struct nb_device_model {
    struct nb_vulkan_device *device;
    const struct nb_plan *plan;
    struct nb_vulkan_extent extent;
    struct nb_vulkan_tables tables;
    struct nb_vulkan_weights weights;
    struct nb_vulkan_buffers buffers;
    struct nb_vulkan_sets sets;
    struct nb_vulkan_pipelines pipelines;
    struct nb_vulkan_program program;
    struct nb_vulkan_recordings recordings;
    struct nb_vulkan_tuning *tuning;     // what is still to be measured, or NULL
    struct nb_vulkan_adapters *adapters; // those that sequences may have, or NULL
    bool apart; // it is the form of another model for steps with adapters (adapters.h)
    float *host_logits;
    size_t host_logits_bytes;
};

int nb_vulkan_model_open(struct nb_device *d, const struct nb_plan *plan,
                         const struct nb_device_model_options *options,
                         struct nb_device_model **ret, struct nb_error *ret_error);
void nb_vulkan_model_close(struct nb_device_model *m);
size_t nb_vulkan_kv_block_bytes(const struct nb_device *d, const struct nb_plan *plan);
// What steps of `max_rows` take beside weights and KV memory.
uint64_t nb_vulkan_step_bytes(const struct nb_vulkan_device *d, const struct nb_plan *plan,
                              uint32_t max_rows);

// step.c
int nb_vulkan_step(struct nb_device_model *m, const struct nb_rows *rows, float **ret_logits);
int nb_vulkan_kv_clear(struct nb_device_model *m, uint32_t block);
void nb_vulkan_times(const struct nb_device_model *m, struct nb_op_time *ret);

// top.c: the best n candidates of a row, NB_CANDIDATES_MAX and the vocabulary at most, from the
// best id of each stripe.
void nb_vulkan_top(const float *logits, uint32_t vocab, const uint32_t *stripes,
                   struct nb_candidate *ret, uint32_t n);

// loops.c. -ENOTSUP for a model whose loops the driver would cut short.
int nb_vulkan_check_loops(const struct nb_device_model *m, struct nb_error *ret_error);

// budget.c. -ENOMEM with the figures when the model does not fit.
int nb_vulkan_budget_check(const struct nb_device_model *m, struct nb_error *error);
uint64_t nb_vulkan_kv_room(const struct nb_device *d, const struct nb_plan *plan,
                           uint32_t max_rows);
