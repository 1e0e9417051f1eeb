// The float engine on a Vulkan device, from the inside. open.c says what the device cannot do and
// makes what stays; tables.c is what it is told of a batch; weights.c sends tensors and brings
// their gradients; steps.c makes dispatches of a span's steps, which record.c records; passes.c
// runs spans. The shaders are shaders/train_*.comp. Nobody else includes it.
#pragma once

#include "engine/vulkan/device.h"
#include "engine/vulkan/pipelines.h"
#include "engine/vulkan/sets.h"
#include "grad/room.h"
#include "shaders/train.h"

#define NB_TRAIN_TILE 64 // rows and columns of a product that a workgroup has

// Where a step's tensors begin in its span's buffer of them, in floats; NONE: it has none.
struct nb_placed {
    uint32_t matrix, weight, bias;
};

// The tensors of a span as the device has them.
struct nb_resident {
    struct nb_placed *steps;
    uint32_t floats;
    struct nb_vulkan_buffer buffer;
    uint64_t sent; // the hash of what they were sent from; 0: never
};

// The rows of a table that a batch looks up, each once, in ascending order, and in words of the
// tables: which of them each row of the batch has; where each one's rows begin in the list; the
// list.
struct nb_looked {
    uint32_t *of, n;
    uint32_t index, first, list;
};
#define NB_LOOKUPS (NB_LOOKUP_FIRST + 1)

struct nb_grad_vulkan {
    struct nb_vulkan_device *device;
    char name[64]; // for lines
    struct nb_vulkan_pipelines pipelines;
    struct nb_resident *resident; // [spans]
    struct nb_vulkan_buffer tables, values, gradients, sums, staging;
    struct nb_looked looked[NB_LOOKUPS];
    uint32_t angles, tiles, n_tiles; // in words of the tables; tiles of attention
    uint32_t longest;                // sequence of the batch
    uint32_t *at;                    // [buffers of the largest span]: where each begins, in floats
    // Of a submission, and of a dispatch: milliseconds of a GPU, seconds of Mesa's CPU driver.
    double operations;
    // Of a sum in one dispatch. A longer one is made of several, which are added one after the
    // other: it rounds less, as the CPU's does by its blocks, and Mesa's CPU driver before 25 cuts
    // long loops short.
    uint32_t depth;
};

// A span's run as it is recorded. After a failure nothing more is.
struct nb_recording {
    struct nb_grad *g;
    struct nb_grad_vulkan *v;
    const struct nb_span *span;
    const struct nb_resident *weights;
    uint32_t rows;
    uint32_t looked;    // where looked up rows begin among the values, in floats
    const bool *wanted; // of each buffer, whether its gradient is; NULL forward
    struct nb_vulkan_sets sets;
    VkDescriptorSet set;
    VkCommandBuffer commands; // or none
    double operations;        // in it
    int rc;
};

// --- record.c

enum nb_train_shader {
    NB_TRAIN_ATTENTION,
    NB_TRAIN_GEMM,
    NB_TRAIN_NORM,
    NB_TRAIN_ROWS,
    NB_TRAIN_SUMS,
    NB_TRAIN_SHADERS
};

// Makes the shaders' modules. A negative errno.
int nb_record_open(struct nb_grad_vulkan *v);
// With all buffers there.
void nb_record_begin(struct nb_recording *r);
// One dispatch; what is recorded after it waits for it. `push`: one of shaders/train.h's structs.
// Submissions have so many operations at most, beside the last dispatch's.
struct nb_train_dispatch {
    enum nb_train_shader shader;
    uint32_t mode, chunks;
    const void *push;
    uint32_t bytes;
    uint32_t x, y; // workgroups
    double operations;
};
void nb_record(struct nb_recording *r, const struct nb_train_dispatch *d);
// The same of units that lie one behind the other, `each` in a workgroup.
void nb_record_units(struct nb_recording *r, struct nb_train_dispatch *d, uint64_t units,
                     uint32_t each);
// Floats between two buffers, and zeros.
void nb_record_copy(struct nb_recording *r, const struct nb_vulkan_buffer *from, size_t from_at,
                    const struct nb_vulkan_buffer *to, size_t to_at, size_t floats);
void nb_record_zeros(struct nb_recording *r, const struct nb_vulkan_buffer *to);
// Submits all and waits; after a failure, whichever, it clears away. r->rc.
int nb_record_end(struct nb_recording *r);
// A buffer of so many floats or more; what it held is lost where it grows. -E2BIG: a shader would
// not see all of it; -ENOMEM.
int nb_vulkan_fit(struct nb_grad_vulkan *v, size_t floats, enum nb_vulkan_memory where,
                  struct nb_vulkan_buffer *b);
// Floats from the host's memory to a buffer's. 0 or a negative errno.
int nb_vulkan_send(struct nb_grad_vulkan *v, const float *x, size_t floats,
                   const struct nb_vulkan_buffer *to, size_t at);
// And a buffer's floats to the host: copied, or added to what is there.
int nb_vulkan_bring(struct nb_grad_vulkan *v, const struct nb_vulkan_buffer *from, size_t at,
                    size_t floats, float *to);
int nb_vulkan_add(struct nb_grad_vulkan *v, const struct nb_vulkan_buffer *from, size_t at,
                  size_t floats, float *to);

// --- tables.c

int nb_tables_make(struct nb_grad *g, const struct nb_batch *b, struct nb_error *error);
void nb_tables_finish(struct nb_grad_vulkan *v);

// --- weights.c

// Lays out each span's tensors. -E2BIG with its line, -ENOMEM.
int nb_resident_create(struct nb_grad *g, struct nb_error *error);
void nb_resident_destroy(struct nb_grad *g);
// Sends what has changed.
int nb_resident_send(struct nb_grad *g, const struct nb_span *s);
// Whether some tensor's gradient is wanted; to add those that the device has summed.
bool nb_resident_learns(const struct nb_span *s);
int nb_resident_bring(struct nb_grad *g, const struct nb_span *s);

// --- steps.c

bool nb_vulkan_has_kind(const struct nb_step *s);
void nb_record_forward(struct nb_recording *r, const struct nb_step *s);
void nb_record_backward(struct nb_recording *r, const struct nb_step *s);

// --- passes.c

// Floats of a span's values for so many rows; ret_at: where each buffer begins, or NULL;
// ret_looked: where looked up rows do, or NULL.
size_t nb_values_lay(const struct nb_grad *g, const struct nb_span *s, uint32_t rows,
                     uint32_t *ret_at, uint32_t *ret_looked);
// Where an EMBED's looked up rows begin.
uint32_t nb_looked_at(const struct nb_recording *r, const struct nb_step *s);
int nb_vulkan_forward(struct nb_grad *g, const struct nb_run *run);
int nb_vulkan_backward(struct nb_grad *g, const struct nb_run *run);

static inline uint32_t nb_span_number(const struct nb_grad *g, const struct nb_span *s)
{
    return (uint32_t)(s - g->spans);
}
