// The harness on what families differ in: each property alone among plain ops, in forms that a
// device fuses and in others, on odd shapes.
#include <math.h>

#include "tests/kernels/check.h"
#include "tests/vulkan/ops.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const struct op_script few = {3, {{1}, {3}, {17}}};
// Blocks that begin and end within steps, sequences beside each other, single rows after many.
static const struct op_script sequences = {
    7, {{40}, {5, 33}, {1, 1, 1}, {17, 0, 3}, {0, 1}, {33, 2, 29}, {3}}};
// Whole texts, whose tokens see each other, beside each other.
static const struct op_script texts = {4, {{40}}};

#define PLAIN     .terms = 2, .norm = true, .sane = true
#define FFN(e, f) PLAIN, .middle = MIDDLE_FFN, .embedding = (e), .ffn = (f)
#define HEADS(n, kv, k, v)                                                                         \
    .heads = (n), .kv_heads = (kv), .k_dim = (k), .v_dim = (v), .context = 512
#define ATTENTION(e) PLAIN, .middle = MIDDLE_ATTENTION, .embedding = (e)
#define BOTH(e, f)   PLAIN, .middle = MIDDLE_BOTH, .embedding = (e), .ffn = (f)
#define EXPERTS(e, f, n, k)                                                                        \
    PLAIN, .middle = MIDDLE_EXPERTS, .embedding = (e), .ffn = (f), .experts = (n), .chosen = (k)

// Types in turn; rows that do not divide into blocks are of floats.
static void run(struct nb_device *r, struct nb_device *d, const struct op_case *cases, size_t n,
                const struct op_script *script)
{
    static const uint32_t types[] = {NB_TYPE_Q4_0, NB_TYPE_F32, NB_TYPE_Q8_0, NB_TYPE_F16};
    for (size_t i = 0; i < n; i++) {
        struct op_case c = cases[i];
        const bool odd = (c.embedding | c.ffn | c.heads * c.v_dim) % 32;
        c.type = c.type2 = types[odd ? 1 + i % 2 * 2 : i % 4];
        if (op_is_wanted(c.type))
            op_check_case(r, d, &c, script);
    }
}

// Inputs whose blocks share a scale: by rows, and by a range that some of them exceed.
void op_check_inputs(struct nb_device *r, struct nb_device *d)
{
    static const struct op_case cases[] = {
        {"inputs", .embedding = 160, .vocab = 101},
        {"inputs, normalized", .embedding = 576, .vocab = 40, .norm = true},
        {"inputs, by LayerNorm", FFN(96, 64), .norm_kind = NB_NORM_LAYER, .bias = true},
        {"inputs, gated", FFN(160, 96)},
        {"inputs, attention", BOTH(64, 96), HEADS(3, 1, 64, 64), .rope_dims = 64},
        {"inputs, experts", EXPERTS(64, 96, 5, 2)},
    };
    static const uint32_t types[] = {NB_TYPE_Q8_0, NB_TYPE_Q4_1};
    for (size_t i = 0; i < 2 * COUNT(cases); i++) {
        struct op_case c = cases[i / 2];
        c.terms = 1;
        c.type = c.type2 = types[(i + i / 2) % 2];
        c.scaled = i % 2 ? NB_INPUT_FIXED : NB_INPUT_ROW;
        c.range = 0.75f;
        if (op_is_wanted(c.type))
            op_check_case(r, d, &c, &few);
    }
}

void op_check_norms(struct nb_device *r, struct nb_device *d)
{
    static const struct op_case cases[] = {
        {"LayerNorm", FFN(96, 64), .norm_kind = NB_NORM_LAYER, .bias = true},
        {"LayerNorm, odd", FFN(75, 61), .norm_kind = NB_NORM_LAYER, .bias = true},
        {"LayerNorm without weights", FFN(576, 32), .norm_kind = NB_NORM_LAYER, .weightless = true},
        {"RMS without weights", FFN(64, 96), .weightless = true},
        {"norms behind", FFN(160, 64), .apart = true, .scale = 0.25f},
        {"norms behind, odd", FFN(39, 50), .apart = true, .bias = true},
        {"LayerNorm behind", FFN(96, 96), .apart = true, .norm_kind = NB_NORM_LAYER},
        {"LayerNorm of the head", PLAIN, .norm_kind = NB_NORM_LAYER, .bias = true, .embedding = 128,
         .vocab = 101},
        {"a wide LayerNorm", PLAIN, .norm_kind = NB_NORM_LAYER, .embedding = 1504, .vocab = 33},
        {"the last norm", PLAIN, .vectors = true, .embedding = 160, .vocab = 48},
        {"the last LayerNorm", PLAIN, .vectors = true, .norm_kind = NB_NORM_LAYER, .bias = true,
         .embedding = 90, .vocab = 48},
        {"the last norm, behind layers", FFN(96, 64), .vectors = true},
    };
    run(r, d, cases, COUNT(cases), &few);
}

void op_check_activations(struct nb_device *r, struct nb_device *d)
{
    for (enum nb_activation kind = 0; kind < NB_ACT_COUNT; kind++) {
        const struct op_case cases[] = {
            {"a gate", FFN(64, 96), .activation = kind, .bias = true},
            {"no gate", FFN(96, 160), .activation = kind, .gateless = true, .bias = true},
            {"gate and up in one", FFN(96, 64), .activation = kind, .fused = true, .bias = true},
            {"gate and up in one, odd", FFN(64, 84), .activation = kind, .fused = true},
        };
        run(r, d, cases, COUNT(cases), &few);
    }
}

void op_check_heads(struct nb_device *r, struct nb_device *d)
{
    static const struct op_case cases[] = {
        {"norms of heads", ATTENTION(64), HEADS(4, 2, 32, 32), .rope_dims = 32, .neox = true,
         .head_norm = HEAD_NORM_SHARED},
        {"norms of each head", ATTENTION(48), HEADS(3, 3, 24, 32), .rope_dims = 16,
         .head_norm = HEAD_NORM_EACH},
        {"norms of rows of heads", ATTENTION(64), HEADS(6, 2, 18, 16), .rope_dims = 18,
         .head_norm = HEAD_NORM_ROW},
        {"LayerNorm of heads", ATTENTION(64), HEADS(4, 4, 26, 34), .rope_dims = 6,
         .head_norm = HEAD_NORM_EACH, .norm_kind = NB_NORM_LAYER},
        {"q, k and v in one", ATTENTION(64), HEADS(4, 2, 32, 32), .rope_dims = 32, .neox = true,
         .fused = true},
        {"q, k and v in one, odd", ATTENTION(64), HEADS(3, 1, 18, 10), .rope_dims = 8,
         .fused = true, .bias = true},
        {"q, k and v in one, unlike", ATTENTION(64), HEADS(2, 1, 48, 64), .rope_dims = 48,
         .fused = true, .neox = true},
        {"no RoPE", ATTENTION(64), HEADS(4, 2, 16, 32), .still = true},
        {"no RoPE, in one", ATTENTION(64), HEADS(4, 4, 14, 14), .still = true, .fused = true},
        {"no RoPE, norms", ATTENTION(64), HEADS(4, 2, 32, 32), .still = true,
         .head_norm = HEAD_NORM_SHARED},
        {"the second RoPE", ATTENTION(64), HEADS(4, 2, 32, 32), .rope_dims = 24, .ropes = 2},
        {"the second RoPE, odd", ATTENTION(64), HEADS(2, 2, 20, 12), .rope_dims = 14, .ropes = 2,
         .neox = true},
        {"result behind a norm", ATTENTION(96), HEADS(4, 2, 32, 32), .rope_dims = 32, .apart = true,
         .scale = 0.5f},
        {"values that are no blocks", ATTENTION(64), HEADS(16, 4, 18, 18), .rope_dims = 18},
        {"odd heads", ATTENTION(64), HEADS(4, 2, 13, 13), .still = true},
        {"odd heads, RoPE", ATTENTION(64), HEADS(3, 1, 9, 7), .rope_dims = 6, .neox = true,
         .fused = true},
        {"odd heads, floats", ATTENTION(64), HEADS(4, 2, 15, 33), .rope_dims = 14,
         .kv_type = NB_KV_F32},
        {"a window", ATTENTION(64), HEADS(4, 2, 32, 64), .rope_dims = 32, .window = 7,
         .head_norm = HEAD_NORM_SHARED},
        {"floats", ATTENTION(64), HEADS(4, 2, 64, 64), .rope_dims = 64, .kv_type = NB_KV_F32},
        {"floats, odd", ATTENTION(64), HEADS(6, 2, 26, 38), .rope_dims = 6, .kv_type = NB_KV_F32,
         .window = 33, .softcap = 5, .neox = true},
        {"floats, no RoPE", ATTENTION(64), HEADS(3, 1, 32, 32), .still = true,
         .kv_type = NB_KV_F32},
        {"codes, no RoPE", ATTENTION(64), HEADS(3, 1, 32, 64), .still = true, .neox = true,
         .kv_type = NB_KV_Q8_0},
        {"codes, norms", ATTENTION(64), HEADS(4, 2, 32, 32), .rope_dims = 32, .kv_type = NB_KV_Q8_0,
         .head_norm = HEAD_NORM_EACH, .fused = true},
    };
    run(r, d, cases, COUNT(cases), &sequences);
}

void op_check_texts(struct nb_device *r, struct nb_device *d)
{
    static const struct op_script beside = {3, {{40}, {33, 1, 29}, {1, 17, 40}}};
    static const struct op_case cases[] = {
        {"both sides", ATTENTION(64), HEADS(4, 4, 16, 32), .still = true, .bidirectional = true},
        {"both sides, floats", ATTENTION(64), HEADS(4, 2, 32, 32), .rope_dims = 32,
         .bidirectional = true, .kv_type = NB_KV_F32},
        {"both sides, softcap", ATTENTION(64), HEADS(4, 2, 26, 18), .rope_dims = 26,
         .bidirectional = true, .softcap = 3},
        {"vectors of texts", BOTH(96, 64), HEADS(4, 4, 24, 24), .still = true,
         .bidirectional = true, .vectors = true, .norm_kind = NB_NORM_LAYER, .bias = true,
         .activation = NB_ACT_GELU_ERF, .gateless = true, .positions = true},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        run(r, d, &cases[i], 1, &texts);
    for (uint32_t i = 0; i < beside.n; i++) {
        const struct op_script one = {1,
                                      {{beside.rows[i][0], beside.rows[i][1], beside.rows[i][2]}}};
        run(r, d, cases, COUNT(cases), &one);
    }
}

void op_check_layers(struct nb_device *r, struct nb_device *d)
{
    static const struct op_case cases[] = {
        {"both read one norm", BOTH(64, 96), HEADS(4, 2, 32, 32), .rope_dims = 32,
         .parallel = true},
        {"both read one LayerNorm", BOTH(64, 96), HEADS(4, 2, 16, 24), .rope_dims = 16,
         .parallel = true, .norm_kind = NB_NORM_LAYER, .bias = true},
        {"no norm before", .terms = 2, .sane = true, .middle = MIDDLE_BOTH, .embedding = 64,
         .ffn = 64, HEADS(2, 2, 32, 32), .rope_dims = 32, .apart = true},
        {"norms around", BOTH(96, 64), HEADS(4, 1, 32, 32), .rope_dims = 32, .neox = true,
         .apart = true, .activation = NB_ACT_GELU, .head_norm = HEAD_NORM_SHARED, .scale = 3},
        {"scaled", BOTH(64, 64), HEADS(4, 2, 32, 32), .rope_dims = 32, .apart = true,
         .scale = 0.22f, .vocab = 77, .logit_scale = 0.125f},
        {"capped", BOTH(64, 64), HEADS(4, 2, 32, 32), .rope_dims = 32, .vocab = 61, .logit_cap = 2},
        {"positions", BOTH(64, 64), HEADS(4, 4, 16, 16), .still = true, .positions = true,
         .norm_kind = NB_NORM_LAYER, .bias = true, .fused = true, .gateless = true},
        {"scaled inputs and positions", PLAIN, .embedding = 96, .vocab = 55, .positions = true,
         .context = 512, .scale = 11, .logit_scale = 0.3f, .logit_cap = 20},
        {"vectors and layers", BOTH(96, 64), HEADS(4, 2, 32, 32), .rope_dims = 32, .vectors = true,
         .vocab = 40},
    };
    run(r, d, cases, COUNT(cases), &sequences);
}

void op_check_experts(struct nb_device *r, struct nb_device *d)
{
    static const struct op_case cases[] = {
        {"2 of 8 experts", EXPERTS(64, 96, 8, 2), .weights_norm = true},
        {"all experts", EXPERTS(96, 64, 3, 3), .gating = NB_GATING_SIGMOID},
        {"one of 40 experts", EXPERTS(64, 32, 40, 1), .choice_bias = true,
         .gating = NB_GATING_SIGMOID, .scale = 2.5f},
        {"8 of 33 experts, biases", EXPERTS(64, 64, 33, 8), .bias = true, .weights_norm = true},
        {"experts of the chosen", EXPERTS(96, 32, 12, 4), .gating = NB_GATING_SOFTMAX_OF_CHOSEN,
         .bias = true},
        {"odd experts", EXPERTS(50, 75, 7, 3), .weights_norm = true, .bias = true},
        {"experts without gate", EXPERTS(64, 96, 6, 2), .gateless = true,
         .activation = NB_ACT_RELU2},
        {"experts, GELU", EXPERTS(64, 96, 6, 2), .activation = NB_ACT_GELU,
         .norm_kind = NB_NORM_LAYER},
        {"32 of 64 experts", EXPERTS(64, 32, 64, 32), .weights_norm = true},
        // Weights whose sum is 0, and below and above the least that they are divided by.
        {"experts of no weight", EXPERTS(64, 96, 8, 2), .gating = NB_GATING_SIGMOID,
         .weights_norm = true, .score_bias = -200},
        {"experts of little weight", EXPERTS(64, 96, 8, 2), .gating = NB_GATING_SIGMOID,
         .weights_norm = true, .score_bias = -11},
    };
    // Rows of zeros score all alike; of 40 experts some have scores that are no numbers.
    static const struct op_case odd[] = {
        {"experts of equal scores", .terms = 2, .norm = true, .middle = MIDDLE_EXPERTS,
         .embedding = 64, .ffn = 32, .experts = 12, .chosen = 5},
        {"experts of no numbers", .terms = 2, .norm = true, .middle = MIDDLE_EXPERTS,
         .embedding = 64, .ffn = 32, .experts = 40, .chosen = 5, .gating = NB_GATING_SIGMOID,
         .score_bias = -11}, // fewer sigmoids that are 1 in fp32 and not in double
    };
    run(r, d, cases, COUNT(cases), &few);
    run(r, d, odd, COUNT(odd), &few);
}

// --- How many dispatches a layer is, of one row in the plainest tier: neighbours that have a form
// of their own keep it.

static uint64_t count_dispatches(struct nb_device *d, const struct op_case *c)
{
    struct op_run r;
    struct nb_op_time t[NB_SECTIONS];
    uint64_t n = 0;
    op_run_begin(&r, d, c);
    op_run_rows(&r, 1, 0);
    op_step(&r.machine, &r.batch.rows);
    d->ops->times(r.machine.model, t);
    for (enum nb_section section = NB_SECTION_QKV; section < NB_SECTION_HEAD; section++)
        n += t[section].dispatches;
    op_run_end(&r);
    return n;
}

#define LAYER BOTH(64, 96), HEADS(4, 2, 32, 32), .rope_dims = 32, .vocab = 32

void op_check_dispatches(struct nb_device *d)
{
    static const struct {
        struct op_case c;
        uint64_t dispatches;
    } cases[] = {
        // Among them one that gathers the wanted rows, and the first norm.
        {{"llama", LAYER}, 7},
        {{"q, k and v in one, gate and up too", LAYER, .fused = true}, 7},
        {{"GELU", LAYER, .activation = NB_ACT_GELU}, 7},
        {{"no gate", LAYER, .gateless = true}, 7},
        {{"norms of heads", LAYER, .head_norm = HEAD_NORM_SHARED}, 10},
        {{"norms around", LAYER, .apart = true}, 10},
        {{"LayerNorm", LAYER, .norm_kind = NB_NORM_LAYER, .bias = true}, 8},
        {{"both read one norm", LAYER, .parallel = true}, 9},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct op_case c = cases[i].c;
        c.type = c.type2 = NB_TYPE_Q4_0;
        const uint64_t got = count_dispatches(d, &c);
        check_bytes(&cases[i].dispatches, &got, sizeof(got), "%s: %llu dispatches, not %llu",
                    c.what, (unsigned long long)got, (unsigned long long)cases[i].dispatches);
    }
}
