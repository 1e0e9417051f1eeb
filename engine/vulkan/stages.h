// A plan as the Vulkan device runs it: which neighbouring ops share dispatches. What has no such
// form runs op by op.
#pragma once

#include "engine/plan.h"

struct nb_vulkan_stage {
    uint32_t first, n; // ops of the plan
    // Op `first` is a norm that is made with the quantized input of the GEMMs behind it.
    bool has_norm;
    uint32_t n_gemms; // LINEARs that have one input
    bool activates;   // and then ACTIVATE: of one, of gate and up, or of the halves of one
};

// The stage that begins with op i. `apart`: GEMMs store what they make, so that adapters can add to
// it before another op reads it.
struct nb_vulkan_stage nb_vulkan_stage_at(const struct nb_plan *plan, uint32_t i, bool apart);
// The values that need a buffer then: a bit for each.
uint32_t nb_vulkan_values(const struct nb_plan *plan, bool apart);
