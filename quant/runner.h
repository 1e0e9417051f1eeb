// A model on the CPU device at `exact`, with an F32 KV cache, run over windows of text: what a
// judge compares. Its matrices may be replaced between steps (nb_plan_replace on `plan`). One
// thread calls; all calls block.
#pragma once

#include "engine/device.h"
#include "engine/plan.h"
#include "tensor/fail.h"
#include "tensor/image.h"
#include "tensor/source.h"

struct nb_runner {
    struct nb_image *image, *own; // own: what it has packed; or NULL
    struct nb_plan *plan;
    struct nb_device *device;
    struct nb_device_model *model;
    uint32_t length, batch; // tokens of a window, windows of a batch
    // Of a batch
    uint32_t *position, *sequence, *wanted, *block_numbers;
    const uint32_t **blocks;
};

struct nb_running {
    const struct nb_source *source;
    struct nb_image *image; // the source, packed already, which must outlive it; NULL: it packs
    uint32_t length, batch;
    uint32_t rows;                        // of a step, at most; batch * length at most
    const struct nb_cpu_allowed *allowed; // as of struct nb_device_options
};

// Packs a source to memory of this process. What loading refuses, with its line.
int nb_runner_pack(const struct nb_source *source, struct nb_image **ret,
                   struct nb_error *ret_error);

// A plan of it at `exact`, with F32 KV. -EINVAL for windows that are longer than the model's
// context, or what loading refuses; with its line.
int nb_runner_plan(const struct nb_image *image, uint32_t length, struct nb_plan **ret,
                   struct nb_error *ret_error);

// What nb_runner_pack and nb_runner_plan refuse; -ENOMEM; with its line.
int nb_runner_open(const struct nb_running *how, struct nb_runner **ret,
                   struct nb_error *ret_error);
void nb_runner_close(struct nb_runner *r); // NULL is fine

// Rows [first, first + n) of a batch; those before them in their windows were run just before.
// tokens: the batch's, [batch][length]. ret_logits: [n][vocab], valid until the next step. -errno.
int nb_runner_step(struct nb_runner *r, const int32_t *tokens, uint32_t first, uint32_t n,
                   float **ret_logits);
