// The harness of the devices' ops: small plans of chosen ops, run through the device
// interface alone on a device and on the scalar reference, and compared on the bits. What a device
// does inside (dispatches, bindings, tiers) is its own business.
#pragma once

#include "engine/device.h"
#include "engine/plan.h"

// What lies between the embedding and the head. Where the middle or the embedding is what is
// tested, the head is an identity, so that logits show the residual stream.
enum op_middle {
    MIDDLE_NONE,
    MIDDLE_FFN,
    MIDDLE_ATTENTION,
    MIDDLE_BOTH, // attention, then a feed-forward; of one norm where they are `parallel`
    MIDDLE_EXPERTS,
};

// Norms of queries and keys.
enum op_head_norm {
    HEAD_NORM_NONE,
    HEAD_NORM_SHARED, // head by head, with the same weights
    HEAD_NORM_EACH,   // with each head's own
    HEAD_NORM_ROW,    // of all heads together
};

struct op_case {
    const char *what;
    enum op_middle middle;
    uint32_t type, type2;       // of the matrices tested; of the second where an op has several
    uint32_t terms;             // of their inputs
    enum nb_input_scale scaled; // of these, with one term
    float range;
    bool embeds;        // the embedding is what is tested; else it is F32 and holds the inputs
    bool norm, bias;    // whether ops have them
    bool sane;          // no extreme inputs and scales: for what has functions in it
    uint32_t embedding; // width of the residual stream
    uint32_t vocab;     // rows of a head that is tested; 0: an identity
    uint32_t ffn;       // MIDDLE_FFN
    uint32_t heads, kv_heads, k_dim, v_dim, rope_dims, window; // MIDDLE_ATTENTION
    bool neox;
    float softcap;
    enum nb_kv_type kv_type;
    uint32_t context; // 0: OP_TOKENS
    // What families differ in.
    enum nb_norm_kind norm_kind;
    bool weightless; // norms have no weights
    enum nb_activation activation;
    bool gateless;
    bool fused;    // q, k and v are one matrix, gate and up too
    bool apart;    // results are normalized and scaled before they join the residual stream
    bool parallel; // attention and feed-forward read one norm
    enum op_head_norm head_norm;
    bool still;                   // no RoPE
    uint32_t ropes;               // that the model has; the layer's is the last. 0: one
    bool bidirectional;           // a token sees those after it
    bool positions;               // learned ones, and types of tokens
    float scale;                  // of the embedding and the residual stream; 0: one
    float logit_scale, logit_cap; // 0: one, and none
    uint32_t experts, chosen;
    enum nb_gating gating;
    bool choice_bias, weights_norm;
    float score_bias; // on every expert's score
    bool vectors;     // the result is what the last norm makes
    uint32_t rank;    // of the adapter of a benchmark's rows; 0: they have none
};

enum { OP_TOKENS = 40, OP_OPS = 40, OP_MATRICES = 24 }; // TOKENS: rows of the embedding

// A plan and the memory of its weights.
struct op_plan {
    struct nb_plan plan;
    struct nb_arch arch;
    struct nb_op ops[OP_OPS];
    struct nb_matrix w[OP_MATRICES];
    uint32_t n_w;
    uint8_t *memory; // whole pages
    size_t bytes, used;
};

void op_plan_init(struct op_plan *p, const struct op_case *c);
void op_plan_finish(struct op_plan *p);
// A factor of floats in the plan's memory.
struct nb_packed op_plan_factor(struct op_plan *p, uint32_t type, uint32_t rows, uint32_t cols,
                                bool sane);
// What row `token` of the embedding looks like.
const char *op_token_mood(uint32_t token);

// A plan opened on a device; what fails ends the program.
struct op_machine {
    struct nb_device *device;
    struct nb_device_model *model;
};

enum { OP_ROWS = 64, OP_KV_BLOCKS = 64, OP_SEQUENCES = 3, OP_STEPS = 16, OP_WIDEST = 1024 };

// A step's rows, with block tables out of order.
struct op_batch {
    struct nb_rows rows;
    int32_t token[OP_ROWS];
    uint32_t position[OP_ROWS], sequence[OP_ROWS], logits_row[OP_ROWS];
    uint32_t block[OP_SEQUENCES][OP_KV_BLOCKS];
    const uint32_t *blocks[OP_SEQUENCES];
};

void op_open(struct op_machine *m, struct nb_device *d, const struct op_plan *p);
float *op_step(const struct op_machine *m, const struct nb_rows *rows);
// What a case shows of a step: logits, or vectors; `width` numbers of each row, valid until the
// next step.
const float *op_result(const struct op_machine *m, const struct op_case *c,
                       const struct nb_rows *rows, uint32_t *ret_width);
void op_batch_init(struct op_batch *b);
// So many rows of each sequence, from its position `at` on, which moves.
void op_batch_fill(struct op_batch *b, const uint32_t rows[OP_SEQUENCES],
                   uint32_t at[OP_SEQUENCES]);

// A case on one device, and a batch of `rows` rows of one sequence from position `at` on.
struct op_run {
    struct op_plan plan;
    struct op_machine machine;
    struct op_batch batch;
};

void op_run_begin(struct op_run *r, struct nb_device *d, const struct op_case *c);
void op_run_rows(struct op_run *r, uint32_t rows, uint32_t at);
void op_run_end(struct op_run *r);

// Rows of each sequence in each step; its positions go on from where they are.
struct op_script {
    uint32_t n;
    uint32_t rows[OP_STEPS][OP_SEQUENCES];
};

// Logits of each row; differences are counted (tests/kernels/report.h).
void op_compare(const struct op_case *c, const struct nb_rows *rows, const float *want,
                const float *got, uint32_t vocab);
// The steps of a script on two machines, whose sequences start anew.
void op_check_steps(const struct op_machine *want, const struct op_machine *got,
                    const struct op_case *c, const struct op_script *script, struct op_batch *b);
void op_check_case(struct nb_device *reference, struct nb_device *device, const struct op_case *c,
                   const struct op_script *script);
// Whether the arguments leave the type in.
bool op_is_wanted(uint32_t type);
// The same steps so many times, which must give the same bits: workgroups that wait for nobody
// finish each other's work.
void op_repeat(struct nb_device *device, uint32_t times);
// The largest that the device accepts, and that it refuses more.
void op_check_limits(struct nb_device *reference, struct nb_device *device);

// Small shaders of our own on a device: what its driver does to numbers and loops (driver.c).
struct nb_vulkan_device;

struct driver_facts {
    bool ieee;           // division and square root are rounded once, denormals are kept
    bool fused, unfused; // how fma rounds: once, or the product too; neither: it differs
    uint32_t loop;       // iterations of a loop that was asked for DRIVER_LOOP
};
enum { DRIVER_LOOP = 200000 };
int driver_probe(struct nb_vulkan_device *d, struct driver_facts *ret);
// Operations a second (a multiply and an add are two) of chains on registers alone.
int driver_peak(struct nb_vulkan_device *d, double *ret_integer, double *ret_float);

// What families differ in (ops_families.c).
void op_check_norms(struct nb_device *reference, struct nb_device *device);
void op_check_activations(struct nb_device *reference, struct nb_device *device);
void op_check_heads(struct nb_device *reference, struct nb_device *device);
void op_check_texts(struct nb_device *reference, struct nb_device *device);
void op_check_layers(struct nb_device *reference, struct nb_device *device);
void op_check_inputs(struct nb_device *reference, struct nb_device *device);
void op_check_experts(struct nb_device *reference, struct nb_device *device);
// Adapters (ops_adapters.c).
void op_check_adapters(struct nb_device *reference, struct nb_device *device);
// Of a Vulkan device in the tier "registers".
void op_check_dispatches(struct nb_device *device);

// Device time of each section of a layer, beside the limits.
void op_bench(struct nb_device *device, const char *filter);

// Adapters for the sequences of a batch, of every matrix of a plan or of some.
enum { OP_ADAPTERS = 3 };
struct op_adapters {
    struct nb_adapter *of[OP_ADAPTERS];
    const struct nb_adapter *list[OP_SEQUENCES]; // what the batch is given
};
void op_adapters_init(struct op_adapters *a, struct op_plan *p, uint32_t rank, bool sane);
void op_adapters_finish(struct op_adapters *a);
void op_adapter_open(const struct op_machine *m, const struct nb_adapter *adapter);
void op_adapter_close(const struct op_machine *m, const struct nb_adapter *adapter);
