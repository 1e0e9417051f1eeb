// The float engine from the inside. spans.c makes of a plan's ops the steps that are run,
// tape.c holds what they make, passes.c runs them forward and backward; linear.c, rows.c,
// experts.c and attention.c are the ops, loops_tmpl.h their inner loops. Nobody else includes it.
#pragma once

#include "engine/cpu/kernels.h"
#include "grad/grad.h"
#include "grad/loops.h"

// A part of each row of a buffer, as struct nb_slice is one of a value.
struct nb_place {
    uint32_t buffer; // of the span, or NB_NOWHERE
    uint32_t at, width, stride;
};
#define NB_NOWHERE UINT32_MAX

// Rows of floats. A value that is overwritten while a backward pass needs what it held gets
// another buffer: within a span nothing needed is ever lost.
struct nb_buffer {
    uint32_t width;
    bool of_experts; // it has a row for each expert that a token takes
    bool needed;     // by a backward pass
};
#define NB_INPUT 0 // the buffer of x; the caller's

struct nb_pass;
struct nb_step;

// What a kind of step does. Backward adds to the gradients of what the step read, but for those
// that nobody wants (nb_is_wanted).
struct nb_step_kind {
    void (*forward)(const struct nb_pass *p, const struct nb_step *s);
    void (*backward)(const struct nb_pass *p, const struct nb_step *s);
    bool needs_in, needs_other, needs_out; // what backward reads of the values
};

// An op where its values are. Of attention `in`, `other` and `third` are queries, keys and values,
// and `aux` the logarithms of the softmaxes' sums; of a norm `aux` is the mean and factor of each
// head.
struct nb_step {
    const struct nb_op *op;
    const struct nb_step_kind *kind;
    struct nb_place in, other, third, out, aux;
    struct nb_place old; // what an op that adds adds to; where `out` is, or elsewhere
    struct nb_grad_tensor *w, *weight, *bias;
    size_t floats; // of a LINEAR: where its matrix begins among the span's
    bool again;    // a backward pass needs what it makes
};

// What comes before the layers, a layer, or what comes after them.
struct nb_span {
    struct nb_step *steps;
    struct nb_buffer *buffers;
    uint32_t n_steps, n_buffers;
    struct nb_place out;    // the last value that it makes; x where it makes none
    struct nb_place result; // what a text's vector is made of, of the last span
    uint32_t result_steps;  // after which it is there
    size_t floats;          // of its matrices
};

// Rows of experts by expert: choice c of token t is row place[t * n_chosen + c], and the rows of
// expert e are [first[e], first[e + 1]).
struct nb_routing {
    uint16_t *expert; // [rows][n_chosen]
    uint32_t *place, *token, *first;
};

// Memory for what a span makes of some rows.
struct nb_tape {
    const struct nb_span *span;
    uint32_t rows;
    void *memory;
    size_t bytes; // of it
    float **data; // of each buffer; NULL: not here
    struct nb_routing routing;
};

struct nb_batch {
    uint32_t rows, n_sequences;
    struct nb_grad_sequence *sequence; // without tokens
    int32_t *token;
    uint32_t *position;
    float *rope; // [rows][n_ropes][rope_dims]: cosines, sines
};

// Matrices of one span as floats.
struct nb_floats {
    const struct nb_span *of;
    float *memory;
    size_t floats;
    uint32_t *seen; // of each of the plan's matrices: how often it had been replaced
    float *low;     // [rows][rank]: what factors make of the rows of one matrix, of the largest
    size_t low_floats;
    float *coded; // [rows][cols]: what int8 codes make of the inputs of one matrix, of the largest
    size_t coded_floats;
    // Both operands of one product of the span as bf16, of the largest; only with `bf16`
    uint16_t *narrow[2];
    size_t narrow_n[2];
};

// A span's run over some rows. Forward: the first `steps`, to ret [rows] of the span's last value
// and ret_result of what a text's vector is made of; each may be NULL. Backward: d is the gradient
// of the last value, d_result that in its text's vectors; each may be NULL; ret_d: that in x, or
// NULL. `tape`: what forward keeps and backward has; NULL: nothing.
struct nb_run {
    const struct nb_span *span;
    uint32_t rows;
    const float *x;
    const struct nb_tape *tape;
    uint32_t steps;
    float *ret, *ret_result;
    float *d, *ret_d;
    const float *d_result;
};

// Who runs spans: the CPU (passes.c), or a device (vulkan/). 0 or a negative errno.
struct nb_backend {
    // Of a batch that is about to be the present one; with its line. NULL: nothing is to be done.
    int (*batch)(struct nb_grad *g, const struct nb_batch *b, struct nb_error *error);
    int (*forward)(struct nb_grad *g, const struct nb_run *r);
    int (*backward)(struct nb_grad *g, const struct nb_run *r);
    void (*close)(struct nb_grad *g); // NULL: it has nothing of its own
    bool keeps;                       // tapes, and the keys and values of nb_grad_continue
};

struct nb_grad_vulkan; // vulkan/room.h

struct nb_grad {
    const struct nb_plan *plan;
    const struct nb_backend *backend;
    struct nb_grad_vulkan *device; // NULL: the CPU
    struct nb_team *team;
    const struct nb_kernels *kernels;
    const struct nb_loops *loops;
    struct nb_grad_tensor *tensors;
    uint32_t n_tensors;
    struct nb_span *spans; // begin, the layers, head
    uint32_t n_spans;
    struct nb_batch batch;
    struct nb_floats floats;
    struct nb_tape values, gradients; // of the span under way
    float **data, **d_data;           // of a span's buffers, wherever they are
    bool *marks;                      // of a span's buffers, for whoever needs it
    float *scratch;                   // [thread][scratch_floats]
    size_t scratch_floats;
    nb_grad_see_fn *see;
    void *see_user;
    struct nb_tap {
        uint32_t layer;
        float *ret[3]; // nb_grad_tap; NULL: not wanted
        const float *d[3];
    } tap;
    struct nb_grad_cache *cache; // nb_grad_continue; NULL: none
    bool bf16;                   // nb_grad_narrow
    uint64_t changed;            // how often nb_grad_changed was called
};

// A span's run over some rows.
struct nb_pass {
    struct nb_grad *g;
    const struct nb_span *span;
    uint32_t rows;
    float **data;
    float **gradient; // NULL: of no interest
    struct nb_routing routing;
    bool shows; // inputs of matrices to nb_grad_see's fn
};

static inline uint32_t nb_least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline bool nb_is_somewhere(const struct nb_place *a)
{
    return a->buffer != NB_NOWHERE;
}

static inline bool nb_same_place(const struct nb_place *a, const struct nb_place *b)
{
    return a->buffer == b->buffer && a->at == b->at;
}

static inline float *nb_value(const struct nb_pass *p, const struct nb_place *a, uint32_t row)
{
    return p->data[a->buffer] + (size_t)row * a->stride + a->at;
}

static inline float *nb_gradient(const struct nb_pass *p, const struct nb_place *a, uint32_t row)
{
    return p->gradient[a->buffer] + (size_t)row * a->stride + a->at;
}

static inline bool nb_is_wanted(const struct nb_pass *p, const struct nb_place *a)
{
    return nb_is_somewhere(a) && p->gradient[a->buffer];
}

// Rows of a buffer for so many tokens.
static inline uint32_t nb_buffer_rows(const struct nb_grad *g, const struct nb_span *s,
                                      uint32_t buffer, uint32_t rows)
{
    return s->buffers[buffer].of_experts ? rows * g->plan->hp.n_chosen : rows;
}

static inline const float *nb_vector_of(const struct nb_grad_tensor *t)
{
    return !t ? NULL : t->values ? t->values : t->vector;
}

static inline float *nb_scratch(const struct nb_pass *p, uint32_t thread)
{
    return p->g->scratch + thread * p->g->scratch_floats;
}

// Calls fn for units [0, n), shared out among the threads.
typedef void nb_unit_fn(void *arg, uint32_t unit, uint32_t thread);
void nb_each(struct nb_team *team, uint32_t n, nb_unit_fn *fn, void *arg);

// spans.c
extern const struct nb_step_kind nb_step_kinds[NB_OP_KINDS], nb_step_gather;
int nb_spans_create(struct nb_grad *g, struct nb_error *error);
void nb_spans_destroy(struct nb_grad *g);

// weights.c
int nb_tensors_create(struct nb_grad *g, struct nb_error *error);
struct nb_grad_tensor *nb_tensor_of_matrix(struct nb_grad *g, const struct nb_matrix *m);
struct nb_grad_tensor *nb_tensor_of_vector(struct nb_grad *g, const float *x); // NULL: of none
int nb_floats_load(struct nb_grad *g, const struct nb_span *s, uint32_t rows);
// A step's matrix, or that of one expert; loaded.
const float *nb_floats_of(const struct nb_grad *g, const struct nb_step *s, uint32_t expert);

// tape.c. Lays the buffers that are `kept` into `tape`, whose memory grows.
int nb_tape_fit(const struct nb_grad *g, const struct nb_span *s, uint32_t rows, const bool *kept,
                struct nb_tape *tape);
size_t nb_tape_size(const struct nb_grad *g, const struct nb_span *s, uint32_t rows,
                    const bool *kept);
void nb_tape_finish(struct nb_tape *tape);

// cache.c
struct nb_grad_cache {
    uint32_t sequences, length;
    float *rows;
};
// A sequence's keys and values from its first token on, `stride` floats apart.
struct nb_cached {
    float *k, *v;
    size_t stride;
};
bool nb_cache_fits(const struct nb_grad_cache *c, const struct nb_grad_sequence *sequence,
                   uint32_t n);
struct nb_cached nb_cache_of(const struct nb_grad *g, uint32_t layer, uint32_t sequence);

// passes.c
extern const struct nb_backend nb_backend_cpu;
// Which buffers' gradients lead to one that is wanted.
void nb_mark_wanted(const struct nb_span *s, bool to_input, bool *ret);

// vulkan/: makes g->device and its back-end, behind spans and tensors. -ENOTSUP: the device cannot
// compute this model; -E2BIG: it is too large; -EIO and the like of a device; with its line.
int nb_grad_vulkan_open(struct nb_grad *g, struct nb_device *device, struct nb_error *error);

// linear.c
void nb_linear(const struct nb_pass *p, const struct nb_step *s);
void nb_linear_back(const struct nb_pass *p, const struct nb_step *s);

// rows.c
void nb_embed(const struct nb_pass *p, const struct nb_step *s);
void nb_embed_back(const struct nb_pass *p, const struct nb_step *s);
void nb_norm(const struct nb_pass *p, const struct nb_step *s);
void nb_norm_back(const struct nb_pass *p, const struct nb_step *s);
void nb_rope(const struct nb_pass *p, const struct nb_step *s);
void nb_rope_back(const struct nb_pass *p, const struct nb_step *s);
void nb_activate(const struct nb_pass *p, const struct nb_step *s);
void nb_activate_back(const struct nb_pass *p, const struct nb_step *s);
void nb_add(const struct nb_pass *p, const struct nb_step *s);
void nb_add_back(const struct nb_pass *p, const struct nb_step *s);
void nb_cap(const struct nb_pass *p, const struct nb_step *s);
void nb_cap_back(const struct nb_pass *p, const struct nb_step *s);
// For ops that add: out = old, where it is elsewhere; and backward, the gradient likewise.
void nb_take_old(const struct nb_pass *p, const struct nb_step *s);
void nb_take_old_back(const struct nb_pass *p, const struct nb_step *s);

// experts.c
void nb_route_step(const struct nb_pass *p, const struct nb_step *s);
void nb_route_back(const struct nb_pass *p, const struct nb_step *s);
void nb_sort_rows(const struct nb_pass *p); // makes the rest of `routing` of its experts
void nb_gather(const struct nb_pass *p, const struct nb_step *s);
void nb_gather_back(const struct nb_pass *p, const struct nb_step *s);
void nb_combine(const struct nb_pass *p, const struct nb_step *s);
void nb_combine_back(const struct nb_pass *p, const struct nb_step *s);

// attention.c
void nb_attend(const struct nb_pass *p, const struct nb_step *s);
void nb_attend_back(const struct nb_pass *p, const struct nb_step *s);
size_t nb_attend_scratch(const struct nb_hparams *hp); // floats of a thread
