// Which neighbours share dispatches.
#include "engine/vulkan/stages.h"

static bool is_of_experts(const struct nb_op *op)
{
    return nb_value_is_of_experts(op->in.value) || nb_value_is_of_experts(op->out.value);
}

// The rows of a step change at the tail, so no stage reaches across.
static uint32_t end_of(const struct nb_plan *plan, uint32_t i)
{
    return i < plan->tail ? plan->tail : plan->n_ops;
}

static uint32_t count_gemms(const struct nb_plan *plan, uint32_t i)
{
    const struct nb_op *first = &plan->ops[i];
    const uint32_t end = end_of(plan, i);
    uint32_t n = 0;
    while (i + n < end && first[n].kind == NB_OP_LINEAR &&
           nb_same_slice(&first[n].in, &first->in) && nb_same_codes(&first[n], first) &&
           first[n].out.value != first->in.value &&
           is_of_experts(&first[n]) == is_of_experts(first))
        n++;
    return n;
}

// A norm of whole rows, which the shader that quantizes them knows.
static bool makes_input(const struct nb_plan *plan, uint32_t i)
{
    const struct nb_op *norm = &plan->ops[i], *next = norm + 1;
    return norm->kind == NB_OP_NORM && norm->weight && norm->heads == 1 &&
           norm->in.width == norm->in.stride && norm->out.value != norm->in.value &&
           i + 1 < end_of(plan, i) && next->kind == NB_OP_LINEAR &&
           nb_same_slice(&norm->out, &next->in);
}

// Two matrices, or the halves of one that row groups do not straddle.
static bool is_gated(const struct nb_op *gate, uint32_t n, const struct nb_op *act)
{
    if (n == 1)
        return act->in.value == gate->out.value && act->other.value == gate->out.value &&
               gate->out.width == 2 * act->in.width && act->in.width % NB_GROUP_ROWS == 0;
    return n == 2 && !gate[1].add && nb_same_slice(&act->in, &gate->out) &&
           nb_same_slice(&act->other, &gate[1].out) && nb_same_slice(&act->out, &gate->out);
}

static bool is_plain(const struct nb_op *up, uint32_t n, const struct nb_op *act)
{
    return n == 1 && act->other.value == NB_VALUE_NONE && nb_same_slice(&act->in, &up->out) &&
           nb_same_slice(&act->out, &up->out);
}

// Whether GEMMs activate what they make.
static bool activates(const struct nb_plan *plan, uint32_t first, uint32_t n)
{
    const struct nb_op *op = &plan->ops[first], *act = op + n;
    return first + n < end_of(plan, first) && act->kind == NB_OP_ACTIVATE && !op->add &&
           !is_of_experts(op) && (is_gated(op, n, act) || is_plain(op, n, act));
}

static bool rotates(const struct nb_plan *plan, const struct nb_op *op, uint32_t heads, uint32_t at)
{
    return op->kind == NB_OP_ROPE && op->in.value == NB_VALUE_QKV && op->in.at == at &&
           nb_same_slice(&op->in, &op->out) && op->heads == heads && op->dim == plan->hp.k_dim;
}

// RoPE of queries and of keys, and KV.
static bool are_heads(const struct nb_plan *plan, uint32_t i)
{
    const struct nb_hparams *hp = &plan->hp;
    const struct nb_op *op = &plan->ops[i];
    return i + 2 < end_of(plan, i) && rotates(plan, op, hp->n_heads, 0) &&
           rotates(plan, op + 1, hp->n_kv_heads, hp->dim[NB_DIM_Q]) && op[0].rope == op[1].rope &&
           op[2].kind == NB_OP_KV;
}

// A norm that is added to another value, and nothing else reads it.
static bool is_added(const struct nb_plan *plan, uint32_t i)
{
    const struct nb_op *norm = &plan->ops[i], *sum = norm + 1;
    return norm->kind == NB_OP_NORM && norm->heads == 1 && i + 1 < end_of(plan, i) &&
           sum->kind == NB_OP_ADD && nb_same_slice(&norm->out, &sum->in) && plan->result != i &&
           !nb_plan_is_read(plan, i + 2, norm->out.value);
}

struct nb_vulkan_stage nb_vulkan_stage_at(const struct nb_plan *plan, uint32_t i, bool apart)
{
    struct nb_vulkan_stage s = {.first = i, .n = 1};
    s.has_norm = makes_input(plan, i);
    if (s.has_norm || plan->ops[i].kind == NB_OP_LINEAR) {
        s.n_gemms = count_gemms(plan, i + s.has_norm);
        s.activates = !apart && activates(plan, i + s.has_norm, s.n_gemms);
        s.n = s.has_norm + s.n_gemms + s.activates;
    } else if (are_heads(plan, i)) {
        s.n = 3;
    } else if (is_added(plan, i)) {
        s.n = 2;
    }
    return s;
}

static uint32_t bit_of(const struct nb_slice *s)
{
    return s->value == NB_VALUE_NONE ? 0 : 1u << s->value;
}

uint32_t nb_vulkan_values(const struct nb_plan *plan, bool apart)
{
    uint32_t values = 1u << NB_VALUE_X, n;
    for (uint32_t i = 0; i < plan->n_ops; i += n) {
        const struct nb_vulkan_stage s = nb_vulkan_stage_at(plan, i, apart);
        n = s.n;
        for (uint32_t j = i; j < i + n; j++) {
            const struct nb_op *op = &plan->ops[j];
            // What is activated as it is made is stored nowhere else.
            const bool made = s.activates && j >= i + s.has_norm;
            if (!made || j + 1 == i + n)
                values |= bit_of(&op->out);
            if (!made || j + 1 < i + n)
                values |= bit_of(&op->in) | bit_of(&op->other);
        }
    }
    return values;
}
