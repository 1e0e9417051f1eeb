// The blob's bytes, checked one by one, and what a device makes of them.
#include "engine/vulkan/cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "engine/vulkan/device.h"

#define MAGIC   "NBVKPC\r\n" // a transfer that changes line ends is noticed
#define VERSION 1

// A blob: this, the choices, then the driver's bytes. Host byte order: it never leaves the machine.
struct head {
    char magic[8];
    uint32_t version, n_choices;
    struct nb_vulkan_cache_id id;
    uint64_t pipelines_bytes;
    uint64_t hash; // of what follows
};

// As Vulkan says that a pipeline cache begins.
struct pipelines_head {
    uint32_t bytes, version, vendor, device;
    uint8_t uuid[16];
};

// --- The blob

static int check_pipelines(const void *pipelines, size_t bytes, const struct nb_vulkan_cache_id *id)
{
    struct pipelines_head h;
    if (!bytes)
        return 0;
    if (bytes < sizeof(h))
        return -EINVAL;
    memcpy(&h, pipelines, sizeof(h));
    if (h.bytes < sizeof(h) || h.bytes > bytes || h.version != VK_PIPELINE_CACHE_HEADER_VERSION_ONE)
        return -EINVAL;
    bool ours = h.vendor == id->vendor && h.device == id->device &&
                !memcmp(h.uuid, id->pipeline_uuid, sizeof(h.uuid));
    return ours ? 0 : -ESTALE;
}

static bool choices_fit(const struct nb_vulkan_choice *c, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t b = 0; b < sizeof(c->tile); b++)
            if (c[i].tile[b] >= (b < NB_VULKAN_BUCKETS ? NB_TIER_TILES : 1))
                return false;
    return true;
}

int nb_vulkan_cache_read(const void *blob, size_t bytes, const struct nb_vulkan_cache_id *id,
                         struct nb_vulkan_cache_parts *ret)
{
    struct head h;
    if (bytes < sizeof(h) || bytes > NB_VULKAN_CACHE_MAX)
        return -EINVAL;
    memcpy(&h, blob, sizeof(h));
    if (memcmp(h.magic, MAGIC, sizeof(h.magic)) != 0)
        return -EINVAL;
    if (h.version != VERSION || memcmp(&h.id, id, sizeof(h.id)) != 0)
        return -ESTALE;
    size_t left = bytes - sizeof(h), choices = h.n_choices * sizeof(struct nb_vulkan_choice);
    if (h.n_choices > NB_VULKAN_CHOICES || choices > left || h.pipelines_bytes != left - choices)
        return -EINVAL;
    const uint8_t *body = (const uint8_t *)blob + sizeof(h);
    if (XXH3_64bits(body, left) != h.hash)
        return -EINVAL;
    struct nb_vulkan_cache_parts p = {.pipelines = body + choices,
                                      .pipelines_bytes = left - choices,
                                      .choices = (const void *)body,
                                      .n_choices = h.n_choices,
                                      .hash = h.hash};
    int rc = check_pipelines(p.pipelines, p.pipelines_bytes, id);
    if (rc == 0 && !choices_fit(p.choices, p.n_choices))
        rc = -EINVAL;
    if (rc == 0)
        *ret = p;
    return rc;
}

int nb_vulkan_cache_write(const struct nb_vulkan_cache_id *id, struct nb_vulkan_cache_parts *parts,
                          void **ret, size_t *ret_bytes)
{
    struct head h = {.version = VERSION,
                     .n_choices = parts->n_choices,
                     .id = *id,
                     .pipelines_bytes = parts->pipelines_bytes};
    size_t choices = parts->n_choices * sizeof(*parts->choices);
    size_t body = choices + parts->pipelines_bytes;
    if (body > NB_VULKAN_CACHE_MAX - sizeof(h))
        return -EFBIG;
    uint8_t *blob = malloc(sizeof(h) + body);
    if (!blob)
        return -ENOMEM;
    if (choices)
        memcpy(blob + sizeof(h), parts->choices, choices);
    if (parts->pipelines_bytes)
        memcpy(blob + sizeof(h) + choices, parts->pipelines, parts->pipelines_bytes);
    memcpy(h.magic, MAGIC, sizeof(h.magic));
    parts->hash = h.hash = XXH3_64bits(blob + sizeof(h), body);
    memcpy(blob, &h, sizeof(h));
    *ret = blob;
    *ret_bytes = sizeof(h) + body;
    return 0;
}

// --- A device's own

static void identify(const struct nb_vulkan_device *d, struct nb_vulkan_cache_id *ret)
{
    VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES};
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                      .pNext = &id};
    d->vk.GetPhysicalDeviceProperties2(d->physical, &p2);
    *ret = (struct nb_vulkan_cache_id){.vendor = p2.properties.vendorID,
                                       .device = p2.properties.deviceID,
                                       .driver_version = p2.properties.driverVersion};
    memcpy(ret->device_uuid, id.deviceUUID, sizeof(ret->device_uuid));
    memcpy(ret->driver_uuid, id.driverUUID, sizeof(ret->driver_uuid));
    memcpy(ret->pipeline_uuid, p2.properties.pipelineCacheUUID, sizeof(ret->pipeline_uuid));
    for (int i = 0; i < NB_MODULES; i++)
        ret->shaders =
            XXH3_64bits_withSeed(nb_shader_code[i].words, nb_shader_code[i].bytes, ret->shaders);
}

int nb_vulkan_cache_init(struct nb_vulkan_device *d, const void *blob, size_t bytes)
{
    struct nb_vulkan_cache *c = &d->cache;
    struct nb_vulkan_cache_parts parts = {0};
    identify(d, &c->id);
    c->choices = calloc(NB_VULKAN_CHOICES, sizeof(*c->choices));
    if (!c->choices)
        return -ENOMEM;
    // One copy, so that what was checked is what is used.
    void *copy = bytes && bytes <= NB_VULKAN_CACHE_MAX ? malloc(bytes) : NULL;
    if (copy && nb_vulkan_cache_read(memcpy(copy, blob, bytes), bytes, &c->id, &parts) == 0) {
        memcpy(c->choices, parts.choices, parts.n_choices * sizeof(*c->choices));
        c->n_choices = parts.n_choices;
        c->saved = parts.hash;
    }
    const VkPipelineCacheCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO,
                                            .initialDataSize = parts.pipelines_bytes,
                                            .pInitialData = parts.pipelines};
    VkResult r = d->vk.CreatePipelineCache(d->device, &info, NULL, &c->pipelines);
    free(copy);
    return nb_vk_errno(r);
}

void nb_vulkan_cache_finish(struct nb_vulkan_device *d)
{
    d->vk.DestroyPipelineCache(d->device, d->cache.pipelines, NULL);
    free(d->cache.choices);
    d->cache = (struct nb_vulkan_cache){0};
}

int nb_vulkan_cache_save(struct nb_device *base, void **ret, size_t *ret_bytes)
{
    struct nb_vulkan_device *d = (struct nb_vulkan_device *)base;
    struct nb_vulkan_cache *c = &d->cache;
    size_t bytes = 0;
    VkResult r = d->vk.GetPipelineCacheData(d->device, c->pipelines, &bytes, NULL);
    void *pipelines = r == VK_SUCCESS ? malloc(bytes) : NULL;
    if (!pipelines)
        return r == VK_SUCCESS ? -ENOMEM : nb_vk_errno(r);
    r = d->vk.GetPipelineCacheData(d->device, c->pipelines, &bytes, pipelines);
    struct nb_vulkan_cache_parts parts = {.pipelines = pipelines,
                                          .pipelines_bytes = bytes,
                                          .choices = c->choices,
                                          .n_choices = c->n_choices};
    void *blob = NULL;
    size_t blob_bytes = 0;
    int rc = nb_vk_errno(r);
    if (rc == 0)
        rc = nb_vulkan_cache_write(&c->id, &parts, &blob, &blob_bytes);
    free(pipelines);
    if (rc < 0 || parts.hash == c->saved) {
        free(blob);
        return rc;
    }
    c->saved = parts.hash;
    *ret = blob;
    *ret_bytes = blob_bytes;
    return 1;
}

const struct nb_vulkan_choice *nb_vulkan_choice_find(const struct nb_vulkan_device *d,
                                                     uint64_t gemm)
{
    for (uint32_t i = 0; i < d->cache.n_choices; i++)
        if (d->cache.choices[i].gemm == gemm)
            return &d->cache.choices[i];
    return NULL;
}

void nb_vulkan_choice_save(struct nb_vulkan_device *d, const struct nb_vulkan_choice *choice)
{
    struct nb_vulkan_cache *c = &d->cache;
    if (c->n_choices < NB_VULKAN_CHOICES)
        c->choices[c->n_choices++] = *choice;
}
