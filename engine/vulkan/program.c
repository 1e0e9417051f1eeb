// A plan as dispatches: what each of its stages becomes.
#include "engine/vulkan/program.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/vulkan/builder.h"
#include "tensor/fail.h"

#define SPREAD     8   // invocations that share a row of many,
#define SPREAD_FEW 256 // and of few

// From here on the rows are those whose result is wanted: no others are needed once the last layer
// has its keys and values.
static void begin_tail(struct builder *b)
{
    struct nb_device_model *m = b->m;
    const uint32_t values = nb_plan_tail_values(m->plan);
    uint32_t n = 0;
    m->program.tail = m->program.n;
    b->count = STEP_WANTED;
    b->finisher = 0;
    memset(b->made, 0, sizeof(b->made));
    for (uint32_t v = NB_VALUE_X; v < NB_VALUES; v++) {
        if (!(values >> v & 1))
            continue;
        const struct rows rows = {.value = (enum nb_value)v,
                                  .from = &m->buffers.value[v],
                                  .floats = &m->buffers.tail[v],
                                  .cols = m->plan->width[v],
                                  .width = nb_vulkan_stride(m->plan, (enum nb_value)v),
                                  .terms = 1,
                                  .gather = m->tables.wanted};
        build_rows(b, &rows)->beside = n++ > 0;
    }
    b->gathers = n > 0;
}

static void add_attention(struct builder *b)
{
    // It reads of the values that are gathered nothing but queries, and those where they were.
    build_attention(b, b->stage.first == b->m->plan->tail && b->gathers);
}

static void add_embed(struct builder *b)
{
    struct nb_device_model *m = b->m;
    const struct nb_op *op = op_of(b, 0);
    const struct nb_packed *w = &op->w->packed;
    const uint32_t tables[] = {[NB_LOOKUP_TOKEN] = m->tables.token,
                               [NB_LOOKUP_POSITION] = m->tables.position,
                               [NB_LOOKUP_FIRST] = NONE};
    const uint32_t groups = op->lookup == NB_LOOKUP_FIRST ? 1 : nb_vulkan_groups(w);
    struct nb_vulkan_part part = {.w = w, .bias1 = NONE};
    for (; part.group0 < groups && b->rc == 0; part.group0 += part.groups) {
        part.groups = nb_vulkan_fitting(m->device, &m->weights, w, part.group0);
        struct nb_vulkan_window window;
        (void)nb_vulkan_window_of(m->device, &m->weights, &part, 1, &window);
        const struct push_embed push = {.table1 = tables[op->lookup],
                                        .weight1 = nb_vulkan_weight1(&part, &window),
                                        .first_row = part.group0 * NB_GROUP_ROWS,
                                        .rows = nb_vulkan_rows_of(&part),
                                        .cols = w->cols,
                                        .planes = nb_vulkan_planes(w),
                                        .out1 = nb_vulkan_stride(m->plan, op->out.value),
                                        .adds = op->add,
                                        .scale = op->scale};
        struct nb_vulkan_dispatch *p =
            build_add(b, NB_VULKAN_ROWS, op->out.value, (w->cols + 31) / 32);
        p->beside = part.group0 > 0;
        build_push(p, &push, sizeof(push));
        uint32_t c[CONST_TIER] = {0};
        nb_vulkan_constants(w, c);
        build_specialise(b, p, NB_SHADER_EMBED, c);
        build_bind(b, p, &window, (bindings){[BIND_OUT] = build_buffer(b, op->out.value)});
    }
}

// Perhaps added to another value, as the op behind it says.
static void add_norm(struct builder *b)
{
    struct nb_device_model *m = b->m;
    const struct nb_op *op = op_of(b, 0), *last = op_of(b, b->stage.n - 1);
    const bool adds = last->kind == NB_OP_ADD;
    const struct nb_slice *to = &last->out;
    const enum nb_value in = op->in.value, out = to->value;
    const uint32_t weights = op->dim * (op->each ? op->heads : 1);
    const struct push_norm push = {.count = b->count,
                                   .each = nb_plan_rows(m->plan, out, 1),
                                   .dim = op->dim,
                                   .in1 = nb_vulkan_stride(m->plan, in),
                                   .in_at = build_column(b, &op->in),
                                   .out1 = nb_vulkan_stride(m->plan, out),
                                   .out_at = build_column(b, to),
                                   .weight1 =
                                       op->weight ? build_vector(b, op->weight, weights) : NONE,
                                   .weights1 = op->each ? op->dim : 0,
                                   .bias1 = op->bias ? build_vector(b, op->bias, op->dim) : NONE,
                                   .eps = m->plan->hp.norm_eps,
                                   .adds = adds,
                                   .scale = last->scale};
    struct nb_vulkan_dispatch *p = build_add(b, NB_VULKAN_ROWS, out, op->heads);
    p->teams = op->heads;
    build_push(p, &push, sizeof(push));
    uint32_t c[CONST_TIER] = {[CONST_TERMS] = 1};
    c[CONST_MODE] = m->plan->hp.arch->norm == NB_NORM_LAYER ? MODE_LAYER : 0;
    build_specialise(b, p, NB_SHADER_NORM, c);
    build_bind(b, p, NULL,
               (bindings){[BIND_VECTORS] = &m->buffers.vectors,
                          [BIND_IN] = build_buffer(b, in),
                          [BIND_OUT] = build_buffer(b, out),
                          [BIND_OUT2] = &m->buffers.sync});
}

// --- Ops of rows.comp

// What it is told, as far as the op's values say.
static struct push_rows rows_push(const struct builder *b)
{
    const struct nb_plan *plan = b->m->plan;
    const struct nb_op *op = op_of(b, 0);
    const struct nb_slice *out = op->kind == NB_OP_ROUTE ? &op->in : &op->out;
    const bool gates = op->other.value != NB_VALUE_NONE;
    return (struct push_rows){.count = b->count,
                              .each = nb_plan_rows(plan, out->value, 1),
                              .width = out->width,
                              .in1 = nb_vulkan_stride(plan, op->in.value),
                              .in_at = build_column(b, &op->in),
                              .other1 = gates ? nb_vulkan_stride(plan, op->other.value) : 0,
                              .other_at = gates ? build_column(b, &op->other) : 0,
                              .out1 = nb_vulkan_stride(plan, out->value),
                              .out_at = build_column(b, out),
                              .chosen = plan->hp.n_chosen,
                              .bias1 = NONE,
                              .scale = op->scale,
                              .cap = op->cap};
}

static struct nb_vulkan_dispatch *add_rows(struct builder *b, const struct push_rows *push,
                                           uint32_t mode, uint32_t units)
{
    const struct nb_vulkan_buffers *all = &b->m->buffers;
    const struct nb_op *op = op_of(b, 0);
    const enum nb_value out = op->kind == NB_OP_ROUTE ? op->in.value : op->out.value;
    const struct nb_vulkan_buffer *in = build_buffer(b, op->in.value);
    const bool experts = all->choices.buffer != VK_NULL_HANDLE;
    struct nb_vulkan_dispatch *p =
        build_add(b, NB_VULKAN_ROWS, out, units < SPREAD ? units : SPREAD);
    p->few_units = units < SPREAD_FEW ? units : SPREAD_FEW;
    build_push(p, push, sizeof(*push));
    uint32_t c[CONST_TIER] = {[CONST_TERMS] = 1, [CONST_MODE] = mode};
    build_specialise(b, p, NB_SHADER_ROWS, c);
    // What a mode does not read or write is bound nevertheless.
    build_bind(b, p, NULL,
               (bindings){[BIND_VECTORS] = &all->vectors,
                          [BIND_IN] = in,
                          [BIND_ACT] = push->other1 ? build_buffer(b, op->other.value) : in,
                          [BIND_OUT] = build_buffer(b, out),
                          [BIND_OUT2] = experts ? &all->choices : &all->sync,
                          [BIND_FLOATS] = experts ? &all->choices : &all->sync,
                          [BIND_KV] = experts ? &all->choices : &all->step});
    return p;
}

static void add_activate(struct builder *b)
{
    struct push_rows push = rows_push(b);
    push.function = b->m->plan->hp.arch->activation;
    add_rows(b, &push, MODE_ACTIVATE, (push.width + 3) / 4);
}

static void add_sum(struct builder *b)
{
    const struct push_rows push = rows_push(b);
    add_rows(b, &push, MODE_SUM, (push.width + 3) / 4);
}

static void add_scale(struct builder *b)
{
    const struct push_rows push = rows_push(b);
    add_rows(b, &push, MODE_SCALE, (push.width + 3) / 4);
}

static void add_route(struct builder *b)
{
    const struct nb_hparams *hp = &b->m->plan->hp;
    const struct nb_op *op = op_of(b, 0);
    struct push_rows push = rows_push(b);
    push.function = hp->gating;
    push.normalizes = hp->expert_weights_norm;
    push.scale = hp->expert_weights_scale;
    push.bias1 = op->bias ? build_vector(b, op->bias, hp->n_experts) : NONE;
    add_rows(b, &push, MODE_CHOOSE, 1);
    push.order1 = build_order_at(b);
    push.each = hp->n_chosen;
    b->order = b->m->program.n;
    add_rows(b, &push, MODE_ORDER, 1)->each = hp->n_chosen;
}

static void add_combine(struct builder *b)
{
    const struct push_rows push = rows_push(b);
    add_rows(b, &push, MODE_COMBINE, (push.width + 3) / 4);
}

// --- All of it

static void add_top(struct builder *b)
{
    struct nb_device_model *m = b->m;
    const struct push_top push = {.lanes = STRIPES,
                                  .wanted1 = m->tables.candidates,
                                  .vocab = m->plan->hp.vocab,
                                  .in4 = nb_vulkan_stride(m->plan, NB_VALUE_LOGITS) / 4};
    struct nb_vulkan_dispatch *p = build_add(b, NB_VULKAN_ROWS, NB_VALUE_LOGITS, STRIPES);
    build_push(p, &push, sizeof(push));
    uint32_t c[CONST_TIER] = {[CONST_TERMS] = 1};
    build_specialise(b, p, NB_SHADER_TOP, c);
    build_bind(
        b, p, NULL,
        (bindings){[BIND_IN] = &m->buffers.value[NB_VALUE_LOGITS], [BIND_OUT] = &m->buffers.best});
}

static void (*const add_stage[NB_OP_KINDS])(struct builder *b) = {
    [NB_OP_EMBED] = add_embed,       [NB_OP_NORM] = add_norm,
    [NB_OP_LINEAR] = build_gemms,    [NB_OP_ROPE] = build_heads,
    [NB_OP_KV] = build_heads,        [NB_OP_ATTENTION] = add_attention,
    [NB_OP_ACTIVATE] = add_activate, [NB_OP_ADD] = add_sum,
    [NB_OP_CAP] = add_scale,         [NB_OP_ROUTE] = add_route,
    [NB_OP_COMBINE] = add_combine,
};

static void add_stages(struct builder *b)
{
    struct nb_device_model *m = b->m;
    const struct nb_plan *plan = m->plan;
    struct nb_vulkan_program *program = &m->program;
    program->shown = UINT32_MAX;
    for (uint32_t i = 0; i < plan->n_ops && b->rc == 0; i += b->stage.n) {
        b->stage = nb_vulkan_stage_at(plan, i, m->apart);
        if (i == plan->tail)
            begin_tail(b);
        for (uint32_t j = i + b->stage.has_norm; j < i + b->stage.n; j++)
            build_wrote(b, plan->ops[j].out.value);
        add_stage[plan->ops[i + b->stage.has_norm].kind](b);
        if (plan->result >= i && plan->result < i + b->stage.n)
            program->shown = b->stage.has_norm && plan->result == i ? b->shown : program->n;
    }
    program->top = program->n;
    if (!plan->ends)
        program->tail = program->n;
    if (program->shown == UINT32_MAX)
        program->shown = program->n;
    if (plan->ends && m->buffers.value[NB_VALUE_LOGITS].buffer)
        add_top(b);
}

// Norms and biases are read in each step, so they lie where the weights do.
static int load_vectors(const struct builder *b)
{
    const VkDeviceSize most = 65536; // of one update
    const struct nb_vulkan_buffer *to = &b->m->buffers.vectors;
    struct nb_vulkan_device *d = b->m->device;
    VkCommandBuffer c;
    int rc = nb_vulkan_begin(d, true, &c);
    if (rc < 0)
        return rc;
    for (VkDeviceSize at = 0, n; at < to->bytes; at += n) {
        n = to->bytes - at < most ? to->bytes - at : most;
        d->vk.CmdUpdateBuffer(c, to->buffer, at, n, b->vectors + at / sizeof(float));
    }
    return nb_vulkan_run_once(d, c);
}

// Whether each dispatch has no more workgroups than the device runs: rows of experts are many.
static bool is_launchable(const struct nb_device_model *m)
{
    for (uint32_t i = 0; i < m->program.n; i++)
        for (uint32_t tile = 0; tile < NB_TIER_TILES; tile++) {
            const uint32_t rows =
                i < m->program.tail ? m->extent.padded_rows : m->extent.wanted_rows;
            const VkDispatchIndirectCommand g =
                nb_vulkan_launch(m->device, rows, &m->program.dispatches[i], tile);
            if (g.x > m->device->max_groups || g.y > m->device->max_groups_y)
                return false;
        }
    return true;
}

int nb_vulkan_program_make(struct nb_device_model *m, struct nb_error *ret_error)
{
    struct builder b = {.m = m, .count = STEP_ROWS};
    m->program.dispatches = calloc(NB_VULKAN_DISPATCHES, sizeof(*m->program.dispatches));
    b.vectors = calloc(1, m->buffers.vectors.bytes);
    b.rc = m->program.dispatches && b.vectors ? 0 : -ENOMEM;
    if (b.rc == 0)
        b.rc = nb_vulkan_sets_init(m->device, NB_VULKAN_DISPATCHES, &m->sets);
    if (b.rc == 0)
        add_stages(&b);
    if (b.rc == 0)
        b.rc = load_vectors(&b);
    free(b.vectors);
    if (b.rc == 0 && !is_launchable(m))
        return nb_fail(ret_error, -ENOTSUP,
                       "steps of %u rows with %u experts each are more than %s computes at once: "
                       "ask for fewer rows a step, or use the CPU",
                       m->extent.max_rows, m->plan->hp.n_chosen, m->device->info.name);
    if (b.rc == 0)
        b.rc = nb_vulkan_pipelines_limit(m);
    if (b.rc == 0)
        b.rc = nb_vulkan_prepare_first(m);
    if (b.rc < 0)
        return nb_fail(ret_error, b.rc, "%s: cannot make the model's pipelines: %s",
                       m->device->info.name, strerror(-b.rc));
    return 0;
}
