// Products of experts: a row for each expert that a token takes, which says where its weights are.
// Only the bytes of those that are taken are read.
#include <string.h>

#include "engine/vulkan/builder.h"

uint32_t build_order_at(const struct builder *b)
{
    return b->m->extent.padded_rows * b->m->plan->hp.n_chosen * 2;
}

// The biases of all experts, each from a texel on.
static uint32_t lay_biases(struct builder *b, const struct nb_op *op)
{
    const uint32_t rows = op->w->packed.rows;
    uint32_t first = NONE;
    for (uint32_t e = 0; e < op->w->n && op->bias; e++) {
        uint32_t at = build_vector(b, op->bias + (size_t)e * rows, rows);
        first = e ? first : at;
    }
    return first;
}

static void add_window(struct builder *b, const struct nb_op *op, const struct source *from,
                       const struct nb_vulkan_part *part, bool beside)
{
    struct nb_device_model *m = b->m;
    const struct nb_plan *plan = m->plan;
    const struct nb_packed *w = &op->w->packed;
    const struct nb_vulkan_buffers *all = &m->buffers;
    const enum nb_value in = op->in.value, out = op->out.value;
    struct nb_vulkan_window window;
    (void)nb_vulkan_window_of(m->device, &m->weights, part, 1, &window);
    struct push_gemm push = {.count = b->count, .out4 = nb_vulkan_stride(plan, out) / 4};
    nb_vulkan_tell(part, 1, MODE_STORE, &window, &push);
    push.in4 = nb_is_float(w) ? from->width / 4 : nb_vulkan_record_words4(w->cols, op->terms);
    // As every expert sees its own matrix.
    push.groups = nb_vulkan_groups(w);
    push.first[1] = push.first[2] = push.groups;
    push.rows[0] = w->rows;
    push.column4[0] = 0;
    push.bias1[0] = part->bias1;
    push.more[EXPERTS_BEGIN] = part->group0;
    push.more[EXPERTS_END] = part->group0 + part->groups;
    push.more[EXPERTS_EACH] = push.groups;
    push.more[EXPERTS_CHOSEN] = plan->hp.n_chosen;
    push.more[EXPERTS_SHARED] = nb_value_is_of_experts(in) ? 1 : plan->hp.n_chosen;
    push.more[EXPERTS_ORDER1] = build_order_at(b);
    struct nb_vulkan_dispatch *p = build_add(b, NB_VULKAN_TOKENS, out, push.groups * 4);
    m->program.dispatches[b->order].orders = m->program.n;
    p->beside = beside;
    p->cols = w->cols;
    build_push(p, &push, sizeof(push));
    uint32_t c[CONST_TIER] = {0};
    nb_vulkan_constants(w, c);
    c[CONST_TERMS] = nb_is_float(w) ? 1 : op->terms;
    build_specialise(b, p, nb_is_float(w) ? NB_SHADER_GEMM_FLOATS_EXPERTS : NB_SHADER_GEMM_EXPERTS,
                     c);
    build_bind(b, p, &window,
               (bindings){[BIND_VECTORS] = &all->vectors,
                          [BIND_IN] = from->floats,
                          [BIND_ACT] = from->records,
                          [BIND_OUT] = build_buffer(b, out),
                          [BIND_OUT2] = &all->sync,
                          [BIND_KV] = &all->choices,
                          [BIND_FLOATS] = &all->sync,
                          [BIND_SYNC] = &all->sync});
}

void build_experts(struct builder *b, const struct nb_op *op, const struct source *from,
                   bool beside)
{
    const struct nb_device_model *m = b->m;
    // All matrices as one, whose windows may begin and end within an expert's.
    struct nb_packed stack = op->w->packed;
    stack.rows = op->w->n * nb_vulkan_groups(&op->w->packed) * NB_GROUP_ROWS;
    struct nb_vulkan_part part = {.w = &stack, .bias1 = lay_biases(b, op)};
    const uint32_t groups = nb_vulkan_groups(&stack);
    for (; part.group0 < groups && b->rc == 0; part.group0 += part.groups, beside = true) {
        part.groups = nb_vulkan_fitting(m->device, &m->weights, &stack, part.group0);
        add_window(b, op, from, &part, beside);
    }
}
