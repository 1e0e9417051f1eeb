// What the parts of gpu-check share: a Vulkan device made by hand, with all that it offers, which
// the engine's is not; and rows of results. The engine's own objects are used where they suffice.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/vulkan/api.h"
#include "engine/vulkan/tier.h"

enum { GPU_SKIP = 77 }; // exit status of a part that does not apply; its last line says why

// Subcommands (main.c). They print rows to stdout, words for a person to stderr.
int gpu_facts(int argc, char **argv);
int gpu_limits(int argc, char **argv);
int gpu_gaps(int argc, char **argv);
int gpu_logits(int argc, char **argv);
int gpu_speed(int argc, char **argv);
int gpu_training(int argc, char **argv);
int gpu_model(int argc, char **argv);
int gpu_order(int argc, char **argv);
int gpu_loader(int argc, char **argv);
int gpu_run(int argc, char **argv);

// One line of JSON, seen at once by who reads the pipe. Takes the row; NULL ends the program.
void gpu_row(json_t *row);
// Ends the program with a line that says what failed.
__attribute__((noreturn, format(printf, 1, 2))) void gpu_fail(const char *format, ...);
__attribute__((noreturn, format(printf, 1, 2))) void gpu_skip(const char *format, ...);
void gpu_check(int rc, const char *what); // fails with strerror where rc is negative
double gpu_now(void);                     // seconds
// The N of "vulkanN"; ends the program for another name.
uint32_t gpu_index(const char *device);

struct gpu {
    struct nb_vk vk;
    VkPhysicalDevice physical;
    VkDevice device;
    VkQueue queue;
    VkCommandPool commands;
    VkQueryPool queries;
    VkDescriptorPool sets;
    VkDescriptorSetLayout set_layout;
    VkPipelineLayout layout;
    VkPhysicalDeviceProperties properties;
    VkPhysicalDeviceMemoryProperties memory;
    struct nb_tier_facts facts;
    bool is_cpu, has_address, has_dot, has_matrix;
    uint64_t tick_mask; // of a timestamp
    PFN_vkGetBufferDeviceAddress address_of;
};

struct gpu_buffer {
    VkBuffer buffer;
    VkDeviceMemory memory;
    VkDeviceSize bytes;
};

// A compute shader with the buffers that it reads: 0 the texels of a window, 1 the same as storage.
struct gpu_kernel {
    VkShaderModule module;
    VkPipeline pipeline;
};

struct gpu_push {
    uint32_t address[2], count;
};

void gpu_open(struct gpu *g, uint32_t index);
void gpu_close(struct gpu *g);
// Memory of a type that has all of `flags`, each word of it `word`; false where there is none, or
// not so much.
bool gpu_buffer_init(struct gpu *g, VkDeviceSize bytes, VkMemoryPropertyFlags flags, uint32_t word,
                     struct gpu_buffer *ret);
void gpu_buffer_finish(struct gpu *g, struct gpu_buffer *b);
// `shape`: of a fragment, for constants 20 to 22; or NULL.
void gpu_kernel_init(struct gpu *g, const uint32_t *code, size_t bytes, const uint32_t *shape,
                     struct gpu_kernel *ret);
void gpu_kernel_finish(struct gpu *g, struct gpu_kernel *k);
// A window of the buffer, `texels`: as such too. The view goes with the device's end.
VkDescriptorSet gpu_bind(struct gpu *g, const struct gpu_buffer *b, VkDeviceSize offset,
                         VkDeviceSize bytes, VkBufferView *ret_view);
// Records what `fill` does between two timestamps, runs it `runs` times and returns the shortest,
// in seconds.
double gpu_time(struct gpu *g, void (*fill)(struct gpu *g, VkCommandBuffer c, void *user),
                void *user, int runs);

// limits.c: what products are held against, measured now.
struct gpu_limit {
    double texels, storage, address; // bytes a second of reads; 0: the device has no such way
    double dot, matrix;              // int8 operations a second, a multiply and an add being two
};
// `tell`: a row for each shape of fragments.
void gpu_limit_measure(uint32_t index, bool tell, struct gpu_limit *ret);
double gpu_limit_bandwidth(const struct gpu_limit *l); // the best of the three
