// Each op of the float engine by itself, on odd sizes and also in forms that no family has: plans
// of one layer made by hand, and gradients along random directions beside finite differences.
//
// test-grad-ops vulkan: on Mesa's CPU driver, beside the CPU instead.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/device.h"
#include "engine/plan.h"
#include "engine/sampler.h"
#include "grad/grad.h"
#include "tensor/layout.h"
#include "tests/support/cpu_driver.h"

#define OPS   12
#define ROWS  23 // of three sequences
#define E     13
#define HEADS 4
#define KV    2
#define K_DIM 6
#define V_DIM 5
#define FFN   11
#define VOCAB 9

// Matrices in the order of their ops.
struct model {
    struct nb_plan plan;
    struct nb_arch arch;
    struct nb_layer layer;
    struct nb_op op[OPS];
    struct nb_matrix matrix[OPS];
    uint32_t layer_ops[2];
    void *memory[4 * OPS];
    uint32_t n_memory;
    double freq[K_DIM / 2];
    uint64_t counter;
};

static float uniform(struct model *m)
{
    return (float)(nb_random(7, m->counter++) >> 40) * 0x1p-23f - 1.0f;
}

static float *vector(struct model *m, size_t n, float middle, float spread)
{
    float *x = calloc(n + 1, sizeof(*x));
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = middle + spread * uniform(m);
    m->memory[m->n_memory++] = x;
    return x;
}

static float *vector_of_two(struct model *m, size_t n, float value)
{
    float *x = vector(m, n, 0, 1);
    for (size_t i = 0; i < n; i++)
        x[i] = copysignf(value, x[i]);
    return x;
}

static struct nb_matrix *matrix(struct model *m, uint32_t rows, uint32_t cols, uint32_t n)
{
    struct nb_matrix *w = &m->matrix[m->plan.n_matrices++];
    assert_int_equal(nb_packed_init(&w->packed, NB_TYPE_F32, rows, cols), 0);
    w->apart = nb_packed_bytes(&w->packed);
    w->n = n;
    uint8_t *data = aligned_alloc(64, n * w->apart);
    assert_non_null(data);
    for (uint32_t e = 0; e < n; e++)
        nb_layout_pack(&w->packed, vector(m, (size_t)rows * cols, 0, 1.5f / sqrtf((float)cols)),
                       data + e * w->apart, 0, (rows + NB_GROUP_ROWS - 1) / NB_GROUP_ROWS);
    w->packed.data = data;
    m->memory[m->n_memory++] = data;
    return w;
}

static struct nb_slice slice(enum nb_value v)
{
    static const struct nb_slice of[NB_VALUES] = {
        [NB_VALUE_X] = {NB_VALUE_X, 0, E, E},
        [NB_VALUE_N] = {NB_VALUE_N, 0, E, E},
        [NB_VALUE_O] = {NB_VALUE_O, 0, E, E},
        [NB_VALUE_QKV] = {NB_VALUE_QKV, 0, HEADS * K_DIM + KV * (K_DIM + V_DIM),
                          HEADS * K_DIM + KV * (K_DIM + V_DIM)},
        [NB_VALUE_Q] = {NB_VALUE_QKV, 0, HEADS * K_DIM, HEADS * K_DIM + KV * (K_DIM + V_DIM)},
        [NB_VALUE_K] = {NB_VALUE_QKV, HEADS * K_DIM, KV * K_DIM,
                        HEADS * K_DIM + KV * (K_DIM + V_DIM)},
        [NB_VALUE_V] = {NB_VALUE_QKV, (HEADS + KV) * K_DIM, KV * V_DIM,
                        HEADS * K_DIM + KV * (K_DIM + V_DIM)},
        [NB_VALUE_A] = {NB_VALUE_A, 0, HEADS * V_DIM, HEADS * V_DIM},
        [NB_VALUE_H] = {NB_VALUE_H, 0, FFN, FFN},
        [NB_VALUE_UP] = {NB_VALUE_UP, 0, FFN, FFN},
        [NB_VALUE_ROUTER] = {NB_VALUE_ROUTER, 0, 5, 5},
        [NB_VALUE_E_H] = {NB_VALUE_E_H, 0, FFN, FFN},
        [NB_VALUE_E_UP] = {NB_VALUE_E_UP, 0, FFN, FFN},
        [NB_VALUE_E_O] = {NB_VALUE_E_O, 0, E, E},
    };
    return of[v];
}

static struct nb_op *add_op(struct model *m, enum nb_op_kind kind, enum nb_value in,
                            enum nb_value out)
{
    struct nb_op *op = &m->op[m->plan.n_ops++];
    *op = (struct nb_op){.kind = kind, .in = slice(in), .out = slice(out), .scale = 1, .heads = 1};
    op->dim = op->in.width;
    return op;
}

static struct nb_op *add_linear(struct model *m, enum nb_value in, enum nb_value out)
{
    struct nb_op *op = add_op(m, NB_OP_LINEAR, in, out);
    const bool experts = nb_value_is_of_experts(in) || nb_value_is_of_experts(out);
    op->w = matrix(m, op->out.width, op->in.width, experts ? m->plan.hp.n_experts : 1);
    op->add = out == NB_VALUE_X;
    return op;
}

static void add_bias(struct model *m, struct nb_op *op)
{
    op->bias = vector(m, (size_t)op->w->n * op->out.width, 0, 0.5f);
}

static void begin_model(struct model *m)
{
    *m = (struct model){.arch = {.name = "by hand"}};
    m->plan.begins = m->plan.ends = true;
    m->plan.hp = (struct nb_hparams){.vocab = VOCAB,
                                     .n_layers = 1,
                                     .embedding = E,
                                     .context = 64,
                                     .n_heads = HEADS,
                                     .n_kv_heads = KV,
                                     .k_dim = K_DIM,
                                     .v_dim = V_DIM,
                                     .norm_eps = 0.01f,
                                     .attn_scale = 0.4f,
                                     .causal = true,
                                     .n_experts = 5,
                                     .n_chosen = 2,
                                     .expert_weights_scale = 1,
                                     .rope_dims = 4,
                                     .n_ropes = 1};
}

// --- Running

struct machine {
    struct nb_team *team;
    struct nb_grad *g;
    float x[ROWS * E], slope[ROWS * E], along[ROWS * E];
};

static void begin_batch(struct nb_grad *g)
{
    static const int32_t token[] = {1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 3, 5, 7};
    const struct nb_grad_sequence sequence[] = {{token, 13, 0}, {token, 1, 9}, {token + 2, 9, 4}};
    struct nb_error error;
    assert_int_equal(nb_grad_batch(g, sequence, 3, &error), 0);
}

static void open_machine(struct model *m, struct machine *machine)
{
    struct nb_error error;
    m->plan.hp.arch = &m->arch;
    m->plan.hp.layer = &m->layer;
    m->plan.hp.rope[0] = (struct nb_rope){m->freq, 1.1};
    m->plan.ops = m->op;
    m->plan.layer_ops = m->layer_ops;
    m->plan.matrices = m->matrix;
    m->plan.result = m->plan.n_ops;
    m->layer_ops[1] = m->plan.n_ops;
    for (uint32_t i = 0; i < K_DIM / 2; i++)
        m->freq[i] = 1.0 / (i + 1);
    assert_int_equal(nb_team_create(2, &machine->team), 0);
    assert_int_equal(nb_grad_open(&m->plan, machine->team, &machine->g, &error), 0);
    begin_batch(machine->g);
    for (uint32_t i = 0; i < ROWS * E; i++) {
        machine->x[i] = uniform(m);
        machine->slope[i] = uniform(m);
        machine->along[i] = uniform(m);
    }
}

static void close_machine(struct model *m, struct machine *machine)
{
    nb_grad_close(machine->g);
    nb_team_destroy(machine->team);
    for (uint32_t i = 0; i < m->n_memory; i++)
        free(m->memory[i]);
}

// The loss is the sum of slope * y. Of a model with ops before its layer, that is all there is.
static double loss_at(const struct machine *machine, const float *x, float step)
{
    float moved[ROWS * E], y[ROWS * E];
    double loss = 0;
    for (uint32_t i = 0; i < ROWS * E; i++)
        moved[i] = machine->x[i] + (x ? step * x[i] : 0.0f);
    assert_int_equal(nb_grad_layer(machine->g, 0, moved, NULL, y), 0);
    for (uint32_t i = 0; i < ROWS * E; i++)
        loss += (double)machine->slope[i] * y[i];
    return loss;
}

static double begin_loss(const struct machine *machine, const float *x, float step)
{
    float y[ROWS * E];
    double loss = 0;
    assert_int_equal(nb_grad_begin(machine->g, y), 0);
    for (uint32_t i = 0; i < ROWS * E; i++)
        loss += (double)machine->slope[i] * y[i];
    return loss;
}

typedef double loss_fn(const struct machine *machine, const float *x, float step);
#define STEP 1e-3f

// The sum of d * along is the difference that a step makes, up to what rounding leaves of it.
static void expect(double difference, const float *d, const float *along, size_t n)
{
    double sum = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)d[i] * along[i];
        norm += (double)d[i] * d[i];
    }
    const double found = difference / (2 * (double)STEP);
    if (fabs(found - sum) > 2e-3 * sqrt(norm) + 1e-4)
        fail_msg("%g by differences, %g by gradients", found, sum);
}

static void check_tensor(struct model *m, struct machine *machine, struct nb_grad_tensor *t,
                         loss_fn *loss, const float *d)
{
    const size_t n = (size_t)t->experts * t->rows * t->cols;
    float *base = calloc(n, sizeof(*base)), *moved = calloc(n, sizeof(*moved)),
          *along = calloc(n, sizeof(*along));
    assert_true(base && moved && along);
    nb_grad_dequantize(machine->g, t, base);
    double sides[2];
    for (size_t i = 0; i < n; i++)
        along[i] = uniform(m);
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < n; i++)
            moved[i] = base[i] + (side ? -STEP : STEP) * along[i];
        t->values = moved;
        sides[side] = loss(machine, NULL, 0);
    }
    t->values = NULL;
    expect(sides[0] - sides[1], d, along, n);
    free(base);
    free(moved);
    free(along);
}

// --- On a device

static struct nb_device *device; // NULL: differences are looked at

// All that a pass gives: the result, the gradient in x, and those in all tensors.
struct found {
    float y[ROWS * E], d[ROWS * E], *tensor[3 * OPS];
};

static void pass_on(struct model *m, struct nb_grad *g, const struct machine *machine,
                    const float *x, struct found *ret)
{
    const bool begins = m->layer_ops[0] > 0;
    uint32_t n;
    struct nb_grad_tensor *t = nb_grad_tensors(g, &n);
    for (uint32_t i = 0; i < n; i++)
        t[i].gradient = ret->tensor[i] =
            calloc((size_t)t[i].experts * t[i].rows * t[i].cols, sizeof(float));
    memcpy(ret->d, machine->slope, sizeof(ret->d));
    assert_int_equal(begins ? nb_grad_begin(g, ret->y) : nb_grad_layer(g, 0, x, NULL, ret->y), 0);
    assert_int_equal(begins ? nb_grad_begin_back(g, ret->d)
                            : nb_grad_layer_back(g, 0, x, NULL, ret->d, true),
                     0);
    if (begins) // which is of no use afterwards
        memset(ret->d, 0, sizeof(ret->d));
    for (uint32_t i = 0; i < n; i++)
        t[i].gradient = NULL;
}

// Random numbers; the same so small that their squares vanish, and so large that functions are at
// their ends, where slopes are differences of numbers that are nearly equal; a row of zeros; a
// number that is none. `bound`: of the largest.
static const struct input {
    const char *name;
    float size, bound;
    bool zeros, none;
} inputs[] = {
    {"random numbers", 1, 1e-5f, false, false}, {"tiny ones", 1e-25f, 1e-5f, false, false},
    {"large ones", 30, 1e-3f, false, false},    {"zeros", 0, 1e-5f, false, false},
    {"a row of zeros", 1, 1e-5f, true, false},  {"a NaN", 1, 1e-5f, false, true},
};

// What is not finite is so on the device too, which may have more of it: a driver may take a
// comparison with a NaN for its opposite.
static bool is_near(const struct input *in, float found, float expected, float most)
{
    if (!isfinite(expected) || (in->none && !isfinite(found)))
        return !isfinite(found);
    return fabsf(found - expected) <= in->bound * most;
}

static void expect_near(const struct input *in, const float *found, const float *expected, size_t n,
                        const char *what)
{
    float most = 1e-30f;
    for (size_t i = 0; i < n; i++)
        most = isfinite(expected[i]) && fabsf(expected[i]) > most ? fabsf(expected[i]) : most;
    for (size_t i = 0; i < n; i++)
        if (!is_near(in, found[i], expected[i], most))
            fail_msg("of %s: number %zu of %s is %g, on the CPU %g, and the largest %g", in->name,
                     i, what, (double)found[i], (double)expected[i], (double)most);
}

static void compare(struct model *m, struct nb_grad *g, const struct machine *machine,
                    const struct input *in)
{
    float x[ROWS * E];
    for (uint32_t i = 0; i < ROWS * E; i++)
        x[i] = in->zeros && i / E == 3 ? 0 : in->size * machine->x[i];
    x[7 * E + 2] = in->none ? NAN : x[7 * E + 2];
    struct found cpu, own;
    uint32_t n;
    const struct nb_grad_tensor *t = nb_grad_tensors(g, &n);
    pass_on(m, machine->g, machine, x, &cpu);
    pass_on(m, g, machine, x, &own);
    expect_near(in, own.y, cpu.y, ROWS * E, "the result");
    expect_near(in, own.d, cpu.d, ROWS * E, "the gradient in x");
    for (uint32_t i = 0; i < n; i++) {
        expect_near(in, own.tensor[i], cpu.tensor[i], (size_t)t[i].experts * t[i].rows * t[i].cols,
                    "a tensor's gradient");
        free(cpu.tensor[i]);
        free(own.tensor[i]);
    }
}

static void check_on_device(struct model *m, const struct machine *machine)
{
    struct nb_error error = {""};
    struct nb_grad *g = NULL;
    int rc = nb_grad_open_on(&m->plan, machine->team, device, &g, &error);
    if (rc == -ENOTSUP) {
        assert_non_null(strstr(error.text, "experts"));
        return;
    }
    assert_int_equal(rc, 0);
    begin_batch(g);
    for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]); i++)
        compare(m, g, machine, &inputs[i]);
    nb_grad_close(g);
}

static void check(struct model *m)
{
    struct machine machine;
    open_machine(m, &machine);
    if (device) {
        check_on_device(m, &machine);
        close_machine(m, &machine);
        return;
    }
    const bool begins = m->layer_ops[0] > 0;
    float d[ROWS * E], *gradient[3 * OPS] = {NULL};
    uint32_t n;
    struct nb_grad_tensor *t = nb_grad_tensors(machine.g, &n);
    for (uint32_t i = 0; i < n; i++)
        t[i].gradient = gradient[i] = vector(m, (size_t)t[i].experts * t[i].rows * t[i].cols, 0, 0);
    memcpy(d, machine.slope, sizeof(d));
    assert_int_equal(begins ? nb_grad_begin_back(machine.g, d)
                            : nb_grad_layer_back(machine.g, 0, machine.x, NULL, d, true),
                     0);
    if (!begins)
        expect(loss_at(&machine, machine.along, STEP) - loss_at(&machine, machine.along, -STEP), d,
               machine.along, ROWS * E);
    for (uint32_t i = 0; i < n; i++)
        check_tensor(m, &machine, &t[i], begins ? begin_loss : loss_at, gradient[i]);
    close_machine(m, &machine);
}

// --- Ops

// N = the norm of X, by `heads` heads; X += a matrix N.
static void norm_by(enum nb_norm_kind kind, uint32_t heads, bool weighted, bool each)
{
    struct model m;
    begin_model(&m);
    m.arch.norm = kind;
    struct nb_op *op = add_op(&m, NB_OP_NORM, NB_VALUE_X, NB_VALUE_N);
    if (heads > 1) { // of queries, in place
        m.plan.n_ops--;
        (void)add_linear(&m, NB_VALUE_X, NB_VALUE_QKV);
        op = add_op(&m, NB_OP_NORM, NB_VALUE_Q, NB_VALUE_Q);
    }
    op->heads = heads;
    op->dim = op->in.width / heads;
    op->each = each;
    op->weight = weighted ? vector(&m, (each ? heads : 1) * (size_t)op->dim, 1, 0.5f) : NULL;
    op->bias = kind == NB_NORM_LAYER && weighted ? vector(&m, op->dim, 0, 0.5f) : NULL;
    (void)add_linear(&m, heads > 1 ? NB_VALUE_Q : NB_VALUE_N, NB_VALUE_X);
    check(&m);
}

static void norms(void **state)
{
    for (int weighted = 0; weighted < 2; weighted++)
        for (int kind = NB_NORM_RMS; kind <= NB_NORM_LAYER; kind++) {
            norm_by((enum nb_norm_kind)kind, 1, weighted, false);
            norm_by((enum nb_norm_kind)kind, HEADS, weighted, false);
            norm_by((enum nb_norm_kind)kind, HEADS, weighted, true);
        }
}

// X = the norm of X, as encoders have it.
static void norm_in_place(void **state)
{
    struct model m;
    begin_model(&m);
    m.arch.norm = NB_NORM_LAYER;
    (void)add_linear(&m, NB_VALUE_X, NB_VALUE_X);
    struct nb_op *op = add_op(&m, NB_OP_NORM, NB_VALUE_X, NB_VALUE_X);
    op->weight = vector(&m, E, 1, 0.5f);
    op->bias = vector(&m, E, 0, 0.5f);
    check(&m);
}

static void linear(void **state)
{
    struct model m;
    begin_model(&m);
    add_bias(&m, add_linear(&m, NB_VALUE_X, NB_VALUE_O));
    add_bias(&m, add_linear(&m, NB_VALUE_O, NB_VALUE_X));
    check(&m);
}

static void attention_by(bool causal, uint32_t window, float softcap, bool rope, bool neox)
{
    struct model m;
    begin_model(&m);
    m.plan.hp.causal = causal;
    m.plan.hp.attn_softcap = softcap;
    m.arch.rope_neox = neox;
    (void)add_linear(&m, NB_VALUE_X, NB_VALUE_QKV);
    for (int i = 0; rope && i < 2; i++) {
        struct nb_op *op =
            add_op(&m, NB_OP_ROPE, i ? NB_VALUE_K : NB_VALUE_Q, i ? NB_VALUE_K : NB_VALUE_Q);
        op->heads = i ? KV : HEADS;
        op->dim = K_DIM;
    }
    add_op(&m, NB_OP_KV, NB_VALUE_K, NB_VALUE_NONE)->other = slice(NB_VALUE_V);
    add_op(&m, NB_OP_ATTENTION, NB_VALUE_Q, NB_VALUE_A)->window = window;
    (void)add_linear(&m, NB_VALUE_A, NB_VALUE_X);
    check(&m);
}

static void attention(void **state)
{
    attention_by(true, 0, 0, false, false);
    attention_by(true, 0, 0, true, false);
    attention_by(true, 4, 0, true, true);
    attention_by(true, 5, 1.5f, false, false);
    attention_by(false, 0, 0, false, false);
    attention_by(false, 0, 2.0f, true, true);
}

static void activations(void **state)
{
    for (int kind = 0; kind < NB_ACT_COUNT; kind++)
        for (int gated = 0; gated < 2; gated++) {
            struct model m;
            begin_model(&m);
            m.arch.activation = (enum nb_activation)kind;
            struct nb_op *gate = add_linear(&m, NB_VALUE_X, NB_VALUE_H);
            if (kind == NB_ACT_RELU) // no step may lead across its bend
                gate->bias = vector_of_two(&m, FFN, 3);
            if (gated)
                (void)add_linear(&m, NB_VALUE_X, NB_VALUE_UP);
            struct nb_op *op = add_op(&m, NB_OP_ACTIVATE, NB_VALUE_H, NB_VALUE_H);
            op->other = gated ? slice(NB_VALUE_UP) : op->other;
            (void)add_linear(&m, NB_VALUE_H, NB_VALUE_X);
            check(&m);
        }
}

static void sums_and_caps(void **state)
{
    for (int i = 0; i < 3; i++) {
        struct model m;
        begin_model(&m);
        (void)add_linear(&m, NB_VALUE_X, NB_VALUE_O);
        struct nb_op *cap = add_op(&m, NB_OP_CAP, NB_VALUE_O, NB_VALUE_O);
        cap->scale = 1.3f;
        cap->cap = i ? 0.7f : 0.0f;
        // Of a cap whose argument something reads before.
        if (i == 2)
            (void)add_linear(&m, NB_VALUE_O, NB_VALUE_X);
        add_op(&m, NB_OP_ADD, NB_VALUE_O, NB_VALUE_X)->scale = 0.6f;
        check(&m);
    }
}

static void experts_by(enum nb_gating gating, bool norm, float scale, bool biased)
{
    struct model m;
    begin_model(&m);
    m.plan.hp.gating = gating;
    m.plan.hp.expert_weights_norm = norm;
    m.plan.hp.expert_weights_scale = scale;
    (void)add_linear(&m, NB_VALUE_X, NB_VALUE_ROUTER);
    struct nb_op *route = add_op(&m, NB_OP_ROUTE, NB_VALUE_ROUTER, NB_VALUE_NONE);
    route->bias = biased ? vector(&m, 5, 0, 1) : NULL;
    struct nb_op *linears[] = {add_linear(&m, NB_VALUE_X, NB_VALUE_E_H),
                               add_linear(&m, NB_VALUE_X, NB_VALUE_E_UP)};
    add_op(&m, NB_OP_ACTIVATE, NB_VALUE_E_H, NB_VALUE_E_H)->other = slice(NB_VALUE_E_UP);
    (void)add_linear(&m, NB_VALUE_E_H, NB_VALUE_E_O);
    add_op(&m, NB_OP_COMBINE, NB_VALUE_E_O, NB_VALUE_X)->scale = 0.8f;
    for (int i = 0; biased && i < 2; i++)
        add_bias(&m, linears[i]);
    check(&m);
}

static void experts(void **state)
{
    for (int gating = NB_GATING_SOFTMAX; gating <= NB_GATING_SOFTMAX_OF_CHOSEN; gating++) {
        experts_by((enum nb_gating)gating, false, 1.0f, false);
        experts_by((enum nb_gating)gating, true, 1.7f, true);
    }
}

static void embeddings(void **state)
{
    struct model m;
    begin_model(&m);
    for (int lookup = NB_LOOKUP_TOKEN; lookup <= NB_LOOKUP_FIRST; lookup++) {
        struct nb_op *op = add_op(&m, NB_OP_EMBED, NB_VALUE_NONE, NB_VALUE_X);
        op->lookup = (enum nb_lookup)lookup;
        op->scale = 1.0f + 0.5f * (float)lookup;
        op->add = lookup > 0;
        op->w = matrix(&m, lookup == NB_LOOKUP_POSITION ? 64 : VOCAB, E, 1);
    }
    struct nb_op *norm = add_op(&m, NB_OP_NORM, NB_VALUE_X, NB_VALUE_X);
    norm->weight = vector(&m, E, 1, 0.5f);
    m.layer_ops[0] = m.plan.n_ops;
    check(&m);
}

static int open_device(void)
{
    const char *name = test_cpu_driver();
    struct nb_error error = {""};
    return name ? nb_device_create(name, &(struct nb_device_options){.threads = 2}, &device, &error)
                : -ENODEV;
}

int main(int argc, char **argv)
{
    if (argc > 1 && open_device() < 0)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms),       cmocka_unit_test(norm_in_place),
        cmocka_unit_test(linear),      cmocka_unit_test(attention),
        cmocka_unit_test(activations), cmocka_unit_test(sums_and_caps),
        cmocka_unit_test(experts),     cmocka_unit_test(embeddings),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (device)
        device->ops->destroy(device);
    return failed;
}
