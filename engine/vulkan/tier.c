// The table of shader tiers.
#include "engine/vulkan/tier.h"

// The same variant whatever the tile.
#define EACH(...)                                                                                  \
    {                                                                                              \
        {__VA_ARGS__}, {__VA_ARGS__},                                                              \
        {                                                                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

static const struct nb_tier tiers[] = {
    {"registers",
     {[NB_SHADER_EMBED] = EACH(NB_MODULE_EMBED, .tokens = 1),
      [NB_SHADER_QUANTIZE] = EACH(NB_MODULE_QUANTIZE, .tokens = 1),
      [NB_SHADER_GEMM] = {{NB_MODULE_GEMM, .tokens = 1},
                          {NB_MODULE_GEMM, .tokens = 4},
                          {NB_MODULE_GEMM, .tokens = 8}},
      [NB_SHADER_GEMM_FLOATS] = {{NB_MODULE_GEMM, .tokens = 1},
                                 {NB_MODULE_GEMM, .tokens = 4},
                                 {NB_MODULE_GEMM, .tokens = 8}},
      [NB_SHADER_ROPE] = EACH(NB_MODULE_ROPE, .tokens = 1),
      [NB_SHADER_ATTENTION] = EACH(NB_MODULE_ATTENTION, .tokens = 1)}},
};

const struct nb_tier *nb_tier_best(void)
{
    return &tiers[0];
}
