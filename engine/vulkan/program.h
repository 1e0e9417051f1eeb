// How a plan becomes dispatches, from the inside: program.c knows the ops, products.c what a
// dispatch is made of, and matrix.c makes its own of the same. For these three alone.
#pragma once

#include "engine/vulkan/model.h"

#define NONE 0xffffffffu

// A window of the packed weights.
struct window {
    const struct nb_vulkan_piece *piece;
    VkDescriptorBufferInfo what;
};

// Row groups of one matrix, and the column of the result where they begin.
struct part {
    const struct nb_packed *w;
    const float *bias;
    uint32_t group0, groups, column;
};

struct builder {
    struct nb_device_model *m;
    uint32_t op;                      // under way
    uint32_t count;                   // which of the step's counts limits the rows
    const struct nb_vulkan_buffer *x; // their residual stream
    uint32_t finisher; // the dispatch that may leave its result as this op's input, + 1
    uint32_t norm1;    // this op's norm then, in the buffer of vectors
    int rc;
};

// What a product reads: floats, the same quantized, or both.
struct source {
    const struct nb_vulkan_buffer *floats, *records;
    uint32_t width;
};

// Where a product's rows go, and what its mode needs beside.
struct target {
    const struct nb_vulkan_buffer *rows;
    const struct nb_vulkan_buffer *second, *floats; // NULL where none is written
    uint32_t width, mode;
    uint32_t more[6]; // as gemm.comp reads them
};

static inline uint32_t record_words4(uint32_t terms)
{
    return 1 + 2 * terms;
}

static inline uint32_t blocks_of(uint32_t cols)
{
    return (cols + 31) / 32;
}

// Which pipelines the device's tier has for a shader with these constants.
void nb_build_specialise(struct builder *b, struct nb_vulkan_dispatch *p, enum nb_shader shader,
                         uint32_t c[NB_VULKAN_CONSTANTS]);
// A set with these buffers, the step's, and a window of the weights where there is one.
void nb_build_bind(struct builder *b, struct nb_vulkan_dispatch *p, const struct window *weights,
                   const struct nb_vulkan_buffer *const buffers[NB_VULKAN_BINDINGS]);
struct nb_vulkan_dispatch *nb_build_add(struct builder *b, enum nb_vulkan_shape shape,
                                        uint32_t units);
void nb_build_push(struct nb_vulkan_dispatch *p, const void *data, size_t bytes);
// Where a vector lies in the model's buffer of them, from now on.
uint32_t nb_build_vector(struct nb_device_model *m, const float *v, uint32_t n);

// How many row groups from `group` on one window can hold.
uint32_t nb_build_fitting(const struct nb_device_model *m, const struct nb_packed *w,
                          uint32_t group);
// The window that holds all parts. False when no one does.
bool nb_build_window_of(const struct nb_device_model *m, const struct part *p, uint32_t n,
                        struct window *ret);
void nb_build_describe(struct nb_device_model *m, const struct part *parts, uint32_t n,
                       uint32_t mode, const struct window *win, struct nb_vulkan_gemm_push *ret);
// One dispatch of parts that share a type and a window.
void nb_build_product(struct builder *b, const struct part *parts, uint32_t n,
                      const struct source *from, const struct target *to, bool beside);
// All row groups of the matrices, side by side in the result: as few dispatches as types and
// windows allow.
void nb_build_products(struct builder *b, const struct part *parts, uint32_t n,
                       const struct source *from, const struct target *to);
