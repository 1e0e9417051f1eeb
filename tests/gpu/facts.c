// What the devices report, and what Nibble makes of it: the tier that each takes, and for every
// other why not; shapes of matrices, types of memory, queues. Asks drivers, makes no device.
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "engine/vulkan/list.h"
#include "tensor/fail.h"
#include "tests/gpu/gpu.h"

#define MAX_SHAPES   128
#define MAX_FAMILIES 16

struct flag {
    uint32_t bit;
    const char *name;
};

static json_t *names_of(uint32_t flags, const struct flag *f, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        if (flags & f[i].bit)
            json_array_append_new(list, json_string(f[i].name));
    return list;
}

static json_t *memory_of(const struct nb_vk *vk, VkPhysicalDevice p)
{
    static const struct flag flags[] = {
        {VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, "device local"},
        {VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT, "host visible"},
        {VK_MEMORY_PROPERTY_HOST_COHERENT_BIT, "coherent"},
        {VK_MEMORY_PROPERTY_HOST_CACHED_BIT, "cached"},
    };
    VkPhysicalDeviceMemoryProperties m;
    json_t *list = json_array();
    vk->GetPhysicalDeviceMemoryProperties(p, &m);
    for (uint32_t i = 0; i < m.memoryTypeCount; i++) {
        const VkMemoryType *t = &m.memoryTypes[i];
        json_array_append_new(
            list, json_pack("{s:i, s:i, s:I, s:o}", "type", (int)i, "heap", (int)t->heapIndex,
                            "heap_mb", (json_int_t)(m.memoryHeaps[t->heapIndex].size >> 20), "is",
                            names_of(t->propertyFlags, flags, sizeof(flags) / sizeof(flags[0]))));
    }
    return list;
}

static json_t *queues_of(const struct nb_vk *vk, VkPhysicalDevice p)
{
    static const struct flag flags[] = {{VK_QUEUE_GRAPHICS_BIT, "graphics"},
                                        {VK_QUEUE_COMPUTE_BIT, "compute"},
                                        {VK_QUEUE_TRANSFER_BIT, "transfer"}};
    VkQueueFamilyProperties q[MAX_FAMILIES];
    uint32_t n = MAX_FAMILIES, compute = 0, transfer = 0, bits;
    json_t *list = json_array();
    vk->GetPhysicalDeviceQueueFamilyProperties(p, &n, q);
    bool any = nb_vulkan_find_queues(vk, p, &compute, &transfer, &bits) == 0;
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:i, s:i, s:i, s:o, s:s}", "family", (int)i,
                                              "queues", (int)q[i].queueCount, "timestamp_bits",
                                              (int)q[i].timestampValidBits, "is",
                                              names_of(q[i].queueFlags, flags, 3), "used",
                                              any && i == compute    ? "computes"
                                              : any && i == transfer ? "copies"
                                                                     : "no"));
    return list;
}

static json_t *shapes_of(const struct nb_vk *vk, VkPhysicalDevice p)
{
    static const char *const types[] = {"f16", "f32", "f64", "s8",  "s16", "s32",
                                        "s64", "u8",  "u16", "u32", "u64"};
    struct nb_coopmat_shape all[MAX_SHAPES];
    nb_coopmat_shapes shapes = (nb_coopmat_shapes)vk->get(vk->instance, NB_COOPMAT_SHAPES);
    uint32_t n = MAX_SHAPES;
    json_t *list = json_array();
    for (uint32_t i = 0; i < MAX_SHAPES; i++)
        all[i] = (struct nb_coopmat_shape){.sType = (VkStructureType)NB_COOPMAT_SHAPE};
    if (!nb_vulkan_has_extension(vk, p, NB_COOPMAT_EXTENSION) || !shapes || shapes(p, &n, all) < 0)
        return list;
    for (uint32_t i = 0; i < n && i < MAX_SHAPES; i++) {
        const struct nb_coopmat_shape *s = &all[i];
        const size_t known = sizeof(types) / sizeof(types[0]);
        char text[80];
        snprintf(text, sizeof(text), "%ux%ux%u %s x %s -> %s%s%s", s->m, s->n, s->k,
                 s->a < known ? types[s->a] : "?", s->b < known ? types[s->b] : "?",
                 s->result < known ? types[s->result] : "?", s->saturates ? " saturating" : "",
                 s->scope == NB_COOPMAT_SUBGROUP ? "" : " (not a subgroup's)");
        json_array_append_new(list, json_string(text));
    }
    return list;
}

// Each tier, whether the device meets it, and whether it is taken without being named.
static void tell_tiers(const char *device, const struct nb_tier_facts *f)
{
    const struct nb_tier *t, *best = nb_tier_best(f);
    for (uint32_t i = 0; (t = nb_tier_at(i)); i++) {
        const char *lacks = nb_tier_lacks(t, f, false), *wants = nb_tier_lacks(t, f, true);
        char why[256];
        snprintf(why, sizeof(why), "%s%s",
                 lacks       ? "it lacks "
                 : t == best ? "the best that the device meets"
                 : wants     ? "by name only: it lacks "
                             : "a better one is met",
                 lacks   ? lacks
                 : wants ? wants
                         : "");
        gpu_row(json_pack("{s:s, s:s, s:s, s:b, s:b, s:s}", "row", "tier", "device", device, "tier",
                          t->name, "meets", lacks == NULL, "taken", t == best, "why", why));
    }
}

struct numbers {
    VkPhysicalDeviceProperties2 all;
    VkPhysicalDeviceSubgroupSizeControlProperties sizes;
    VkPhysicalDeviceFloatControlsProperties floats;
    VkPhysicalDeviceMaintenance3Properties m3;
    VkPhysicalDeviceExternalMemoryHostPropertiesEXT host;
    VkPhysicalDeviceShaderIntegerDotProductProperties dot;
};

static void read_numbers(const struct nb_vk *vk, VkPhysicalDevice p, struct numbers *n)
{
    *n = (struct numbers){
        .all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &n->floats},
        .floats = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FLOAT_CONTROLS_PROPERTIES,
                   .pNext = &n->m3},
        .m3 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES},
        .sizes = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES},
        .host = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT},
        .dot = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES}};
    const struct {
        const char *extension;
        void *of, **next;
    } more[] = {
        {VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME, &n->sizes, &n->sizes.pNext},
        {VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME, &n->host, &n->host.pNext},
        {VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME, &n->dot, &n->dot.pNext},
    };
    for (size_t i = 0; i < sizeof(more) / sizeof(more[0]); i++)
        if (nb_vulkan_has_extension(vk, p, more[i].extension)) {
            *more[i].next = n->all.pNext;
            n->all.pNext = more[i].of;
        }
    vk->GetPhysicalDeviceProperties2(p, &n->all);
}

static json_t *limits_of(const struct nb_vk *vk, VkPhysicalDevice p, uint32_t subgroup)
{
    struct numbers n;
    read_numbers(vk, p, &n);
    const VkPhysicalDeviceLimits *l = &n.all.properties.limits;
    return json_pack(
        "{s:i, s:i, s:i, s:b, s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:I}",
        "subgroup", (int)subgroup, "subgroup_least", (int)n.sizes.minSubgroupSize, "subgroup_most",
        (int)n.sizes.maxSubgroupSize, "dot_accelerated",
        (int)n.dot.integerDotProduct4x8BitPackedSignedAccelerated, "keeps_f16_denormals",
        (int)n.floats.shaderDenormPreserveFloat16, "keeps_f32_denormals",
        (int)n.floats.shaderDenormPreserveFloat32, "shared_bytes",
        (json_int_t)l->maxComputeSharedMemorySize, "workgroup",
        (json_int_t)l->maxComputeWorkGroupInvocations, "workgroups_x",
        (json_int_t)l->maxComputeWorkGroupCount[0], "texels", (json_int_t)l->maxTexelBufferElements,
        "storage_range", (json_int_t)l->maxStorageBufferRange, "storage_buffers_of_a_stage",
        (json_int_t)l->maxPerStageDescriptorStorageBuffers, "push_bytes",
        (json_int_t)l->maxPushConstantsSize, "allocation_mb",
        (json_int_t)(n.m3.maxMemoryAllocationSize >> 20), "import_alignment",
        (json_int_t)n.host.minImportedHostPointerAlignment, "tick_ns", (double)l->timestampPeriod,
        "texel_alignment", (json_int_t)l->minTexelBufferOffsetAlignment);
}

static void tell(const struct nb_vk *vk, VkPhysicalDevice p, uint32_t index, const char *only)
{
    struct nb_vulkan_device_info info;
    struct nb_tier_facts facts;
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
    char name[16], version[32];
    snprintf(name, sizeof(name), "vulkan%u", index);
    if (only && strcmp(only, name) != 0)
        return;
    nb_vulkan_describe(vk, p, &info);
    nb_tier_read(vk, p, &facts);
    vk->GetPhysicalDeviceProperties2(p, &p2);
    snprintf(version, sizeof(version), "%u.%u.%u", VK_API_VERSION_MAJOR(p2.properties.apiVersion),
             VK_API_VERSION_MINOR(p2.properties.apiVersion),
             VK_API_VERSION_PATCH(p2.properties.apiVersion));
    gpu_row(json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:s, s:i, s:i, s:s, s:o, s:o, s:o, "
                      "s:o}",
                      "row", "device", "device", name, "name", info.name, "driver", info.driver,
                      "vulkan", version, "tier", info.tier, "is_cpu", (int)info.is_cpu, "unified",
                      (int)info.unified, "pci", info.pci, "vendor", (int)p2.properties.vendorID,
                      "id", (int)p2.properties.deviceID, "fault", info.fault, "limits",
                      limits_of(vk, p, facts.subgroup), "memory", memory_of(vk, p), "queues",
                      queues_of(vk, p), "matrix_shapes", shapes_of(vk, p)));
    tell_tiers(name, &facts);
}

int gpu_facts(int argc, char **argv)
{
    static const struct option longs[] = {{"device", required_argument, NULL, 'd'}, {0}};
    const char *only = NULL;
    struct nb_error error = {""};
    VkPhysicalDevice p[NB_VULKAN_DEVICES];
    uint32_t n = 0;
    struct nb_vk vk;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) >= 0;)
        only = c == 'd' ? optarg : only;
    if (nb_vk_open(&vk, &error) < 0 || nb_vulkan_list(&vk, p, &n, &error) < 0)
        gpu_fail("%s", error.text);
    for (uint32_t i = 0; i < n && i < NB_VULKAN_DEVICES; i++)
        tell(&vk, p[i], i, only);
    nb_vk_close(&vk);
    if (n == 0)
        gpu_fail("the Vulkan loader lists no device: install the GPU's driver");
    return 0;
}
