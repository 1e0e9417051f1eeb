// What the Vulkan device makes of what a driver reports, on drivers that are not here: which queues
// and memory it takes, what it refuses, how it reads a clock, and what its submissions wait for.
// The driver's functions are this file's.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/vulkan/device.h"
#include "engine/vulkan/list.h"

#define DRAWS    (VK_QUEUE_GRAPHICS_BIT | VK_QUEUE_COMPUTE_BIT | VK_QUEUE_TRANSFER_BIT)
#define COMPUTES (VK_QUEUE_COMPUTE_BIT | VK_QUEUE_TRANSFER_BIT)
#define COPIES   VK_QUEUE_TRANSFER_BIT

static void queues(void **state)
{
    static const struct {
        VkQueueFamilyProperties q[4];
        uint32_t n;
        int rc;
        uint32_t compute, transfer;
    } cases[] = {
        {{{DRAWS, 16, 64, {0}}, {COPIES, 2, 64, {0}}, {COMPUTES, 8, 64, {0}}}, 3, 0, 2, 1},
        {{{DRAWS, 1, 36, {0}}}, 1, 0, 0, 0},
        {{{DRAWS, 1, 64, {0}}, {COMPUTES, 4, 0, {0}}}, 2, 0, 0, 0}, // keeps no time
        {{{COMPUTES, 1, 64, {0}}, {DRAWS, 1, 64, {0}}, {COMPUTES, 1, 64, {0}}}, 3, 0, 0, 0},
        {{{COPIES, 1, 64, {0}}, {VK_QUEUE_GRAPHICS_BIT, 1, 64, {0}}}, 2, -ENOTSUP, 9, 9},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint32_t compute = 9, transfer = 9;
        assert_int_equal(nb_vulkan_choose_queues(cases[i].q, cases[i].n, &compute, &transfer),
                         cases[i].rc);
        assert_int_equal(compute, cases[i].compute);
        assert_int_equal(transfer, cases[i].transfer);
    }
}

// The least that the specification allows, but for one limit.
static void bindings(void **state)
{
    const VkPhysicalDeviceLimits enough = {.maxPerStageDescriptorStorageBuffers = 5,
                                           .maxPerStageDescriptorSampledImages = 16,
                                           .maxDescriptorSetStorageBuffers = 24,
                                           .maxDescriptorSetSampledImages = 96,
                                           .maxPerStageResources = 128,
                                           .maxPushConstantsSize = 128};
    assert_string_equal(nb_vulkan_lacking(&enough), "");
    VkPhysicalDeviceLimits l = enough;
    l.maxPerStageDescriptorStorageBuffers = 4;
    assert_non_null(strstr(nb_vulkan_lacking(&l), "storage buffers"));
    l = enough;
    l.maxPerStageDescriptorSampledImages = 4;
    assert_non_null(strstr(nb_vulkan_lacking(&l), "texel buffers"));
    l = enough;
    l.maxPerStageResources = 9;
    assert_non_null(strstr(nb_vulkan_lacking(&l), "resources"));
}

static void clocks_wrap(void **state)
{
    const struct nb_vulkan_device d = {.tick_ns = 2, .tick_mask = UINT64_MAX >> (64 - 36)};
    assert_true(nb_vulkan_elapsed(&d, 100, 150) == 100);
    assert_true(nb_vulkan_elapsed(&d, (1ull << 36) - 10, 5) == 30);
    // What a driver leaves in the other bits is no time.
    assert_true(nb_vulkan_elapsed(&d, 1ull << 40 | 7, 9) == 4);
}

// --- Memory

static uint32_t taken, full; // the type of the last allocation, and types that have no room
static char mapped[64];

static VkResult create_buffer(VkDevice d, const VkBufferCreateInfo *info,
                              const VkAllocationCallbacks *a, VkBuffer *ret)
{
    *ret = (VkBuffer)(uintptr_t)1;
    return VK_SUCCESS;
}

static void get_requirements(VkDevice d, VkBuffer b, VkMemoryRequirements *ret)
{
    *ret = (VkMemoryRequirements){.size = 64, .alignment = 1, .memoryTypeBits = UINT32_MAX};
}

static VkResult allocate(VkDevice d, const VkMemoryAllocateInfo *info,
                         const VkAllocationCallbacks *a, VkDeviceMemory *ret)
{
    if (full >> info->memoryTypeIndex & 1)
        return VK_ERROR_OUT_OF_DEVICE_MEMORY;
    taken = info->memoryTypeIndex;
    *ret = (VkDeviceMemory)(uintptr_t)1;
    return VK_SUCCESS;
}

static VkResult bind_buffer(VkDevice d, VkBuffer b, VkDeviceMemory m, VkDeviceSize at)
{
    return VK_SUCCESS;
}

static VkResult map(VkDevice d, VkDeviceMemory m, VkDeviceSize at, VkDeviceSize n,
                    VkMemoryMapFlags f, void **ret)
{
    *ret = mapped;
    return VK_SUCCESS;
}

static void destroy_buffer(VkDevice d, VkBuffer b, const VkAllocationCallbacks *a)
{
}

static void free_memory(VkDevice d, VkDeviceMemory m, const VkAllocationCallbacks *a)
{
}

static struct nb_vulkan_device fake_device(void)
{
    struct nb_vulkan_device d = {.max_allocation = 1 << 20,
                                 .vk = {.CreateBuffer = create_buffer,
                                        .GetBufferMemoryRequirements = get_requirements,
                                        .AllocateMemory = allocate,
                                        .BindBufferMemory = bind_buffer,
                                        .MapMemory = map,
                                        .DestroyBuffer = destroy_buffer,
                                        .FreeMemory = free_memory}};
    d.copies = &d.compute;
    return d;
}

static uint32_t type_for(struct nb_vulkan_device *d, enum nb_vulkan_memory where)
{
    struct nb_vulkan_buffer b;
    d->copies = &d->compute;
    assert_int_equal(nb_vulkan_buffer_init(d, 64, where, &b), 0);
    assert_int_equal(b.map != NULL, where != NB_VULKAN_DEVICE);
    nb_vulkan_buffer_finish(d, &b);
    return taken;
}

static void memory(void **state)
{
    const VkMemoryPropertyFlags own = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
                                host = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
                                       VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
                                cached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
    struct nb_vulkan_device d = fake_device();
    // As a card with a window through the bus lists them, a special kind first.
    d.memory = (VkPhysicalDeviceMemoryProperties){
        .memoryTypeCount = 5,
        .memoryTypes = {{own | host | VK_MEMORY_PROPERTY_DEVICE_COHERENT_BIT_AMD, 0},
                        {own, 0},
                        {host, 1},
                        {host | cached, 1},
                        {own | host, 2}},
        .memoryHeapCount = 3};
    full = 0;
    assert_int_equal(type_for(&d, NB_VULKAN_DEVICE), 1);
    assert_int_equal(type_for(&d, NB_VULKAN_HOST), 3);
    assert_int_equal(type_for(&d, NB_VULKAN_TOLD), 4);
    full = 1 << 4; // the window
    assert_int_equal(type_for(&d, NB_VULKAN_TOLD), 3);
    d.memory.memoryTypeCount = 4; // none
    full = 0;
    assert_int_equal(type_for(&d, NB_VULKAN_TOLD), 3);
}

// --- Submissions

static uint32_t waits;
static uint64_t waited;

static VkResult submit(VkQueue q, uint32_t n, const VkSubmitInfo *info, VkFence fence)
{
    const VkTimelineSemaphoreSubmitInfo *timeline = info->pNext;
    waits = info->waitSemaphoreCount;
    waited = waits ? timeline->pWaitSemaphoreValues[0] : 0;
    return VK_SUCCESS;
}

// A submission waits for copies that none before it on its queue has waited for.
static void copies_are_waited_for_once(void **state)
{
    struct nb_vulkan_device d = {.vk = {.QueueSubmit = submit}};
    uint64_t number;
    d.copies = &d.transfer;
    assert_int_equal(nb_vulkan_submit(&d, &d.compute, NULL, &number), 0);
    assert_int_equal(waits, 0); // nothing was copied
    assert_int_equal(nb_vulkan_submit(&d, &d.transfer, NULL, &number), 0);
    assert_int_equal(nb_vulkan_submit(&d, &d.transfer, NULL, &number), 0);
    assert_int_equal(waits, 0);
    assert_int_equal(nb_vulkan_submit(&d, &d.compute, NULL, &number), 0);
    assert_true(waits == 1 && waited == 2);
    assert_int_equal(nb_vulkan_submit(&d, &d.compute, NULL, &number), 0);
    assert_int_equal(waits, 0);
    assert_int_equal(nb_vulkan_submit(&d, &d.transfer, NULL, &number), 0);
    assert_int_equal(nb_vulkan_submit(&d, &d.compute, NULL, &number), 0);
    assert_true(waits == 1 && waited == 3);
    // One queue for all needs no wait.
    struct nb_vulkan_device one = {.vk = {.QueueSubmit = submit}};
    one.copies = &one.compute;
    assert_int_equal(nb_vulkan_submit(&one, &one.compute, NULL, &number), 0);
    assert_int_equal(waits, 0);
}

// --- Modules

static uint32_t count(const uint32_t *code, size_t words, uint32_t op)
{
    uint32_t n = 0;
    for (size_t at = 5; at < words; at += code[at] >> 16)
        n += (code[at] & 0xffff) == op;
    return n;
}

// Each module keeps what it has, and gains a capability, first of all, and a mode of its entry
// point.
static void halves_are_preserved(void **state)
{
    for (int i = 0; i < NB_MODULES; i++) {
        const uint32_t *code = nb_shader_code[i].words;
        const size_t words = nb_shader_code[i].bytes / 4;
        uint32_t *more = malloc(nb_shader_code[i].bytes + NB_VULKAN_PRESERVE_BYTES);
        assert_non_null(more);
        assert_int_equal(nb_vulkan_preserve_halves(code, words, more), words + 6);
        assert_int_equal(more[5], 2 << 16 | 17);
        assert_int_equal(more[6], 4464);
        assert_int_equal(count(code, words, 15), 1); // entry points
        assert_int_equal(count(more, words + 6, 16), count(code, words, 16) + 1);
        assert_int_equal(count(more, words + 6, 17), count(code, words, 17) + 1);
        size_t at = 5;
        while ((more[at] & 0xffff) != 15)
            at += more[at] >> 16;
        const uint32_t entry = more[at + 2];
        at += more[at] >> 16;
        assert_true(more[at] == (4 << 16 | 16) && more[at + 1] == entry);
        assert_true(more[at + 2] == 4459 && more[at + 3] == 16);
        // The rest follows as it was.
        assert_memory_equal(more + at + 4, code + at - 2, (words - (at - 2)) * 4);
        const char *folder = getenv("NIBBLE_TEST_MODULES"); // for spirv-val
        if (folder) {
            char path[256];
            snprintf(path, sizeof(path), "%s/%d.spv", folder, i);
            FILE *f = fopen(path, "wb");
            assert_non_null(f);
            assert_int_equal(fwrite(more, 4, words + 6, f), words + 6);
            fclose(f);
        }
        free(more);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(queues),
        cmocka_unit_test(bindings),
        cmocka_unit_test(clocks_wrap),
        cmocka_unit_test(memory),
        cmocka_unit_test(copies_are_waited_for_once),
        cmocka_unit_test(halves_are_preserved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
