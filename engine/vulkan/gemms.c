// Stages of matrices that have one input.
#include "engine/vulkan/builder.h"

#include <errno.h>
#include <string.h>

// --- Inputs

// Whether the stage's GEMMs want floats, and quantized inputs.
static void inputs_wanted(const struct nb_plan *plan, const struct nb_vulkan_stage *s,
                          bool *ret_float, bool *ret_quantized)
{
    *ret_float = *ret_quantized = false;
    for (uint32_t i = 0; i < s->n_gemms; i++) {
        const struct nb_op *op = &plan->ops[s->first + s->has_norm + i];
        *(nb_is_float(&op->w->packed) ? ret_float : ret_quantized) = true;
    }
}

// Whether a stage's norm leaves its rows as floats too: for the stage's own GEMMs and
// their adapters, for ops behind it, or because they are a text's vector.
static bool shows_norm(const struct nb_device_model *m, const struct nb_vulkan_stage *s)
{
    const struct nb_plan *plan = m->plan;
    bool floats, quantized;
    inputs_wanted(plan, s, &floats, &quantized);
    return m->apart || floats || plan->result == s->first ||
           nb_plan_is_read(plan, s->first + s->n, plan->ops[s->first].out.value);
}

struct source build_source(struct builder *b)
{
    struct nb_device_model *m = b->m;
    const struct nb_vulkan_stage *s = &b->stage;
    const struct nb_op *norm = s->has_norm ? op_of(b, 0) : NULL, *first = op_of(b, s->has_norm);
    const enum nb_value v = first->in.value;
    const bool of = nb_vulkan_records_of(v);
    const struct source source = {build_buffer(b, v), &m->buffers.records[of],
                                  nb_vulkan_stride(m->plan, v)};
    bool floats, quantized;
    inputs_wanted(m->plan, s, &floats, &quantized);
    if (norm || (quantized && (b->made[of].value != v || !nb_same_codes(b->made[of].as, first)))) {
        const struct rows rows = {.norm = norm,
                                  .value = v,
                                  .from = norm ? build_buffer(b, norm->in.value) : source.floats,
                                  .floats = norm && shows_norm(m, s) ? source.floats : NULL,
                                  .records = quantized ? source.records : NULL,
                                  .cols = first->in.width,
                                  .width = source.width,
                                  .terms = first->terms,
                                  .scaled = first->scaled,
                                  .range = first->range,
                                  .gather = NONE};
        build_rows(b, &rows)->unless = b->finisher;
        if (norm)
            build_wrote(b, v);
        if (quantized) {
            b->made[of].value = v;
            b->made[of].as = first;
        }
    }
    b->finisher = 0;
    b->shown = m->program.n;
    return source;
}

// --- Results

static struct nb_vulkan_part whole(struct builder *b, const struct nb_op *op)
{
    const struct nb_packed *w = &op->w->packed;
    return (struct nb_vulkan_part){.w = w,
                                   .groups = nb_vulkan_groups(w),
                                   .column = build_column(b, &op->out),
                                   .bias1 = op->bias ? build_vector(b, op->bias, w->rows) : NONE};
}

static struct target plain_target(const struct builder *b, const struct nb_op *op)
{
    const enum nb_value v = op->out.value;
    return (struct target){.rows = build_buffer(b, v),
                           .width = nb_vulkan_stride(b->m->plan, v),
                           .mode = op->add ? MODE_ADD : MODE_STORE};
}

// Lets a dispatch make its result the next stage's input, where it can: the tier's GEMMs do, the
// next stage reads the same rows, each block under its own scale, and one dispatch makes them all.
static void finish(struct builder *b, const struct nb_vulkan_part *part, const struct source *from,
                   struct target *to, enum nb_value v)
{
    struct nb_device_model *m = b->m;
    const struct nb_plan *plan = m->plan;
    const uint32_t at = b->stage.first + b->stage.n;
    if (m->apart || !m->device->tier->variant[NB_SHADER_GEMM][0].finishes || at >= plan->n_ops ||
        at == plan->tail ||
        nb_vulkan_fitting(m->device, &m->weights, part->w, part->group0) < part->groups)
        return;
    const struct nb_vulkan_stage next = nb_vulkan_stage_at(plan, at, false);
    const struct nb_op *norm = next.has_norm ? &plan->ops[at] : NULL;
    const struct nb_op *first = &plan->ops[at + next.has_norm];
    const struct nb_vulkan_buffer *second =
        &m->buffers.records[nb_vulkan_records_of(first->in.value)];
    if (!next.n_gemms || first->scaled != NB_INPUT_BLOCK || (norm ? norm : first)->in.value != v ||
        (norm && plan->hp.arch->norm != NB_NORM_RMS) || nb_value_is_of_experts(first->out.value) ||
        second == from->records)
        return;
    bool floats, quantized;
    inputs_wanted(plan, &next, &floats, &quantized);
    if (!norm && !quantized)
        return;
    const bool shows = norm && shows_norm(m, &next);
    const uint32_t cols = first->in.width;
    b->norm1 = norm ? build_vector(b, norm->weight, cols) : NONE;
    b->finisher = m->program.n + 1;
    to->more[FINISH_ACT4] = nb_vulkan_record_words4(cols, first->terms);
    to->more[FINISH_FLOATS4] = shows ? nb_vulkan_stride(plan, first->in.value) / 4 : 0;
    to->more[FINISH_TERMS] = first->terms;
    to->more[FINISH_NORM1] = b->norm1;
    to->more[FINISH_COLS] = cols;
    to->mode |= MODE_FINISH | (norm ? MODE_FINISH_NORM : 0);
    to->second = second;
    to->floats = shows ? build_buffer(b, first->in.value) : NULL;
}

// --- Dispatches

static void model_constants(const struct nb_hparams *hp, uint32_t c[CONST_TIER])
{
    c[CONST_HEADS] = hp->n_heads;
    c[CONST_KV_HEADS] = hp->n_kv_heads;
    c[CONST_K_DIM] = hp->k_dim;
    c[CONST_V_DIM] = hp->v_dim;
    c[CONST_ROPE_DIMS] = hp->rope_dims;
}

void build_gemm(struct builder *b, const struct nb_vulkan_part *parts, uint32_t n,
                const struct source *from, const struct target *to, bool beside)
{
    struct nb_device_model *m = b->m;
    const struct nb_vulkan_buffers *all = &m->buffers;
    const struct nb_op *op = op_of(b, b->stage.has_norm);
    const struct nb_packed *w = parts[0].w;
    struct nb_vulkan_window window;
    if (!nb_vulkan_window_of(m->device, &m->weights, parts, n, &window)) {
        b->rc = -EOVERFLOW; // its callers see to that
        return;
    }
    struct push_gemm push = {.count = b->count, .out4 = to->width / 4};
    push.eps = m->plan->hp.norm_eps;
    push.in4 = nb_is_float(w) ? from->width / 4 : nb_vulkan_record_words4(w->cols, op->terms);
    memcpy(push.more, to->more, sizeof(push.more));
    nb_vulkan_tell(parts, n, to->mode % MODE_FINISH, &window, &push);
    struct nb_vulkan_dispatch *p = build_add(b, NB_VULKAN_TOKENS, op->in.value, push.groups * 4);
    p->beside = beside;
    p->cols = w->cols;
    p->group_bytes = w->stride;
    build_push(p, &push, sizeof(push));
    uint32_t c[CONST_TIER] = {0};
    nb_vulkan_constants(w, c);
    c[CONST_TERMS] = nb_is_float(w) ? 1 : op->terms;
    c[CONST_MODE] = to->mode;
    if (to->mode == MODE_ROPE || to->mode == MODE_ROPE_NEOX)
        model_constants(&m->plan->hp, c);
    if (b->stage.activates)
        c[CONST_ACTIVATION] = m->plan->hp.arch->activation;
    build_specialise(b, p, nb_is_float(w) ? NB_SHADER_GEMM_FLOATS : NB_SHADER_GEMM, c);
    build_bind(b, p, &window,
               (bindings){[BIND_VECTORS] = &all->vectors,
                          [BIND_IN] = from->floats,
                          [BIND_ACT] = from->records,
                          [BIND_OUT] = to->rows,
                          [BIND_OUT2] = to->second ? to->second : &all->sync,
                          [BIND_KV] = &all->step,
                          [BIND_FLOATS] = to->floats ? to->floats : &all->sync,
                          [BIND_SYNC] = &all->sync});
}

// All row groups of the parts, side by side in the result: as few dispatches as types and windows
// allow.
static void add_parts(struct builder *b, const struct nb_vulkan_part *parts, uint32_t n,
                      const struct source *from, const struct target *to, bool beside)
{
    const struct nb_device_model *m = b->m;
    struct nb_vulkan_part run[3];
    struct nb_vulkan_window window;
    uint32_t n_run = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t end = parts[i].group0 + parts[i].groups;
        for (uint32_t g = parts[i].group0, next; g < end; g = next) {
            struct nb_vulkan_part p = parts[i];
            const uint32_t fit = nb_vulkan_fitting(m->device, &m->weights, p.w, g);
            p.group0 = g;
            p.groups = fit < end - g ? fit : end - g;
            next = g + p.groups;
            run[n_run] = p;
            if (n_run > 0 &&
                (run[0].w->layout != p.w->layout ||
                 !nb_vulkan_window_of(m->device, &m->weights, run, n_run + 1, &window))) {
                build_gemm(b, run, n_run, from, to, beside);
                beside = true;
                run[0] = p;
                n_run = 0;
            }
            if (++n_run == 3 || (next == end && i + 1 == n)) {
                build_gemm(b, run, n_run, from, to, beside);
                beside = true;
                n_run = 0;
            }
        }
    }
}

// Gate and up: matrices of their own, or the halves of one.
static void gate_and_up(struct builder *b, struct nb_vulkan_part ret[2])
{
    const struct nb_op *gate = op_of(b, b->stage.has_norm);
    ret[0] = whole(b, gate);
    if (b->stage.n_gemms == 2) {
        ret[1] = whole(b, gate + 1);
        return;
    }
    ret[0].groups /= 2;
    ret[1] = ret[0];
    ret[1].group0 = ret[0].groups;
    ret[1].column -= ret[1].group0 * NB_GROUP_ROWS; // both begin where the result's row does
}

// What is activated as it is made.
static void add_activated(struct builder *b, const struct source *from)
{
    const struct nb_device_model *m = b->m;
    const struct nb_op *act = op_of(b, b->stage.n - 1);
    const enum nb_value v = act->out.value;
    struct target to = {.rows = build_buffer(b, v), .width = nb_vulkan_stride(m->plan, v)};
    const struct target plain = to; // MODE_STORE
    struct nb_vulkan_part parts[2];
    struct nb_vulkan_window window;
    if (act->other.value == NB_VALUE_NONE) {
        parts[0] = whole(b, op_of(b, b->stage.has_norm));
        to.mode = MODE_ACTIVATED;
        finish(b, &parts[0], from, &to, v);
        add_parts(b, parts, 1, from, &to, false);
        return;
    }
    gate_and_up(b, parts);
    if (parts[0].w->layout == parts[1].w->layout &&
        nb_vulkan_window_of(m->device, &m->weights, parts, 2, &window) &&
        parts[0].groups <= m->device->max_groups / 3) {
        to.mode = MODE_GATED;
        finish(b, &parts[0], from, &to, v);
        build_gemm(b, parts, 2, from, &to, false);
        return;
    }
    add_parts(b, &parts[0], 1, from, &plain, false);
    to.mode = MODE_GATED_UP;
    finish(b, &parts[1], from, &to, v);
    add_parts(b, &parts[1], 1, from, &to, false);
}

// The GEMMs from i on whose results lie side by side.
static uint32_t count_side_by_side(const struct builder *b, uint32_t i)
{
    const struct nb_op *first = op_of(b, i);
    const uint32_t end = b->stage.has_norm + b->stage.n_gemms;
    uint32_t n = 1;
    while (i + n < end && n < 3 && first[n].out.value == first->out.value &&
           first[n].add == first->add)
        n++;
    return n;
}

static void add_gemms(struct builder *b, const struct source *from)
{
    const uint32_t end = b->stage.has_norm + b->stage.n_gemms;
    for (uint32_t i = b->stage.has_norm, n; i < end && b->rc == 0; i += n) {
        const struct nb_op *op = op_of(b, i);
        const bool beside = i > b->stage.has_norm;
        struct nb_vulkan_part parts[3];
        n = count_side_by_side(b, i);
        if (nb_value_is_of_experts(op->out.value)) {
            n = 1;
            build_experts(b, op, from, beside);
            continue;
        }
        struct target to = plain_target(b, op);
        for (uint32_t j = 0; j < n; j++)
            parts[j] = whole(b, op + j);
        if (op->out.value == NB_VALUE_QKV && build_rotates(b, &to))
            b->stage.n += 3;
        else if (op->add && i + n == end && n == 1)
            finish(b, &parts[0], from, &to, op->out.value);
        add_parts(b, parts, n, from, &to, beside);
    }
    if (b->m->apart)
        build_adapters(b, from);
}

void build_gemms(struct builder *b)
{
    const struct nb_plan *plan = b->m->plan;
    const struct nb_op *first = op_of(b, b->stage.has_norm);
    // A matrix that makes all three has them without gaps.
    const bool fused = first->out.value == NB_VALUE_QKV && first->out.width == first->out.stride;
    if (first->out.value == NB_VALUE_QKV) {
        b->k = fused ? plan->hp.dim[NB_DIM_Q] : nb_vulkan_k_column(&plan->hp);
        b->v = fused ? b->k + plan->hp.dim[NB_DIM_K] : nb_vulkan_v_column(&plan->hp);
    }
    const struct source from = build_source(b);
    if (b->stage.activates)
        add_activated(b, &from);
    else
        add_gemms(b, &from);
}
