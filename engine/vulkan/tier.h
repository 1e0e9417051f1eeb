// Shader tiers: which module, workgroup and tile of tokens an operator takes on what kind of
// device. docs/architecture.md lists them.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/vulkan/shaders.h"

enum { NB_TIER_TILES = 3 };

struct nb_tier_variant {
    enum nb_module module;
    uint32_t local;  // invocations of a workgroup; 0: as suits the device
    uint32_t units;  // that a workgroup covers (row quads of a product); 0: one an invocation
    uint32_t tokens; // of a tile
    bool team;       // each of a row's teams (struct nb_vulkan_dispatch) is a workgroup
};

struct nb_tier {
    const char *name;
    // By tile: the first for one row of a step, the last for many.
    struct nb_tier_variant variant[NB_SHADERS][NB_TIER_TILES];
};

// The best tier of all.
const struct nb_tier *nb_tier_best(void);
