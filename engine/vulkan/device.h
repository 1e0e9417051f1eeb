// A Vulkan device from the inside: its queue, its memory, its pipelines. For engine/vulkan/ alone.
#pragma once

#include <stdint.h>

#include "engine/device.h"
#include "engine/vulkan/api.h"
#include "engine/vulkan/cache.h"
#include "engine/vulkan/tier.h"
#include "engine/vulkan/vulkan.h"

struct nb_vulkan_cache { // cache.h
    struct nb_vulkan_cache_id id;
    VkPipelineCache pipelines;
    struct nb_vulkan_choice *choices;
    uint32_t n_choices;
    uint64_t saved; // the hash of what was last read or saved
};

// Submissions are numbered from 1; the timeline is at the number of the last that is done.
struct nb_vulkan_queue {
    VkQueue queue;
    uint32_t family;
    VkCommandPool commands;
    VkSemaphore timeline;
    uint64_t submitted;
    uint64_t
        joined; // the last number of the queue that fills buffers which its submissions wait for
};

struct nb_vulkan_device {
    struct nb_device base;
    struct nb_vk vk;
    struct nb_vulkan_device_info info;
    struct nb_tier_facts facts;
    const struct nb_tier *tier;
    uint32_t index;
    VkPhysicalDevice physical;
    VkDevice device;
    struct nb_vulkan_queue compute, transfer;
    struct nb_vulkan_queue *copies; // the one that fills buffers: transfer where there is one
    uint64_t timeout_ns;            // of a submission
    bool gone;                      // lost, or it hangs: of no use any more
    bool hangs;                     // nothing it was given may be freed
    struct nb_device_model *left;   // the model that it hangs in
    char doing[64];                 // for a fault
    char fault[192];                // why it is gone, or out of memory; "": neither
    bool can_import;
    enum nb_weights weights;
    char weights_why[64];
    VkDeviceSize import_alignment, buffer_alignment;
    VkDeviceSize max_range;  // that a shader sees of a buffer
    VkDeviceSize max_window; // of weights that a dispatch binds
    VkDeviceSize max_buffer; // of weights
    VkDeviceSize max_allocation;
    uint32_t max_groups, max_groups_y; // workgroups of a dispatch
    uint32_t max_local, max_shared;    // invocations of a workgroup, and bytes that they share
    double tick_ns;                    // of a timestamp, of whose bits these count
    uint64_t tick_mask;
    VkPhysicalDeviceMemoryProperties memory;
    uint32_t heap;         // the largest of the device's own
    uint64_t taken;        // of it, by us
    uint64_t memory_limit; // or 0
    bool has_budget;       // the driver keeps account of its heaps
    VkDescriptorSetLayout set_layout;
    VkPipelineLayout layout;
    VkShaderModule module[NB_MODULES];
    struct nb_vulkan_cache cache;
    bool warm;
    uint32_t tile;                     // that all GEMMs take, from 1 on; 0: what is best
    struct nb_vulkan_store *store;     // its pipelines (store.h)
    struct nb_vulkan_clients *clients; // for their matrices (clients.c); NULL until the first
};

struct nb_vulkan_buffer {
    VkBuffer buffer;
    VkDeviceMemory memory;
    VkDeviceSize bytes;
    uint64_t taken; // of the device's own heap
    void *map;      // or NULL
    void *pages;    // zeroed by the kernel and imported, or NULL
};

// Memory that the host writes and reads; the device's own; and what the host writes and the device
// reads: its own that the host can write, where there is such. The host reads that slowly.
enum nb_vulkan_memory { NB_VULKAN_HOST, NB_VULKAN_DEVICE, NB_VULKAN_TOLD };

int nb_vulkan_buffer_init(struct nb_vulkan_device *d, VkDeviceSize bytes,
                          enum nb_vulkan_memory where, struct nb_vulkan_buffer *ret);
// Host memory as the buffer's own, whole pages, which must outlive it. -ENOTSUP where the device
// cannot.
int nb_vulkan_buffer_import(struct nb_vulkan_device *d, void *host, VkDeviceSize bytes,
                            struct nb_vulkan_buffer *ret);
// Of the device's own memory; where the host plays the device, of pages that are zero and take no
// memory until they are used.
int nb_vulkan_buffer_lazy(struct nb_vulkan_device *d, VkDeviceSize bytes,
                          struct nb_vulkan_buffer *ret);
void nb_vulkan_buffer_finish(struct nb_vulkan_device *d, struct nb_vulkan_buffer *b);

// budget.c. What this process has of the device's own memory, and could still have.
void nb_vulkan_memory(const struct nb_vulkan_device *d, uint64_t *ret_used, uint64_t *ret_free);

int nb_vulkan_queue_init(struct nb_vulkan_device *d, uint32_t family, struct nb_vulkan_queue *ret);
void nb_vulkan_queue_finish(struct nb_vulkan_device *d, struct nb_vulkan_queue *q);
int nb_vulkan_begin_on(struct nb_vulkan_device *d, struct nb_vulkan_queue *q, bool once,
                       VkCommandBuffer *ret);
void nb_vulkan_release(struct nb_vulkan_device *d, struct nb_vulkan_queue *q, VkCommandBuffer *c);
// Gives the queue one more submission and does not wait for it.
int nb_vulkan_submit(struct nb_vulkan_device *d, struct nb_vulkan_queue *q, VkCommandBuffer c,
                     uint64_t *ret_number);
// -ETIMEDOUT when the device hangs.
int nb_vulkan_wait(struct nb_vulkan_device *d, struct nb_vulkan_queue *q, uint64_t number);
// Says what comes next, for a fault; an old one that left the device as it was is forgotten.
__attribute__((format(printf, 2, 3))) void nb_vulkan_doing(struct nb_vulkan_device *d,
                                                           const char *format, ...);
// An errno for what a call returned; a failure's cause is kept for nb_vulkan_fault, with what the
// device was `doing`.
int nb_vulkan_failed(struct nb_vulkan_device *d, VkResult r, const char *call);
struct nb_op;
void nb_vulkan_fault_at(struct nb_vulkan_device *d, const struct nb_op *op); // adds where
// Why the device is lost, after a negative errno; or NULL.
const char *nb_vulkan_fault(const struct nb_device *d);

// On the queue that computes.
int nb_vulkan_begin(struct nb_vulkan_device *d, bool once, VkCommandBuffer *ret);
int nb_vulkan_run_once(struct nb_vulkan_device *d, VkCommandBuffer commands); // and frees

// Whether the driver cuts loops short, and the longest context whose loops it runs to their end
// (UINT32_MAX: any).
bool nb_vulkan_cuts_loops(const struct nb_vulkan_device_info *info);
uint32_t nb_vulkan_steps(const struct nb_vulkan_device *d); // that its loops may have, together
uint32_t nb_vulkan_longest_context(const struct nb_vulkan_device *d, uint32_t k_dim,
                                   uint32_t v_dim);
// The same of columns: of one matrix, or of two that a dispatch takes one after the other, whose
// rows of the result it may finish.
uint32_t nb_vulkan_widest_matrix(const struct nb_vulkan_device *d, bool floats, uint32_t matrices,
                                 uint32_t finished_rows);
uint32_t nb_vulkan_widest(const struct nb_device *d, const struct nb_packed *w);

// modules.c. The module says that halves keep their subnormals where the device can: attention
// reads keys and values so, and a driver may take them for 0 otherwise.
int nb_vulkan_module(struct nb_vulkan_device *d, const struct nb_shader_code *code,
                     VkShaderModule *ret);
#define NB_VULKAN_PRESERVE_BYTES (6 * 4) // that this adds to a module's code; returns words
size_t nb_vulkan_preserve_halves(const uint32_t *code, size_t words, uint32_t *ret);

// Nanoseconds between two timestamps.
double nb_vulkan_elapsed(const struct nb_vulkan_device *d, uint64_t from, uint64_t to);

// Invocations of a workgroup.
uint32_t nb_vulkan_local(const struct nb_vulkan_device *d, const struct nb_tier_variant *v);
int nb_vulkan_pipeline(struct nb_vulkan_device *d, const struct nb_tier_variant *v,
                       const uint32_t constants[CONST_TIER], VkPipeline *ret);

// clients.c
int nb_vulkan_matrix_open(struct nb_device *d, struct nb_device_model *dm,
                          const struct nb_packed *w, struct nb_device_matrix **ret);
void nb_vulkan_matrix_close(struct nb_device_matrix *m);
int nb_vulkan_gemm(struct nb_device_matrix *m, const struct nb_product *p);
int nb_vulkan_dequantize(struct nb_device_matrix *m, const struct nb_dequantize *p);
void nb_vulkan_clients_destroy(struct nb_vulkan_device *d);

// What is only read is read as texels of four words; the rest are storage buffers.
VkDescriptorType nb_vulkan_descriptor(uint32_t binding);

extern const struct nb_device_ops nb_vulkan_ops;
