// Shader tiers: what each asks of a device, and which module, workgroup and tile of tokens an
// op takes there. docs/architecture.md lists them.
#pragma once

#include <stdint.h>

#include "engine/vulkan/api.h"
#include "engine/vulkan/coopmat.h"
#include "engine/vulkan/shaders.h"
#include "shaders/abi.h"
#include "tensor/fail.h"

enum { NB_TIER_TILES = 3, NB_TIER_EXTENSIONS = 3, NB_TIER_CONSTANTS = CONSTANTS - CONST_TIER };

struct nb_tier_variant {
    enum nb_module module;
    uint32_t local;  // invocations of a workgroup; 0: as suits the device
    uint32_t units;  // that a workgroup covers (row quads of a GEMM); 0: one an invocation
    uint32_t tokens; // of a tile
    bool full;       // its subgroups must be full
    uint32_t each;   // units of an invocation, where `units` is 0; 0: one
    bool finishes;   // a GEMM leaves its result as the next op's input
    // Instead of `module`, where a GEMM rotates queries and keys, and where it does finish.
    enum nb_module rotating, finishing;
    bool team; // each of a row's teams (struct nb_vulkan_dispatch) is a workgroup
};

struct nb_tier {
    const char *name;
    uint32_t needs, wants; // bits; without what it wants it is not chosen but by name
    // By tile: the first for one row of a step, the last for many.
    struct nb_tier_variant variant[NB_SHADERS][NB_TIER_TILES];
    uint32_t first; // the tile that all GEMMs take until others are ready
    // Its GEMMs rotate queries and keys and write keys and values, and its attention takes several
    // heads.
    bool rotates;
};

// What a device reports, as far as tiers ask for it.
struct nb_tier_facts {
    uint32_t have;                         // bits
    uint32_t subgroup;                     // invocations of one
    bool pins;                             // which a pipeline can ask for
    bool preserves;                        // subnormal halves, where a module asks for it
    uint32_t constants[NB_TIER_CONSTANTS]; // shaders/matrix.glsl
};

// What a tier links to the features of a device that is made.
struct nb_tier_features {
    VkPhysicalDeviceShaderIntegerDotProductFeatures dot;
    struct nb_coopmat_features matrix;
    VkPhysicalDeviceSubgroupSizeControlFeatures subgroups;
};

void nb_tier_read(const struct nb_vk *vk, VkPhysicalDevice p, struct nb_tier_facts *ret);
// The best tier that the device meets: there is always one.
const struct nb_tier *nb_tier_best(const struct nb_tier_facts *f);
// The i-th from the plainest, or NULL; and what keeps a device from it, or from taking it
// `unnamed`; NULL: nothing.
const struct nb_tier *nb_tier_at(uint32_t i);
const char *nb_tier_lacks(const struct nb_tier *t, const struct nb_tier_facts *f, bool unnamed);
// -EINVAL no such tier, -ENOTSUP the device lacks what it needs.
int nb_tier_find(const char *name, const struct nb_tier_facts *f, const struct nb_tier **ret,
                 struct nb_error *ret_error);
bool nb_tier_uses(const struct nb_tier *t, enum nb_module module);
// Sets the features that the tier needs, links others to them, and appends the extensions' names.
void nb_tier_enable(const struct nb_tier *t, const struct nb_tier_facts *f,
                    VkPhysicalDeviceVulkan12Features *features, struct nb_tier_features *more,
                    const char **extension, uint32_t *n_extensions);
