// One device made of several: each runs a range of a model's layers and keeps their KV memory, and
// the hidden states go from one to the next through the host's memory.
#pragma once

#include "engine/device.h"

#define NB_SPLIT_PARTS 8

struct nb_split_part {
    struct nb_device *device;
    uint32_t layers; // 0: those that the others leave; of one part at most
};

// The first part has the embedding, the last one the head. The parts are destroyed with what is
// made of them; on failure they stay the caller's. -EINVAL, -ENOMEM.
int nb_split_create(const struct nb_split_part *parts, uint32_t n, struct nb_device **ret);
