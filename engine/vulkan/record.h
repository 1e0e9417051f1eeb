// Command buffers of a model's program: recorded once for each bucket of rows, cut into
// submissions, and timed now and then.
#pragma once

#include "engine/device.h"
#include "engine/op.h"
#include "engine/vulkan/program.h"

// A submission: dispatches [first, end), and the timestamps that it writes.
struct nb_vulkan_segment {
    VkCommandBuffer commands; // that take the time before and after each section of the model,
    VkCommandBuffer untimed;  // or not; VK_NULL_HANDLE until the recording is measured
    uint32_t first, end, query, n_queries;
};

// What a recording runs: the body of a step, to the keys and values of the last layer; what comes
// after them, for the rows whose result is wanted, as far as vectors, logits, or the best of these.
enum nb_vulkan_scope {
    NB_VULKAN_BODY,
    NB_VULKAN_SHOWN,
    NB_VULKAN_LOGITS,
    NB_VULKAN_BEST,
    NB_VULKAN_SCOPES
};

// A scope for as many rows as a bucket has.
struct nb_vulkan_recording {
    struct nb_vulkan_segment *segments;
    uint32_t n;
    uint32_t steps;                       // that it has run
    bool measured;                        // it is cut by the times of its parts
    struct nb_op_time times[NB_SECTIONS]; // what it took when it was timed last
};

struct nb_vulkan_recordings {
    struct nb_vulkan_recording of[NB_VULKAN_SCOPES][NB_VULKAN_BUCKETS];
    VkQueryPool queries; // of each segment one before each part, and one at the end
    uint64_t *ticks;     // room for all of them
    uint64_t *part_ns;   // what a part took in the last step that was timed, by its first op
    struct nb_op_time times[NB_SECTIONS];
};

int nb_vulkan_recordings_init(struct nb_device_model *m);
void nb_vulkan_recordings_finish(struct nb_device_model *m);
// A bucket's, recorded at its first use.
int nb_vulkan_recording_get(struct nb_device_model *m, uint32_t bucket, enum nb_vulkan_scope scope,
                            struct nb_vulkan_recording **ret);
// Says in the step buffer how many workgroups each of its dispatches has for so many rows.
void nb_vulkan_recording_size(struct nb_device_model *m, const struct nb_vulkan_recording *r,
                              uint32_t rows);
// Whether its next run is one that is timed.
bool nb_vulkan_recording_is_timed(const struct nb_vulkan_recording *r);
// After a run: counts its times, and cuts it again where its submissions are too long, or too
// short.
int nb_vulkan_recording_learn(struct nb_device_model *m, uint32_t bucket,
                              enum nb_vulkan_scope scope, struct nb_vulkan_recording *r);
// What was recorded for a bucket; it is recorded again at its next use.
void nb_vulkan_recordings_forget(struct nb_device_model *m, uint32_t bucket);

static inline uint32_t nb_vulkan_bucket(uint32_t rows)
{
    uint32_t bucket = 0;
    while (1u << bucket < rows)
        bucket++;
    return bucket;
}
