// Matrices on the device, a model's or a client's: pieces of the host's memory that hold them, each
// imported where it lies or copied to a buffer of the device's own.
#pragma once

#include "engine/plan.h"
#include "engine/vulkan/device.h"
#include "tensor/fail.h"

// A part of the host's memory, and its buffer.
struct nb_vulkan_piece {
    const uint8_t *from;
    size_t bytes;
    struct nb_vulkan_buffer buffer;
};

struct nb_vulkan_weights {
    struct nb_vulkan_piece *pieces; // by address
    uint32_t n_pieces;
};

// Cuts the memory of these matrices into pieces that the device can bind. Makes no buffers, so that
// what they need is known before it is taken. -ENOMEM, -E2BIG: 16 rows of one are more than the
// device binds.
int nb_vulkan_weights_cut(const struct nb_vulkan_device *d, const struct nb_matrix *const *list,
                          uint32_t n, struct nb_vulkan_weights *ret, struct nb_error *ret_error);
size_t nb_vulkan_weights_bytes(const struct nb_vulkan_weights *w);
// Decides once for a device, by its first matrices, whether weights are imported or copied.
void nb_vulkan_weights_choose(struct nb_vulkan_device *d, const struct nb_vulkan_weights *w);
// `options`: for its progress.
int nb_vulkan_weights_load(struct nb_vulkan_device *d, struct nb_vulkan_weights *w,
                           const struct nb_device_model_options *options);
void nb_vulkan_weights_finish(struct nb_vulkan_device *d, struct nb_vulkan_weights *w);
// The piece that holds the row group at this address.
const struct nb_vulkan_piece *nb_vulkan_piece_of(const struct nb_vulkan_weights *w,
                                                 const uint8_t *at);
