// What makes steps faster and none of them needs: pipelines beyond the first, and the best tiles.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct nb_device_model;
struct nb_vulkan_dispatch;

// The pipelines that the first steps need; then, piece by piece, the rest (nb_device_ops.prepare).
int nb_vulkan_prepare_first(struct nb_device_model *m);
int nb_vulkan_prepare(struct nb_device_model *m, uint32_t free_block);

// tune.c: the best tile of each dispatch as far as it is known, and a list of what is to be
// measured; then one measurement after the other, from when all pipelines that it wants are ready:
// 1 as long as there is another.
int nb_vulkan_tune_begin(struct nb_device_model *m);
int nb_vulkan_tune_piece(struct nb_device_model *m, uint32_t free_block);
bool nb_vulkan_tune_wants(const struct nb_device_model *m, const struct nb_vulkan_dispatch *p);
void nb_vulkan_tune_end(struct nb_device_model *m);
