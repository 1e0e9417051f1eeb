// How a program is made, from the inside. builder.c knows what a dispatch is made of, program.c
// what each stage of a plan becomes, gemms.c and experts.c those of matrices, which are most of
// them.
#pragma once

#include "engine/vulkan/model.h"
#include "engine/vulkan/stages.h"

struct builder {
    struct nb_device_model *m;
    struct nb_vulkan_stage stage; // under way
    uint32_t count;               // STEP_ROWS; in the tail STEP_WANTED
    uint32_t k, v;                // where keys and values begin in a row of QKV
    // What the buffers of records have: a value as it is now.
    struct {
        enum nb_value value;
        const struct nb_op *as; // the codes that this op reads
    } made[2];
    // The dispatch that may leave its result as the next stage's input, + 1, and that stage's norm
    // then, in the buffer of vectors.
    uint32_t finisher, norm1;
    uint32_t order; // the dispatch that puts rows in the order of the experts that were chosen last
    bool gathers;   // the tail begins with gathered rows
    uint32_t shown; // how many dispatches there are once the stage's input is made
    float *vectors; // what goes into the buffer of vectors
    uint32_t n_vectors;
    int rc;
};

typedef const struct nb_vulkan_buffer *bindings[BINDINGS];

// What a GEMM reads: floats, the same quantized, or both.
struct source {
    const struct nb_vulkan_buffer *floats, *records;
    uint32_t width; // floats of a row
};

// Where a GEMM's rows go, and what its mode needs beside.
struct target {
    const struct nb_vulkan_buffer *rows;
    const struct nb_vulkan_buffer *second, *floats; // NULL where none is written
    uint32_t width, mode;
    uint32_t more[6]; // push_gemm's
};

static inline const struct nb_op *op_of(const struct builder *b, uint32_t i)
{
    return &b->m->plan->ops[b->stage.first + i];
}

// --- builder.c

// The rows of a value that the stage reads or writes.
const struct nb_vulkan_buffer *build_buffer(const struct builder *b, enum nb_value v);
// Where a part of a value's row begins on the device.
uint32_t build_column(const struct builder *b, const struct nb_slice *s);
// Where a vector lies in the model's buffer of them, from now on.
uint32_t build_vector(struct builder *b, const float *v, uint32_t n);
// The value is another from here on.
void build_wrote(struct builder *b, enum nb_value v);

// One more dispatch for the rows of a value. After an error what is returned is of no use, but may
// be written.
struct nb_vulkan_dispatch *build_add(struct builder *b, enum nb_vulkan_shape shape, enum nb_value v,
                                     uint32_t units);
void build_push(struct nb_vulkan_dispatch *p, const void *data, size_t bytes);
// Which pipelines the device's tier has for a shader with these constants.
void build_specialise(struct builder *b, struct nb_vulkan_dispatch *p, enum nb_shader shader,
                      uint32_t c[CONST_TIER]);
// A set with these buffers, the step's, and a window of the weights where there is one.
void build_bind(struct builder *b, struct nb_vulkan_dispatch *p,
                const struct nb_vulkan_window *weights, bindings buffers);

// Rows of `from`, or those that a table lists, as floats, quantized, or both; normalized where
// `norm` is not NULL. `width`: floats of a row of `from` and of `floats`.
struct rows {
    const struct nb_op *norm;
    enum nb_value value;                                    // whose rows they are
    const struct nb_vulkan_buffer *from, *floats, *records; // the last two may be NULL
    uint32_t cols, width, terms, gather;
    enum nb_input_scale scaled; // as of struct nb_op, of records
    float range;
};
struct nb_vulkan_dispatch *build_rows(struct builder *b, const struct rows *r);

// --- gemms.c

void build_gemms(struct builder *b);
// Those that the stage's GEMMs read, as floats and quantized as they want it.
struct source build_source(struct builder *b);
// One dispatch of parts that share a type and a window.
void build_gemm(struct builder *b, const struct nb_vulkan_part *parts, uint32_t n,
                const struct source *from, const struct target *to, bool beside);

// --- experts.c

// Where the rows by expert lie among the choices.
uint32_t build_order_at(const struct builder *b);

void build_experts(struct builder *b, const struct nb_op *op, const struct source *from,
                   bool beside);

// --- adapters.c

// What adapters add to the results of the stage's GEMMs, which read this.
void build_adapters(struct builder *b, const struct source *from);

// --- heads.c: of queries, keys and values.

// Whether the stage's GEMMs rotate queries and keys and write keys and values, which the next
// stage asks for; and what they are told then.
bool build_rotates(const struct builder *b, struct target *ret);
void build_heads(struct builder *b);
void build_attention(struct builder *b, bool beside);
