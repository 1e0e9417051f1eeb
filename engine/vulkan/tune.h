// Which tile a GEMM takes for how many rows. A tile says how a GEMM's work is cut into
// invocations, never in which order a sum is taken: each gives the same bits.
#pragma once

#include <stdint.h>

enum { NB_VULKAN_BUCKETS = 13 }; // rows of a recorded step: 1, 2, 4 .. 4096

// What was chosen for a kind of GEMM: the hash of all that makes its pipelines.
struct nb_vulkan_choice {
    uint64_t gemm;
    uint8_t tile[16]; // of each bucket; zeros after the last
};
