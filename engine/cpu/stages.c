// Which neighbouring ops become one stage.
#include "engine/cpu/stages.h"

static bool is_of_row(enum nb_op_kind kind)
{
    return kind != NB_OP_LINEAR && kind != NB_OP_ATTENTION;
}

// Ops that work head by head on what the products have made, to the one that stores the keys.
static uint32_t count_head_ops(const struct nb_plan *plan, uint32_t i)
{
    const uint32_t first = i;
    for (; i < plan->n_ops; i++) {
        const struct nb_op *op = &plan->ops[i];
        const bool of_head = (op->kind == NB_OP_NORM || op->kind == NB_OP_ROPE) &&
                             op->in.value == NB_VALUE_QKV && op->dim == plan->hp.k_dim;
        if (op->kind == NB_OP_KV)
            return i + 1 - first;
        if (!of_head)
            return 0;
    }
    return 0;
}

// Gate and up of one shape, and then their activation.
static bool is_gated(const struct nb_plan *plan, uint32_t first, uint32_t n)
{
    const struct nb_op *gate = &plan->ops[first], *up = gate + 1, *act = gate + 2;
    return n == 2 && first + 2 < plan->n_ops && act->kind == NB_OP_ACTIVATE &&
           act->other.value != NB_VALUE_NONE && nb_same_slice(&act->in, &gate->out) &&
           nb_same_slice(&act->other, &up->out) && nb_same_slice(&act->out, &gate->out) &&
           !gate->add && !up->add;
}

static bool is_plain(const struct nb_plan *plan, uint32_t first, uint32_t n)
{
    const struct nb_op *up = &plan->ops[first], *act = up + 1;
    return n == 1 && first + 1 < plan->n_ops && act->kind == NB_OP_ACTIVATE &&
           act->other.value == NB_VALUE_NONE && nb_same_slice(&act->in, &up->out) &&
           nb_same_slice(&act->out, &up->out) && !up->add;
}

static void finish_with(const struct nb_plan *plan, struct nb_cpu_stage *s)
{
    const uint32_t first = s->first + s->has_norm, end = first + s->n_products;
    const uint32_t heads = count_head_ops(plan, end);
    if (heads) {
        s->finish = NB_CPU_HEADS;
        s->n += heads;
    } else if (is_gated(plan, first, s->n_products) || is_plain(plan, first, s->n_products)) {
        s->finish = NB_CPU_ACTIVATE;
        s->n++;
    }
}

// The matrices that read the same from op `i` on; no more than one after which the rows change.
static uint32_t count_products(const struct nb_plan *plan, uint32_t i)
{
    const struct nb_op *first = &plan->ops[i];
    uint32_t n = 0;
    while (i + n < plan->n_ops && first[n].kind == NB_OP_LINEAR &&
           nb_same_slice(&first[n].in, &first->in) && nb_same_codes(&first[n], first) &&
           first[n].out.value != first->in.value &&
           nb_value_is_of_experts(first[n].out.value) == nb_value_is_of_experts(first->out.value))
        n++;
    return n;
}

static bool makes_input(const struct nb_plan *plan, uint32_t i)
{
    const struct nb_op *norm = &plan->ops[i], *next = norm + 1;
    if (norm->kind != NB_OP_NORM || norm->heads != 1 || i + 1 == plan->n_ops ||
        next->kind != NB_OP_LINEAR || !nb_same_slice(&norm->out, &next->in) ||
        norm->out.width != norm->out.stride || norm->out.value == norm->in.value)
        return false;
    return !nb_plan_is_read(plan, i + 1 + count_products(plan, i + 1), norm->out.value);
}

static struct nb_cpu_stage stage_at(const struct nb_plan *plan, uint32_t i)
{
    struct nb_cpu_stage s = {.first = i, .n = 1};
    const enum nb_op_kind kind = plan->ops[i].kind;
    s.has_norm = makes_input(plan, i);
    if (kind == NB_OP_ATTENTION) {
        s.kind = NB_CPU_ATTENTION;
    } else if (kind == NB_OP_LINEAR || s.has_norm) {
        s.kind = NB_CPU_PRODUCTS;
        s.n_products = count_products(plan, i + s.has_norm);
        s.n = s.has_norm + s.n_products;
        finish_with(plan, &s);
    } else {
        while (i + s.n < plan->n_ops && i + s.n != plan->tail &&
               is_of_row(plan->ops[i + s.n].kind) &&
               plan->ops[i + s.n].section == plan->ops[i].section &&
               nb_value_is_of_experts(plan->ops[i + s.n].out.value) ==
                   nb_value_is_of_experts(plan->ops[i].out.value) &&
               !makes_input(plan, i + s.n))
            s.n++;
    }
    return s;
}

uint32_t nb_cpu_stages(const struct nb_plan *plan, struct nb_cpu_stage *ret)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < plan->n_ops; i += ret[n++].n)
        ret[n] = stage_at(plan, i);
    return n;
}
