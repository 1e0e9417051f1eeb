// Makes of a plan's ops the steps of its spans: where in memory each value is when an op runs,
// and which steps a backward pass must run again. No arithmetic here.
#include <errno.h>
#include <stdlib.h>

#include "grad/room.h"

const struct nb_step_kind nb_step_kinds[NB_OP_KINDS] = {
    [NB_OP_EMBED] = {.forward = nb_embed, .backward = nb_embed_back},
    [NB_OP_NORM] = {.forward = nb_norm, .backward = nb_norm_back, .needs_in = true},
    [NB_OP_LINEAR] = {.forward = nb_linear, .backward = nb_linear_back, .needs_in = true},
    [NB_OP_ROPE] = {.forward = nb_rope, .backward = nb_rope_back},
    [NB_OP_ATTENTION] = {.forward = nb_attend,
                         .backward = nb_attend_back,
                         .needs_in = true,
                         .needs_other = true,
                         .needs_out = true},
    [NB_OP_ACTIVATE] = {.forward = nb_activate,
                        .backward = nb_activate_back,
                        .needs_in = true,
                        .needs_other = true},
    [NB_OP_ADD] = {.forward = nb_add, .backward = nb_add_back},
    [NB_OP_CAP] = {.forward = nb_cap, .backward = nb_cap_back, .needs_out = true},
    [NB_OP_ROUTE] = {.forward = nb_route_step, .backward = nb_route_back, .needs_in = true},
    [NB_OP_COMBINE] = {.forward = nb_combine,
                       .backward = nb_combine_back,
                       .needs_in = true,
                       .needs_other = true},
};

// The rows of a step's input that experts take, sorted by expert, into `out`.
const struct nb_step_kind nb_step_gather = {.forward = nb_gather, .backward = nb_gather_back};

static const struct nb_place nowhere = {.buffer = NB_NOWHERE};

// A value's part and where it was last put.
struct writing {
    struct nb_slice slice;
    struct nb_place place;
};

struct builder {
    struct nb_grad *g;
    struct nb_span *span;
    struct writing *writings;
    uint32_t n_writings;
    struct nb_place k, v, routed; // of the last KV and ROUTE
    struct nb_place gathered_from, gathered;
    struct nb_error *error;
};

// --- Places

static struct nb_place add_buffer(struct builder *b, uint32_t width, bool of_experts)
{
    struct nb_span *s = b->span;
    s->buffers[s->n_buffers] = (struct nb_buffer){.width = width, .of_experts = of_experts};
    return (struct nb_place){s->n_buffers++, 0, width, width};
}

static void put(struct builder *b, const struct nb_slice *slice, const struct nb_place *place)
{
    b->writings[b->n_writings++] = (struct writing){*slice, *place};
}

// Where a value's part is now; nowhere: it is no value, or nobody has written it as a whole.
static struct nb_place find(const struct builder *b, const struct nb_slice *s)
{
    for (uint32_t i = b->n_writings; i > 0 && s->value; i--) {
        const struct nb_slice *w = &b->writings[i - 1].slice;
        if (w->value != s->value || w->at >= s->at + s->width || s->at >= w->at + w->width)
            continue;
        if (s->at < w->at || s->at + s->width > w->at + w->width)
            return nowhere;
        struct nb_place p = b->writings[i - 1].place;
        p.at += s->at - w->at;
        p.width = s->width;
        return p;
    }
    return nowhere;
}

static void need(struct builder *b, const struct nb_place *p, bool needed)
{
    if (needed && nb_is_somewhere(p))
        b->span->buffers[p->buffer].needed = true;
}

static bool may_overwrite(const struct builder *b, const struct nb_place *p)
{
    return nb_is_somewhere(p) && p->buffer != NB_INPUT && !b->span->buffers[p->buffer].needed;
}

static bool adds(const struct nb_op *op)
{
    return op->add || op->kind == NB_OP_ADD || op->kind == NB_OP_COMBINE;
}

// Where a step's result goes: in place of what it adds to or changes, unless that is needed.
static struct nb_place place_out(struct builder *b, const struct nb_op *op, struct nb_step *s)
{
    const bool changes = nb_same_slice(&op->in, &op->out);
    const struct nb_place *before = adds(op) ? &s->old : changes ? &s->in : &nowhere;
    if (may_overwrite(b, before))
        return *before;
    return add_buffer(b, op->out.width, nb_value_is_of_experts(op->out.value));
}

// --- Steps

static struct nb_step *add_step(struct builder *b, const struct nb_op *op,
                                const struct nb_step_kind *kind)
{
    struct nb_step *s = &b->span->steps[b->span->n_steps++];
    *s = (struct nb_step){.op = op, .kind = kind};
    s->in = s->other = s->third = s->out = s->aux = s->old = nowhere;
    return s;
}

// For a matrix of experts whose input has a row for each token. One gathering serves all that read
// the same rows.
static struct nb_place gather(struct builder *b, const struct nb_op *op)
{
    const struct nb_place in = find(b, &op->in);
    if (nb_is_somewhere(&b->gathered) && nb_same_place(&in, &b->gathered_from))
        return b->gathered;
    struct nb_step *s = add_step(b, op, &nb_step_gather);
    s->in = b->gathered_from = in;
    s->other = b->routed;
    s->out = b->gathered = add_buffer(b, op->in.width, true);
    return s->out;
}

static struct nb_place input_of(struct builder *b, const struct nb_op *op)
{
    const bool gathers = op->kind == NB_OP_LINEAR && nb_value_is_of_experts(op->out.value) &&
                         !nb_value_is_of_experts(op->in.value);
    return gathers ? gather(b, op) : find(b, &op->in);
}

static void bind(struct builder *b, const struct nb_op *op, struct nb_step *s)
{
    s->w = op->w ? nb_tensor_of_matrix(b->g, op->w) : NULL;
    s->weight = nb_tensor_of_vector(b->g, op->weight);
    s->bias = nb_tensor_of_vector(b->g, op->bias);
    s->floats = b->span->floats;
    if (op->kind == NB_OP_LINEAR)
        b->span->floats += (size_t)s->w->experts * s->w->rows * s->w->cols;
}

static void finish_step(struct builder *b, const struct nb_op *op, struct nb_step *s)
{
    need(b, &s->in, s->kind->needs_in);
    need(b, &s->other, s->kind->needs_other);
    need(b, &s->third, s->kind->needs_other);
    if (op->kind == NB_OP_ROUTE) {
        s->out = b->routed = add_buffer(b, b->g->plan->hp.n_chosen, false);
    } else {
        s->out = place_out(b, op, s);
        put(b, &op->out, &s->out);
    }
    need(b, &s->out, s->kind->needs_out && (op->kind != NB_OP_CAP || op->cap > 0.0f));
    need(b, &s->aux, true);
}

static int add_op(struct builder *b, const struct nb_op *op)
{
    if (op->kind == NB_OP_KV) {
        b->k = find(b, &op->in);
        b->v = find(b, &op->other);
        return 0;
    }
    const struct nb_place in = input_of(b, op);
    struct nb_step *s = add_step(b, op, &nb_step_kinds[op->kind]);
    s->in = in;
    s->other = op->kind == NB_OP_ATTENTION ? b->k
               : op->kind == NB_OP_COMBINE ? b->routed
                                           : find(b, &op->other);
    s->old = adds(op) ? find(b, &op->out) : nowhere;
    if (op->kind == NB_OP_ATTENTION)
        s->third = b->v;
    if (op->kind == NB_OP_ATTENTION || op->kind == NB_OP_NORM)
        s->aux =
            add_buffer(b, op->kind == NB_OP_NORM ? 2 * op->heads : b->g->plan->hp.n_heads, false);
    const bool lacks = (op->in.value && !nb_is_somewhere(&s->in)) ||
                       (op->other.value && !nb_is_somewhere(&s->other)) ||
                       (adds(op) && !nb_is_somewhere(&s->old));
    if (lacks || (op->kind == NB_OP_ROUTE && nb_is_somewhere(&b->routed)))
        return nb_fail(b->error, -ENOTSUP,
                       "the float engine cannot follow op %s of layer %u of a %s model",
                       nb_op_names[op->kind], op->layer, b->g->plan->hp.arch->name);
    bind(b, op, s);
    finish_step(b, op, s);
    if (op == &b->g->plan->ops[b->g->plan->result]) {
        b->span->result = s->out;
        b->span->result_steps = b->span->n_steps;
    }
    return 0;
}

// --- Spans

static void mark(bool *marks, const struct nb_place *p)
{
    if (nb_is_somewhere(p))
        marks[p->buffer] = true;
}

// From the last step back: what makes something needed, and what makes something that such a step
// reads, is run again.
static int mark_again(struct nb_span *s)
{
    bool *wanted = calloc(s->n_buffers, sizeof(*wanted));
    if (!wanted)
        return -ENOMEM;
    for (uint32_t i = 0; i < s->n_buffers; i++)
        wanted[i] = s->buffers[i].needed;
    for (uint32_t i = s->n_steps; i > 0; i--) {
        struct nb_step *step = &s->steps[i - 1];
        step->again = wanted[step->out.buffer] || step->kind == &nb_step_kinds[NB_OP_NORM];
        if (!step->again)
            continue;
        mark(wanted, &step->in);
        mark(wanted, &step->other);
        mark(wanted, &step->third);
        mark(wanted, &step->old);
    }
    for (uint32_t i = 0; i < s->n_buffers; i++)
        s->buffers[i].needed = wanted[i];
    free(wanted);
    return 0;
}

// An op has one buffer at most, attention and a gathering one more.
static int build(struct builder *b, uint32_t first, uint32_t end)
{
    const struct nb_plan *plan = b->g->plan;
    const uint32_t n = end - first;
    const struct nb_slice x = {NB_VALUE_X, 0, plan->hp.embedding, plan->hp.embedding};
    b->span->steps = calloc(2 * (size_t)n + 1, sizeof(*b->span->steps));
    b->span->buffers = calloc(3 * (size_t)n + 1, sizeof(*b->span->buffers));
    if (!b->span->steps || !b->span->buffers)
        return nb_fail(b->error, -ENOMEM, "out of memory");
    const struct nb_place input = add_buffer(b, x.width, false);
    b->n_writings = 0;
    b->k = b->v = b->routed = b->gathered = b->gathered_from = nowhere;
    put(b, &x, &input);
    b->span->result = input;
    int rc = 0;
    for (uint32_t i = first; i < end && rc == 0; i++)
        rc = add_op(b, &plan->ops[i]);
    if (rc < 0)
        return rc;
    b->span->out = b->writings[b->n_writings - 1].place;
    return mark_again(b->span) < 0 ? nb_fail(b->error, -ENOMEM, "out of memory") : 0;
}

// Lists of the buffers of whichever span.
static int make_room(struct nb_grad *g, struct nb_error *error)
{
    uint32_t most = 1;
    for (uint32_t i = 0; i < g->n_spans; i++)
        most = g->spans[i].n_buffers > most ? g->spans[i].n_buffers : most;
    g->data = calloc(most, sizeof(*g->data));     // NOLINT(bugprone-sizeof-expression)
    g->d_data = calloc(most, sizeof(*g->d_data)); // NOLINT(bugprone-sizeof-expression)
    g->marks = calloc(most, sizeof(*g->marks));
    return g->data && g->d_data && g->marks ? 0 : nb_fail(error, -ENOMEM, "out of memory");
}

int nb_spans_create(struct nb_grad *g, struct nb_error *error)
{
    const struct nb_plan *plan = g->plan;
    const uint32_t layers = plan->hp.n_layers;
    struct builder b = {.g = g, .error = error};
    g->spans = calloc(layers + 2, sizeof(*g->spans));
    b.writings = calloc(plan->n_ops + 1, sizeof(*b.writings));
    if (!g->spans || !b.writings) {
        free(b.writings);
        return nb_fail(error, -ENOMEM, "out of memory");
    }
    g->n_spans = layers + 2;
    int rc = 0;
    for (uint32_t i = 0; i < g->n_spans && rc == 0; i++) {
        b.span = &g->spans[i];
        rc = build(&b, i == 0 ? 0 : plan->layer_ops[i - 1],
                   i <= layers ? plan->layer_ops[i] : plan->n_ops);
    }
    free(b.writings);
    return rc < 0 ? rc : make_room(g, error);
}

void nb_spans_destroy(struct nb_grad *g)
{
    for (uint32_t i = 0; g->spans && i < g->n_spans; i++) {
        free(g->spans[i].steps);
        free(g->spans[i].buffers);
    }
    free(g->spans);
    free(g->data);
    free(g->d_data);
    free(g->marks);
}
