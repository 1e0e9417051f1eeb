// What a model needs of a device's memory, and what is left of it: by the driver's own account
// where it keeps one (VK_EXT_memory_budget), else by ours.
#include "engine/vulkan/model.h"

#include <errno.h>
#include <stdio.h>

#include "tensor/fail.h"

#define PAGE     4096u
#define KV_SHARE 4 // KV memory is one part in so many, unless more is asked for

struct need {
    uint64_t weights, kv, steps;
};

void nb_vulkan_memory(const struct nb_vulkan_device *d, uint64_t *ret_used, uint64_t *ret_free)
{
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 p2 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2, .pNext = &budget};
    uint64_t used = d->taken, size = d->info.memory;
    if (d->has_budget) {
        d->vk.GetPhysicalDeviceMemoryProperties2(d->physical, &p2);
        used = budget.heapUsage[d->heap];
        size = budget.heapBudget[d->heap];
    }
    size = d->memory_limit && d->memory_limit < size ? d->memory_limit : size;
    *ret_used = used;
    *ret_free = size > used ? size - used : 0;
}

// Pieces begin and end at pages: at most two more for each matrix.
static uint64_t weights_of(const struct nb_vulkan_device *d, const struct nb_plan *plan)
{
    bool copies = d->weights == NB_WEIGHTS_COPIED || !d->info.unified;
    return copies ? nb_plan_weight_bytes(plan) + (uint64_t)plan->n_ops * 6 * PAGE : 0;
}

static struct need need_of(const struct nb_vulkan_device *d, const struct nb_plan *plan,
                           uint32_t max_rows, uint32_t kv_blocks)
{
    return (struct need){.weights = weights_of(d, plan),
                         .kv = nb_vulkan_kv_block_bytes(&d->base, plan) * (uint64_t)kv_blocks,
                         .steps = nb_vulkan_step_bytes(d, plan, max_rows)};
}

static double mb(uint64_t bytes)
{
    return (double)bytes / 1e6;
}

static uint64_t sum(const struct need *n)
{
    return n->weights + n->kv + n->steps;
}

uint64_t nb_vulkan_kv_room(const struct nb_device *base, const struct nb_plan *plan,
                           uint32_t max_rows)
{
    const struct nb_vulkan_device *d = (const struct nb_vulkan_device *)base;
    uint64_t used, left, room = (uint64_t)d->max_range * plan->n_layers;
    nb_vulkan_memory(d, &used, &left);
    const uint32_t context = (plan->hp.context + NB_KV_POSITIONS - 1) / NB_KV_POSITIONS;
    struct need rest = need_of(d, plan, max_rows, 0), one = need_of(d, plan, max_rows, context);
    uint64_t quarter = d->info.memory / KV_SHARE,
             beside = left > sum(&rest) ? left - sum(&rest) : 0;
    room = quarter < room ? quarter : room;
    room = beside < room ? beside : room;
    // Where not even one context fits, opening the model says what is missing.
    return room > one.kv ? room : one.kv;
}

// How many of the plan's last layers the device could have, beside its head; 0: none, or another
// device has the head.
static uint32_t layers_that_fit(const struct nb_vulkan_device *d, const struct nb_plan *plan,
                                uint32_t max_rows, uint32_t kv_blocks, uint64_t left)
{
    uint32_t end = plan->first_layer + plan->n_layers, n = 0;
    if (!plan->begins || !plan->ends)
        return 0;
    for (; n + 1 < plan->n_layers; n++) {
        struct nb_plan last = nb_plan_part(plan, end - n - 1, end, false, true);
        struct need need = need_of(d, &last, max_rows, kv_blocks);
        if (sum(&need) > left)
            break;
    }
    return n;
}

int nb_vulkan_budget_check(const struct nb_device_model *m, struct nb_error *error)
{
    const struct nb_vulkan_device *d = m->device;
    uint64_t used, left;
    char split[32] = "";
    struct need need = need_of(d, m->plan, m->extent.max_rows, m->extent.kv_blocks);
    nb_vulkan_memory(d, &used, &left);
    if (sum(&need) <= left)
        return 0;
    uint32_t fit = layers_that_fit(d, m->plan, m->extent.max_rows, m->extent.kv_blocks, left);
    if (fit > 0)
        snprintf(split, sizeof(split), "--gpu-layers %u, ", fit);
    return nb_fail(
        error, -ENOMEM,
        "it needs %.1f MB (weights %.1f, KV cache %.1f, steps %.1f) and %.40s has %.1f MB "
        "left: use a smaller type, %sor the CPU",
        mb(sum(&need)), mb(need.weights), mb(need.kv), mb(need.steps), d->info.name, mb(left),
        split);
}
