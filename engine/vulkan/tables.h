// The step buffer: what shaders read of a step's rows (shaders/abi.h has its first words), and how
// many workgroups each dispatch has.
#pragma once

#include <stdint.h>

#include "engine/plan.h"

// Word offsets into it, each of a table with an entry for each row but for the last four.
struct nb_vulkan_tables {
    uint32_t token, position, sequence;
    uint32_t end;        // how many positions of its sequence a row may see
    uint32_t wanted;     // the rows whose result is wanted
    uint32_t candidates; // how many of each of these
    uint32_t adapter;    // the slot of its adapter, or NONE: steps that have one
    uint32_t rope;       // cosines and sines, for each of the model's ropes
    uint32_t ropes;      // words of a row of them
    uint32_t blocks;     // KV blocks of each sequence, block_stride apart
    uint32_t block_stride;
    uint32_t groups; // VkDispatchIndirectCommand of each dispatch
    uint32_t words;  // in all
};

void nb_vulkan_tables_lay(const struct nb_plan *plan, uint32_t max_rows,
                          struct nb_vulkan_tables *ret);
