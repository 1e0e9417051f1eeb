// The table of shader tiers, and what a device has of what they ask for.
#include "engine/vulkan/tier.h"

#include <errno.h>
#include <string.h>

#include "engine/vulkan/list.h"
#include "tensor/fail.h"

#define MATRIX_SCRATCH 2048 // floats of all its subgroups
#define MATRIX_SHAPES  128

// What tiers ask for. All that is not listed for a device is what it lacks, and said in these
// words.
enum {
    HAS_SUBGROUPS = 1,
    HAS_SHARED = 2,
    HAS_DOT = 4,
    HAS_FAST_DOT = 8,
    HAS_MATRICES = 16,
    IS_GPU = 32,
    TRUSTED_MATRICES = 64,
    HAS_KNOWN_SIZE = 128,
};
static const struct {
    uint32_t bit;
    const char *what;
} asked[] = {
    {HAS_SUBGROUPS, "full subgroups of 8 to 128 invocations that shuffle in compute shaders "
                    "(computeFullSubgroups)"},
    {HAS_SHARED, "32 KB of shared memory for workgroups of 128"},
    {HAS_DOT, "shaderIntegerDotProduct"},
    {HAS_FAST_DOT, "an accelerated dot product of packed bytes"},
    {HAS_MATRICES,
     "cooperative matrices of signed bytes in a shape that divides 64 by 64 by 32, the "
     "Vulkan memory model and bytes in shaders"},
    {HAS_KNOWN_SIZE, "subgroups whose size is one, or can be asked for (subgroupSizeControl)"},
    {IS_GPU, "a GPU"},
    {TRUSTED_MATRICES, "a driver whose cooperative matrices are known to be right"},
};

// The same variant whatever the tile.
#define EACH(...)                                                                                  \
    {                                                                                              \
        {__VA_ARGS__}, {__VA_ARGS__},                                                              \
        {                                                                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }
#define ALONE(module) EACH(NB_MODULE_##module, .tokens = 1)
// Who reckons with its place in a subgroup needs full ones: Intel's driver packs others otherwise.
#define TEAM(module) EACH(NB_MODULE_##module, LANES, 1, .tokens = 1, .full = true, .team = true)
// GEMMs: a row group of 16 (four quads) for 1 or 8 tokens, or a tile.
#define GEMV(module, n)                                                                            \
    {                                                                                              \
        NB_MODULE_##module, LANES, 4, .tokens = n, .full = true, .finishes = true,                 \
                                      .finishing = NB_MODULE_##module##_FINISH                     \
    }
#define TILE(module, n)                                                                            \
    {                                                                                              \
        NB_MODULE_##module, LANES, 16, .tokens = n, .full = true                                   \
    }
#define MATRIX                                                                                     \
    {                                                                                              \
        NB_MODULE_MATRIX, LANES, 16, MATRIX_TILE, .full = true                                     \
    }
// A row of experts alone, or tiles of them in the experts' order.
#define EXPERTS(few, many, ...)                                                                    \
    {                                                                                              \
        {.tokens = 1, __VA_ARGS__}, {.tokens = (few), __VA_ARGS__},                                \
        {                                                                                          \
            .tokens = (many), __VA_ARGS__                                                          \
        }                                                                                          \
    }
#define GEMV_EXPERTS(name)                                                                         \
    EXPERTS(4, 8, .module = NB_MODULE_##name##_EXPERTS, .local = LANES, .units = 4, .full = true)
// Of adapters: a few rows, or a tile of neighbours.
#define ADAPTER                                                                                    \
    {                                                                                              \
        {NB_MODULE_ADAPTER, .tokens = 1}, {NB_MODULE_ADAPTER, .tokens = 4},                        \
        {                                                                                          \
            NB_MODULE_ADAPTER, .tokens = 8                                                         \
        }                                                                                          \
    }
#define THIN(n)                                                                                    \
    {                                                                                              \
        NB_MODULE_ADAPTER_TEAM, LANES, 4, .tokens = n, .full = true                                \
    }
// An invocation computes two quads. With many rows it is a dispatch of its own that finishes them,
// which has work for all lanes then.
#define FINISHED 2
#define REGISTERS(n)                                                                               \
    {                                                                                              \
        NB_MODULE_GEMM, .tokens = n, .each = 2, .finishes = n <= FINISHED,                         \
                        .rotating = NB_MODULE_GEMM_ROTATE, .finishing = NB_MODULE_GEMM_FINISH      \
    }

// From the plainest to the best.
static const struct nb_tier tiers[] = {
    {"registers",
     .variant = {[NB_SHADER_DEQUANTIZE] = ALONE(DEQUANTIZE),
                 [NB_SHADER_EMBED] = ALONE(EMBED),
                 [NB_SHADER_QUANTIZE] = ALONE(QUANTIZE),
                 [NB_SHADER_GEMM] = {REGISTERS(1), REGISTERS(2), REGISTERS(4)},
                 [NB_SHADER_GEMM_FLOATS] = {REGISTERS(1), REGISTERS(2), REGISTERS(4)},
                 [NB_SHADER_GEMM_EXPERTS] =
                     EXPERTS(2, 4, .module = NB_MODULE_GEMM_EXPERTS, .each = 2),
                 [NB_SHADER_GEMM_FLOATS_EXPERTS] =
                     EXPERTS(2, 4, .module = NB_MODULE_GEMM_EXPERTS, .each = 2),
                 [NB_SHADER_ROPE] = ALONE(ROPE),
                 [NB_SHADER_NORM] = ALONE(NORM),
                 [NB_SHADER_ROWS] = ALONE(ROWS),
                 [NB_SHADER_ATTENTION] = ALONE(ATTENTION),
                 [NB_SHADER_TOP] = ALONE(TOP),
                 [NB_SHADER_THIN] = ADAPTER,
                 [NB_SHADER_WIDE] = ADAPTER},
     .rotates = true},
    {"subgroups", HAS_SUBGROUPS | HAS_SHARED, IS_GPU,
     .variant = {[NB_SHADER_DEQUANTIZE] = ALONE(DEQUANTIZE),
                 [NB_SHADER_EMBED] = ALONE(EMBED),
                 [NB_SHADER_QUANTIZE] = TEAM(QUANTIZE_TEAM),
                 [NB_SHADER_GEMM] = {GEMV(GEMV, 1), GEMV(GEMV, 8), TILE(TILE, 32)},
                 [NB_SHADER_GEMM_FLOATS] = {GEMV(GEMV, 1), GEMV(GEMV, 8), TILE(TILE, 32)},
                 [NB_SHADER_GEMM_EXPERTS] = GEMV_EXPERTS(GEMV),
                 [NB_SHADER_GEMM_FLOATS_EXPERTS] = GEMV_EXPERTS(GEMV),
                 [NB_SHADER_ROPE] = ALONE(ROPE),
                 [NB_SHADER_NORM] = TEAM(NORM_TEAM),
                 [NB_SHADER_ROWS] = ALONE(ROWS),
                 [NB_SHADER_ATTENTION] = TEAM(ATTENTION_TEAM),
                 [NB_SHADER_TOP] = TEAM(TOP_TEAM),
                 [NB_SHADER_THIN] = {THIN(1), THIN(4), THIN(8)},
                 [NB_SHADER_WIDE] = ADAPTER},
     .first = 1},
    {"subgroups-dot", HAS_SUBGROUPS | HAS_SHARED | HAS_DOT, IS_GPU | HAS_FAST_DOT,
     .variant = {[NB_SHADER_DEQUANTIZE] = ALONE(DEQUANTIZE),
                 [NB_SHADER_EMBED] = ALONE(EMBED),
                 [NB_SHADER_QUANTIZE] = TEAM(QUANTIZE_TEAM),
                 [NB_SHADER_GEMM] = {GEMV(GEMV_DOT, 1), GEMV(GEMV_DOT, 8), TILE(TILE_DOT, 32)},
                 [NB_SHADER_GEMM_FLOATS] = {GEMV(GEMV, 1), GEMV(GEMV, 8), TILE(TILE, 32)},
                 [NB_SHADER_GEMM_EXPERTS] = GEMV_EXPERTS(GEMV_DOT),
                 [NB_SHADER_GEMM_FLOATS_EXPERTS] = GEMV_EXPERTS(GEMV),
                 [NB_SHADER_ROPE] = ALONE(ROPE),
                 [NB_SHADER_NORM] = TEAM(NORM_TEAM),
                 [NB_SHADER_ROWS] = ALONE(ROWS),
                 [NB_SHADER_ATTENTION] = TEAM(ATTENTION_TEAM),
                 [NB_SHADER_TOP] = TEAM(TOP_TEAM),
                 [NB_SHADER_THIN] = {THIN(1), THIN(4), THIN(8)},
                 [NB_SHADER_WIDE] = ADAPTER},
     .first = 1},
    {"matrices", HAS_SUBGROUPS | HAS_SHARED | HAS_DOT | HAS_MATRICES | HAS_KNOWN_SIZE,
     IS_GPU | HAS_FAST_DOT | TRUSTED_MATRICES,
     .variant = {[NB_SHADER_DEQUANTIZE] = ALONE(DEQUANTIZE),
                 [NB_SHADER_EMBED] = ALONE(EMBED),
                 [NB_SHADER_QUANTIZE] = TEAM(QUANTIZE_TEAM),
                 [NB_SHADER_GEMM] = {GEMV(GEMV_DOT, 1), GEMV(GEMV_DOT, 8), MATRIX},
                 [NB_SHADER_GEMM_FLOATS] = {GEMV(GEMV, 1), GEMV(GEMV, 8), TILE(TILE, 32)},
                 [NB_SHADER_GEMM_EXPERTS] = GEMV_EXPERTS(GEMV_DOT),
                 [NB_SHADER_GEMM_FLOATS_EXPERTS] = GEMV_EXPERTS(GEMV),
                 [NB_SHADER_ROPE] = ALONE(ROPE),
                 [NB_SHADER_NORM] = TEAM(NORM_TEAM),
                 [NB_SHADER_ROWS] = ALONE(ROWS),
                 [NB_SHADER_ATTENTION] = TEAM(ATTENTION_TEAM),
                 [NB_SHADER_TOP] = TEAM(TOP_TEAM),
                 [NB_SHADER_THIN] = {THIN(1), THIN(4), THIN(8)},
                 [NB_SHADER_WIDE] = ADAPTER},
     .first = 1},
};
#define N_TIERS (sizeof(tiers) / sizeof(tiers[0]))

// --- What a device has

// Whether subgroups have a size that is known: the device's only one, or one that a pipeline asks
// for.
static bool has_known_size(const VkPhysicalDeviceSubgroupSizeControlProperties *c, uint32_t size,
                           bool control, bool *ret_pins)
{
    *ret_pins = control && c->requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT &&
                size >= c->minSubgroupSize && size <= c->maxSubgroupSize && size > 0 &&
                LANES / size <= c->maxComputeWorkgroupSubgroups;
    return *ret_pins || (c->minSubgroupSize == size && c->maxSubgroupSize == size);
}

static void read_limits(const struct nb_vk *vk, VkPhysicalDevice p, bool dot,
                        const VkPhysicalDeviceSubgroupSizeControlFeatures *control,
                        struct nb_tier_facts *ret)
{
    VkPhysicalDeviceShaderIntegerDotProductProperties fast = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES};
    VkPhysicalDeviceSubgroupSizeControlProperties sizes = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES,
        .pNext = dot ? &fast : NULL};
    VkPhysicalDeviceFloatControlsProperties floats = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FLOAT_CONTROLS_PROPERTIES,
        // A device without the extension does not know its properties.
        .pNext = control->computeFullSubgroups ? &sizes : sizes.pNext};
    VkPhysicalDeviceSubgroupProperties sub = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES, .pNext = &floats};
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                      .pNext = &sub};
    vk->GetPhysicalDeviceProperties2(p, &p2);
    const VkPhysicalDeviceLimits *l = &p2.properties.limits;
    const VkSubgroupFeatureFlags ops =
        VK_SUBGROUP_FEATURE_BASIC_BIT | VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
    ret->subgroup = sub.subgroupSize;
    // Of halves alone, whatever floats do.
    ret->preserves =
        floats.shaderDenormPreserveFloat16 &&
        floats.denormBehaviorIndependence != VK_SHADER_FLOAT_CONTROLS_INDEPENDENCE_NONE;
    if (has_known_size(&sizes, sub.subgroupSize, control->subgroupSizeControl, &ret->pins))
        ret->have |= HAS_KNOWN_SIZE;
    if (control->computeFullSubgroups && sub.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT &&
        (sub.supportedOperations & ops) == ops && sub.subgroupSize >= 8 &&
        sub.subgroupSize <= LANES)
        ret->have |= HAS_SUBGROUPS;
    if (l->maxComputeSharedMemorySize >= 32768 && l->maxComputeWorkGroupInvocations >= LANES &&
        l->maxComputeWorkGroupSize[0] >= LANES)
        ret->have |= HAS_SHARED;
    if (fast.integerDotProduct4x8BitPackedSignedAccelerated)
        ret->have |= HAS_FAST_DOT;
    if (p2.properties.deviceType != VK_PHYSICAL_DEVICE_TYPE_CPU)
        ret->have |= IS_GPU;
    // Mesa has read strides of packed bytes in other units than the specification there.
    if (p2.properties.vendorID != NB_VENDOR_INTEL)
        ret->have |= TRUSTED_MATRICES;
}

static bool has_floats(const struct nb_coopmat_shape *all, uint32_t n,
                       const struct nb_coopmat_shape *like)
{
    for (uint32_t i = 0; i < n; i++)
        if (all[i].m == like->m && all[i].n == like->n && all[i].scope == NB_COOPMAT_SUBGROUP &&
            all[i].c == NB_COOPMAT_FLOAT32 && all[i].result == NB_COOPMAT_FLOAT32)
            return true;
    return false;
}

// The largest shape that the shader can use: signed bytes to words, and floats of the same shape.
static const struct nb_coopmat_shape *best_shape(const struct nb_coopmat_shape *all, uint32_t n,
                                                 uint32_t subgroups)
{
    const struct nb_coopmat_shape *best = NULL;
    for (uint32_t i = 0; i < n; i++) {
        const struct nb_coopmat_shape *s = &all[i];
        bool fits = s->a == NB_COOPMAT_SINT8 && s->b == NB_COOPMAT_SINT8 &&
                    s->c == NB_COOPMAT_SINT32 && s->result == NB_COOPMAT_SINT32 && !s->saturates &&
                    s->scope == NB_COOPMAT_SUBGROUP && s->m && MATRIX_TILE % s->m == 0 && s->n &&
                    MATRIX_TILE % s->n == 0 && s->k >= 8 && 32 % s->k == 0 &&
                    subgroups * s->m * s->n <= MATRIX_SCRATCH && has_floats(all, n, s);
        if (fits && (!best || s->m * s->n * s->k > best->m * best->n * best->k))
            best = s;
    }
    return best;
}

static void read_matrices(const struct nb_vk *vk, VkPhysicalDevice p, struct nb_tier_facts *ret)
{
    struct nb_coopmat_shape all[MATRIX_SHAPES];
    struct nb_coopmat_properties stages = {.sType = (VkStructureType)NB_COOPMAT_PROPERTIES};
    VkPhysicalDeviceSubgroupProperties sub = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES, .pNext = &stages};
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                      .pNext = &sub};
    nb_coopmat_shapes shapes = (nb_coopmat_shapes)vk->get(vk->instance, NB_COOPMAT_SHAPES);
    uint32_t n = MATRIX_SHAPES;
    for (uint32_t i = 0; i < MATRIX_SHAPES; i++)
        all[i] = (struct nb_coopmat_shape){.sType = (VkStructureType)NB_COOPMAT_SHAPE};
    vk->GetPhysicalDeviceProperties2(p, &p2);
    if (!(stages.cooperativeMatrixSupportedStages & VK_SHADER_STAGE_COMPUTE_BIT) || !shapes ||
        shapes(p, &n, all) < 0 || sub.subgroupSize < 8 || sub.subgroupSize > LANES)
        return;
    uint32_t subgroups = LANES / sub.subgroupSize;
    const struct nb_coopmat_shape *s = best_shape(all, n, subgroups);
    if (!s)
        return;
    uint32_t fragments = MATRIX_TILE / s->m * (MATRIX_TILE / s->n);
    const uint32_t constants[NB_TIER_CONSTANTS] = {(fragments + subgroups - 1) / subgroups,
                                                   subgroups, s->m, s->n, s->k};
    memcpy(ret->constants, constants, sizeof(constants));
    ret->have |= HAS_MATRICES;
}

void nb_tier_read(const struct nb_vk *vk, VkPhysicalDevice p, struct nb_tier_facts *ret)
{
    *ret = (struct nb_tier_facts){0};
    bool dot = nb_vulkan_has_extension(vk, p, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME);
    bool matrix = nb_vulkan_has_extension(vk, p, NB_COOPMAT_EXTENSION);
    bool sized = nb_vulkan_has_extension(vk, p, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME);
    VkPhysicalDeviceSubgroupSizeControlFeatures full = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES};
    struct nb_coopmat_features m = {.sType = (VkStructureType)NB_COOPMAT_FEATURES};
    VkPhysicalDeviceShaderIntegerDotProductFeatures d = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES};
    VkPhysicalDeviceVulkan12Features f12 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceFeatures2 f2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                    .pNext = &f12};
    if (dot)
        f12.pNext = &d;
    if (sized) {
        full.pNext = f12.pNext;
        f12.pNext = &full;
    }
    if (matrix) {
        m.pNext = f12.pNext;
        f12.pNext = &m;
    }
    vk->GetPhysicalDeviceFeatures2(p, &f2);
    if (d.shaderIntegerDotProduct)
        ret->have |= HAS_DOT;
    read_limits(vk, p, dot, &full, ret);
    if (m.cooperativeMatrix && full.computeFullSubgroups && f12.vulkanMemoryModelDeviceScope &&
        f12.shaderInt8)
        read_matrices(vk, p, ret);
}

// --- Choosing

const struct nb_tier *nb_tier_best(const struct nb_tier_facts *f)
{
    size_t i = N_TIERS - 1;
    while ((tiers[i].needs | tiers[i].wants) & ~f->have)
        i--;
    return &tiers[i];
}

const struct nb_tier *nb_tier_at(uint32_t i)
{
    return i < N_TIERS ? &tiers[i] : NULL;
}

const char *nb_tier_lacks(const struct nb_tier *t, const struct nb_tier_facts *f, bool unnamed)
{
    const uint32_t lacks = (t->needs | (unnamed ? t->wants : 0)) & ~f->have;
    for (size_t i = 0; i < sizeof(asked) / sizeof(asked[0]); i++)
        if (lacks & asked[i].bit)
            return asked[i].what;
    return NULL;
}

int nb_tier_find(const char *name, const struct nb_tier_facts *f, const struct nb_tier **ret,
                 struct nb_error *ret_error)
{
    const struct nb_tier *t = tiers;
    while (t < tiers + N_TIERS && strcmp(t->name, name) != 0)
        t++;
    if (t == tiers + N_TIERS)
        return nb_fail(ret_error, -EINVAL,
                       "there is no shader tier \"%s\": say registers, subgroups, "
                       "subgroups-dot or matrices",
                       name);
    const char *lacks = nb_tier_lacks(t, f, false);
    if (lacks)
        return nb_fail(ret_error, -ENOTSUP, "tier %s needs %s, which it lacks", name, lacks);
    *ret = t;
    return 0;
}

bool nb_tier_uses(const struct nb_tier *t, enum nb_module module)
{
    for (int s = 0; s < NB_SHADERS; s++)
        for (int i = 0; i < NB_TIER_TILES; i++)
            if (t->variant[s][i].module == module || t->variant[s][i].rotating == module ||
                t->variant[s][i].finishing == module)
                return true;
    return false;
}

void nb_tier_enable(const struct nb_tier *t, const struct nb_tier_facts *f,
                    VkPhysicalDeviceVulkan12Features *features, struct nb_tier_features *more,
                    const char **extension, uint32_t *n_extensions)
{
    if (t->needs & HAS_DOT) {
        more->dot = (VkPhysicalDeviceShaderIntegerDotProductFeatures){
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES,
            .pNext = features->pNext,
            .shaderIntegerDotProduct = VK_TRUE};
        features->pNext = &more->dot;
        extension[(*n_extensions)++] = VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME;
    }
    if (t->needs & HAS_SUBGROUPS) {
        more->subgroups = (VkPhysicalDeviceSubgroupSizeControlFeatures){
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES,
            .pNext = features->pNext,
            .subgroupSizeControl = f->pins,
            .computeFullSubgroups = VK_TRUE};
        features->pNext = &more->subgroups;
        extension[(*n_extensions)++] = VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME;
    }
    if (t->needs & HAS_MATRICES) {
        more->matrix = (struct nb_coopmat_features){.sType = (VkStructureType)NB_COOPMAT_FEATURES,
                                                    .pNext = features->pNext,
                                                    .cooperativeMatrix = VK_TRUE};
        features->pNext = &more->matrix;
        features->vulkanMemoryModel = features->vulkanMemoryModelDeviceScope = VK_TRUE;
        features->shaderInt8 = VK_TRUE;
        extension[(*n_extensions)++] = NB_COOPMAT_EXTENSION;
    }
}
