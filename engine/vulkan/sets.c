// Descriptor sets and their views: made together, and destroyed together.
#include "engine/vulkan/sets.h"

#include <errno.h>
#include <stdlib.h>

static bool is_texels(uint32_t binding)
{
    return nb_vulkan_descriptor(binding) == VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER;
}

int nb_vulkan_sets_init(struct nb_vulkan_device *d, uint32_t n, struct nb_vulkan_sets *ret)
{
    uint32_t texels = 0;
    for (uint32_t i = 0; i < BINDINGS; i++)
        texels += is_texels(i);
    const VkDescriptorPoolSize size[] = {
        {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, n * (BINDINGS - texels)},
        {VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER, n * texels}};
    const VkDescriptorPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                             .maxSets = n,
                                             .poolSizeCount = 2,
                                             .pPoolSizes = size};
    struct nb_vulkan_sets s = {.max_views = n * texels};
    s.views = calloc(s.max_views, sizeof(*s.views));
    if (!s.views)
        return -ENOMEM;
    int rc = nb_vk_errno(d->vk.CreateDescriptorPool(d->device, &pool, NULL, &s.pool));
    if (rc < 0)
        free(s.views);
    else
        *ret = s;
    return rc;
}

void nb_vulkan_sets_finish(struct nb_vulkan_device *d, struct nb_vulkan_sets *s)
{
    for (uint32_t i = 0; i < s->n_views; i++)
        d->vk.DestroyBufferView(d->device, s->views[i], NULL);
    d->vk.DestroyDescriptorPool(d->device, s->pool, NULL);
    free(s->views);
    *s = (struct nb_vulkan_sets){0};
}

static int add_view(struct nb_vulkan_device *d, struct nb_vulkan_sets *s,
                    const VkDescriptorBufferInfo *what, VkBufferView *ret)
{
    const VkBufferViewCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_VIEW_CREATE_INFO,
                                         .buffer = what->buffer,
                                         .format = VK_FORMAT_R32G32B32A32_UINT,
                                         .offset = what->offset,
                                         .range = what->range};
    if (s->n_views == s->max_views)
        return -EOVERFLOW;
    int rc = nb_vk_errno(d->vk.CreateBufferView(d->device, &info, NULL, ret));
    if (rc == 0)
        s->views[s->n_views++] = *ret;
    return rc;
}

int nb_vulkan_sets_bind(struct nb_vulkan_device *d, struct nb_vulkan_sets *s,
                        const VkDescriptorBufferInfo *first,
                        const struct nb_vulkan_buffer *const buffers[BINDINGS],
                        VkDescriptorSet *ret)
{
    const VkDescriptorSetAllocateInfo info = {.sType =
                                                  VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                              .descriptorPool = s->pool,
                                              .descriptorSetCount = 1,
                                              .pSetLayouts = &d->set_layout};
    VkDescriptorBufferInfo what[BINDINGS];
    VkBufferView views[BINDINGS];
    VkWriteDescriptorSet write[BINDINGS];
    VkDescriptorSet set;
    uint32_t n = 0;
    int rc = nb_vk_errno(d->vk.AllocateDescriptorSets(d->device, &info, &set));
    for (uint32_t i = 0; i < BINDINGS && rc == 0; i++) {
        if (i == 0 && first)
            what[i] = *first;
        else if (buffers[i])
            what[i] = (VkDescriptorBufferInfo){buffers[i]->buffer, 0, VK_WHOLE_SIZE};
        else
            continue;
        write[n++] = (VkWriteDescriptorSet){.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                            .dstSet = set,
                                            .dstBinding = i,
                                            .descriptorCount = 1,
                                            .descriptorType = nb_vulkan_descriptor(i),
                                            .pBufferInfo = &what[i],
                                            .pTexelBufferView = &views[i]};
        if (is_texels(i))
            rc = add_view(d, s, &what[i], &views[i]);
    }
    if (rc < 0)
        return rc;
    d->vk.UpdateDescriptorSets(d->device, n, write, 0, NULL);
    *ret = set;
    return 0;
}
