// What runs the engine's ops: the native CPU, or a Vulkan device. A device takes a model's plan
// once, prepares it, and then runs steps: a device may interpret the plan (CPU) or have it recorded
// (Vulkan). KV memory belongs to the device model; its blocks are numbered, and who owns which is
// the engine's business.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/candidate.h"
#include "tensor/fail.h"

struct nb_plan;    // engine/plan.h: the architecture as a list of ops over the image's tensors
struct nb_packed;  // tensor/layout.h
struct nb_adapter; // engine/adapter.h

enum nb_device_kind {
    NB_DEVICE_CPU,
    NB_DEVICE_GPU,
    NB_DEVICE_EMULATED, // a Vulkan device that a CPU plays
};

struct nb_device_info {
    char name[64]; // "cpu", "vulkan0"
    char description[128];
    char driver[96];
    char isa[32]; // ISA level or shader tier
    enum nb_device_kind kind;
    bool has_uuid;
    uint8_t uuid[16];              // the same wherever the device is plugged in
    uint32_t drm_major, drm_minor; // of its render node; 0, 0: unknown
    char pci[16];                  // "0000:01:00.0"; "": unknown
    char fault[192];               // why it cannot be used; "": it can
    uint32_t threads;
    uint64_t memory_bytes; // that the device can use
    uint64_t memory_used;  // of it, by this process
    uint64_t memory_free;  // that it could still have
    // How weights come to the device, as the first model showed it: "imported: ..." or "copied:
    // ...".
    char weights[80];
};

// A row is one token of one sequence. Rows of a sequence are consecutive and in the order of
// position.
struct nb_rows {
    uint32_t n;
    const int32_t *token;
    const uint32_t *position;
    const uint32_t *sequence;      // index into `blocks`
    const uint32_t *const *blocks; // [sequence]: KV block numbers, by position / 32
    // [sequence], or NULL: none has one. Sequences of one adapter are neighbours, where whoever
    // makes the step has a choice.
    const struct nb_adapter *const *adapters;
    uint32_t n_logits;
    const uint32_t *logits_row; // the rows whose logits, or vectors, are wanted, ascending
    // [n_logits][embedding], or NULL: their vectors, what the model's last norm makes of them. With
    // `no_logits` nothing else is wanted.
    float *vectors;
    bool no_logits;
    // [n_logits], or NULL: how many of the best candidates suffice, NB_CANDIDATES_MAX at most; 0:
    // all logits. The step says here what it gives: so many candidates, or 0: all logits.
    uint32_t *candidates;
    // [n][embedding]: a plan without embedding begins with these, one without head ends in them.
    float *hidden;
};

struct nb_device;
struct nb_device_model;

// What a device keeps and computes for a model.
struct nb_device_model_options {
    uint32_t kv_blocks; // memory for so many blocks of 32 positions
    uint32_t max_rows;  // of a step
    // Called now and then while weights go to the device's own memory; may be NULL.
    void (*on_progress)(void *user, uint64_t done, uint64_t total);
    void *user;
};

// What one section of the model has taken: device time, and dispatches (0 where the device has
// none).
struct nb_op_time {
    uint64_t ns, dispatches;
};

// Beside models, for clients: a matrix as the device has it, rows times it, and its rows as
// numbers. What x, y and out point to may be another process's memory, which changes at any time: x
// is read once.
struct nb_device_matrix;

#define NB_PRODUCT_ROWS   128        // of x in one call, at most,
#define NB_PRODUCT_VALUES (1u << 20) // and so many floats of x, but for a single row

struct nb_product {
    const float *x; // [n][cols]; the matrix's columns past `cols` count as zeros
    uint32_t n, cols;
    uint32_t terms;          // of the quantized inputs
    uint32_t group0, groups; // row groups of 16 of the matrix
    float *y;                // [n][ldy]: row r of the matrix gives column r
    size_t ldy;
};

enum nb_number { NB_NUMBER_F32, NB_NUMBER_F16, NB_NUMBER_INT8 };

struct nb_dequantize {
    uint32_t row0, rows, cols;
    enum nb_number to;
    void *out;     // [rows][cols]
    float *scales; // [rows], of INT8: a row's largest magnitude by 127
};

#define NB_NO_BLOCK UINT32_MAX

struct nb_device_ops {
    void (*info)(const struct nb_device *d, struct nb_device_info *ret);
    void (*destroy)(struct nb_device *d);
    // Memory of one KV block (32 positions, all layers).
    size_t (*kv_block_bytes)(const struct nb_device *d, const struct nb_plan *plan);
    // What KV memory may take unless someone says more, beside the plan's weights and steps of
    // `max_rows`.
    uint64_t (*kv_room)(const struct nb_device *d, const struct nb_plan *plan, uint32_t max_rows);
    int (*model_open)(struct nb_device *d, const struct nb_plan *plan,
                      const struct nb_device_model_options *options, struct nb_device_model **ret,
                      struct nb_error *ret_error);
    void (*model_close)(struct nb_device_model *dm);
    // Runs the plan over the rows; logits: [n_logits][vocab] fp32, valid until the next step; the
    // caller may change them. A row for which rows->candidates says so begins with an array of
    // struct nb_candidate in their order instead. The CPU always gives logits. Blocks. A negative
    // errno means the device is lost.
    int (*step)(struct nb_device_model *dm, const struct nb_rows *rows, float **ret_logits);
    // One piece of what makes steps faster and none of them needs, once more as long as it returns
    // 1: shorter than a second or two, however slow a driver's compiler is. Whatever was prepared,
    // steps give the same bits. `free_block` is one that nobody has, whose content may change, or
    // NB_NO_BLOCK. May be missing: then there is nothing to prepare.
    int (*prepare)(struct nb_device_model *dm, uint32_t free_block);
    // A freshly assigned block must not show its last owner's content. A negative errno as of a
    // step: no step may read the block then.
    int (*kv_clear)(struct nb_device_model *dm, uint32_t block);
    // Steps may have rows of the adapter from now on, until it is closed, which is before the model
    // is; it stays as it is until then. Takes memory for its factors; blocks. -ENOMEM: there is too
    // little, with the figures; another negative errno as of a step. Both are missing where a
    // device reads the factors where they lie.
    int (*adapter_open)(struct nb_device_model *dm, const struct nb_adapter *adapter,
                        struct nb_error *ret_error);
    void (*adapter_close)(struct nb_device_model *dm, const struct nb_adapter *adapter);
    // What is worth keeping for the next device's options: 1 and a blob to be freed when it differs
    // from what was given or returned last, 0 when not. NULL where there is never anything.
    int (*cache)(struct nb_device *d, void **ret, size_t *ret_bytes);
    // Of each section of a model (NB_SECTIONS of them, engine/op.h) since the model was opened.
    // Where measuring costs time, steps now and then are timed, and the others count as the last of
    // their size that was.
    void (*times)(const struct nb_device_model *dm, struct nb_op_time *ret);
    // Once a step or a model's opening has returned a negative errno: what the device failed with,
    // in one line; NULL when it did not. Unless the errno was -ENOMEM it is of no use any more. May
    // be missing: such a device is never lost.
    const char *(*fault)(const struct nb_device *d);

    // The most columns of a matrix of this layout that gemm computes right; NULL: any number.
    uint32_t (*widest)(const struct nb_device *d, const struct nb_packed *w);
    // A packed matrix, which must stay as it is until matrix_close; `dm`: the model that it is a
    // tensor of, or NULL. The other three are as the step: they block, and a negative errno of gemm
    // and dequantize means that the device is lost.
    int (*matrix_open)(struct nb_device *d, struct nb_device_model *dm, const struct nb_packed *w,
                       struct nb_device_matrix **ret);
    void (*matrix_close)(struct nb_device_matrix *m); // NULL is fine
    int (*gemm)(struct nb_device_matrix *m, const struct nb_product *p);
    int (*dequantize)(struct nb_device_matrix *m, const struct nb_dequantize *p);
};

struct nb_device {
    const struct nb_device_ops *ops;
    // Set by the owner, or NULL: called by a device's thread whenever it got on with what it does,
    // at least once in some seconds as long as it does not hang.
    void (*on_beat)(void *user);
    void *user;
};

static inline void nb_device_beat(const struct nb_device *d)
{
    if (d->on_beat)
        d->on_beat(d->user);
}

// Whether a device reads the weights where they lie in the host's memory, or has them copied to its
// own.
enum nb_weights {
    NB_WEIGHTS_CHOSEN,   // imported by a CPU's driver, on a GPU by the measurement
    NB_WEIGHTS_MEASURED, // imported where that is hardly slower to read than a copy
    NB_WEIGHTS_IMPORTED,
    NB_WEIGHTS_COPIED,
};

// What this process may use of the machine's CPU.
struct nb_cpu_allowed {
    uint32_t threads;      // one for each core and each whole CPU of a quota
    uint64_t memory_bytes; // of the machine, or of the control group that allows less
    char why[96];          // there are fewer threads than cores; "": there are not
};
struct nb_cpu_quota; // machine/bounds.h

struct nb_device_options {
    uint32_t threads; // of the CPU; 0: as many as are allowed
    // What nb_cpu_allowed said before a sandbox hid its files; NULL: it is asked now.
    const struct nb_cpu_allowed *allowed;
    // What a device of before had to keep (nb_device_ops.cache), or NULL; copied. One that another
    // device, driver or build wrote, or that is damaged, counts as none.
    const void *cache;
    size_t cache_bytes;
    // What a driver compiles at first use is used once before a step needs it, and tiles are chosen
    // by measurement: some when a model is opened, the rest by nb_device_ops.prepare.
    bool warm;
    // The rest is of Vulkan devices.
    uint32_t tile;       // the n-th of its tier for every product, to compare them; 0: what is best
    uint32_t timeout_ms; // a submission that takes longer means a hang; 0: 30 s
    uint64_t memory_bytes; // takes no more of the device's memory; 0: as much as there is
    uint64_t buffer_bytes; // weights in buffers and windows no larger, whatever the device allows,
    uint64_t window_bytes; // so that a small model shows what a large one needs; 0: as it allows
    enum nb_weights weights;
    const char *tier; // of a Vulkan device's shaders (engine/vulkan/tier.c); NULL: its best
};

int nb_cpu_device_create(uint32_t threads, const struct nb_cpu_allowed *allowed,
                         struct nb_device **ret);
// Looks up what this process may use, in the machine's files.
int nb_cpu_allowed(struct nb_cpu_allowed *ret);
// The rule by which it decides: of `cores`, affinity leaves `allowed`. Sets threads and why.
void nb_cpu_allow(uint32_t cores, uint32_t allowed, const struct nb_cpu_quota *quota,
                  struct nb_cpu_allowed *ret);
// Of a model on a CPU device with one thread: from now on each op's result is looked at, and the
// plan's first op that gave a number that is not finite, in any step, is told; n_ops: none did.
void nb_cpu_watch(struct nb_device_model *dm);
uint32_t nb_cpu_first_odd(const struct nb_device_model *dm);
// Of a model on a CPU device: from now on, in each step, `fn` is called with what each of the
// plan's matrices is multiplied by, as it was before it was quantized: `n` rows of `width` numbers,
// valid during the call, op by op in the order of the plan. NULL for `fn`: no more.
//
// Of a matrix that each expert has, `expert` says which experts' matrices a row is multiplied by;
// else it is NULL. Where the op reads a value with a row for each token, row i belongs to all that
// its token takes: expert[i * n_chosen] and on, the best first. Where it reads a value of experts
// (nb_value_is_of_experts), row i belongs to expert[i] alone, and rows are sorted by expert, those
// of one expert by token.
typedef void nb_cpu_capture_fn(void *user, uint32_t op, const float *x, uint32_t n, uint32_t width,
                               const uint16_t *expert);
void nb_cpu_capture(struct nb_device_model *dm, nb_cpu_capture_fn *fn, void *user);

// "cpu", or "vulkanN": the N-th Vulkan device (engine/vulkan/vulkan.h); or several of them, each
// with how many layers it runs, one alone without: "cpu+vulkan0:20" is the last 20 layers and the
// head on vulkan0, the rest on the CPU (split.h). -EINVAL for another name, or what the device's
// own creation returns; the line in `ret_error` says why.
int nb_device_create(const char *name, const struct nb_device_options *options,
                     struct nb_device **ret, struct nb_error *ret_error);

// Names the machine's devices, each as soon as it is known, the CPU first: a driver that crashes
// hides only what comes after. Makes none of them. 0, or what kept one kind of them from being
// listed.
int nb_device_list(void (*found)(void *user, const struct nb_device_info *info), void *user,
                   struct nb_error *ret_error);
