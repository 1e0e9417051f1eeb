// What a dispatch binds of packed weights: row groups, in windows as large as a shader may see.
#pragma once

#include "engine/vulkan/weights.h"
#include "shaders/abi.h"

// Row groups of one matrix.
struct nb_vulkan_part {
    const struct nb_packed *w;
    uint32_t group0, groups;
    uint32_t column; // of the result, where row 0 of the matrix goes; a multiple of 4
    uint32_t bias1;  // of row 0, in the buffer of vectors, or NONE
};

struct nb_vulkan_window {
    const struct nb_vulkan_piece *piece;
    VkDescriptorBufferInfo what;
};

uint32_t nb_vulkan_groups(const struct nb_packed *w); // row groups of all its rows
// How many row groups from `group` on one window can hold.
uint32_t nb_vulkan_fitting(const struct nb_vulkan_device *d, const struct nb_vulkan_weights *all,
                           const struct nb_packed *w, uint32_t group);
// The window that holds all parts. False when no one does.
bool nb_vulkan_window_of(const struct nb_vulkan_device *d, const struct nb_vulkan_weights *all,
                         const struct nb_vulkan_part *parts, uint32_t n,
                         struct nb_vulkan_window *ret);
// Words from the window's first to the part's first row group.
uint32_t nb_vulkan_weight1(const struct nb_vulkan_part *part,
                           const struct nb_vulkan_window *window);
uint32_t nb_vulkan_rows_of(const struct nb_vulkan_part *part); // that the matrix has there
push_planes nb_vulkan_planes(const struct nb_packed *w);
// Tells a GEMM of parts that share a layout where they are; with GATED the second stands beside
// the first for its groups. Adds to ret->groups.
void nb_vulkan_tell(const struct nb_vulkan_part *parts, uint32_t n, uint32_t mode,
                    const struct nb_vulkan_window *window, struct push_gemm *ret);
// The constants that say how a matrix is packed.
void nb_vulkan_constants(const struct nb_packed *w, uint32_t ret[CONST_TIER]);
