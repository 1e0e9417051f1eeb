// A layer in stages: what lies between two of them is a state, buffer behind buffer as the span has
// them, and behind these the experts that each token takes.
#include <errno.h>
#include <string.h>

#include "grad/room.h"

static const struct nb_span *span_of(const struct nb_grad *g, uint32_t layer)
{
    return &g->spans[layer + 1]; // what comes after the layers is the last one
}

static bool is_matrix(const struct nb_step *s)
{
    return s->kind == &nb_step_kinds[NB_OP_LINEAR];
}

// Whether no matrix before it reads the same rows.
static bool begins_site(const struct nb_span *s, uint32_t step)
{
    if (!is_matrix(&s->steps[step]))
        return false;
    for (uint32_t i = 0; i < step; i++)
        if (is_matrix(&s->steps[i]) && nb_same_place(&s->steps[i].in, &s->steps[step].in))
            return false;
    return true;
}

uint32_t nb_grad_sites(const struct nb_grad *g, uint32_t layer)
{
    const struct nb_span *s = span_of(g, layer);
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_steps; i++)
        n += begins_site(s, i);
    return n;
}

// The step that a site begins with; behind the last site, the number of steps.
static uint32_t step_of(const struct nb_span *s, uint32_t site)
{
    for (uint32_t i = 0; i < s->n_steps; i++)
        if (begins_site(s, i) && site-- == 0)
            return i;
    return s->n_steps;
}

static bool reads(const struct nb_step *s, uint32_t buffer)
{
    return s->in.buffer == buffer || s->other.buffer == buffer || s->third.buffer == buffer ||
           s->old.buffer == buffer;
}

// Whether steps from `step` on read what those before it have left in a buffer.
static bool is_live(const struct nb_span *s, uint32_t buffer, uint32_t step)
{
    bool written = buffer == NB_INPUT, read = s->out.buffer == buffer;
    for (uint32_t i = 0; i < step; i++)
        written |= s->steps[i].out.buffer == buffer;
    for (uint32_t i = step; i < s->n_steps; i++)
        read |= reads(&s->steps[i], buffer);
    return written && read;
}

static bool routes(const struct nb_step *s)
{
    return s->kind == &nb_step_kinds[NB_OP_ROUTE];
}

static bool is_routed(const struct nb_span *s, uint32_t step)
{
    for (uint32_t i = 0; i < step; i++)
        if (routes(&s->steps[i]))
            return true;
    return false;
}

static size_t buffer_floats(const struct nb_grad *g, const struct nb_span *s, uint32_t buffer)
{
    return (size_t)nb_buffer_rows(g, s, buffer, g->batch.rows) * s->buffers[buffer].width;
}

// Where a buffer lies in the state at a step; `buffer` the number of buffers: where they end.
static size_t offset_of(const struct nb_grad *g, const struct nb_span *s, uint32_t step,
                        uint32_t buffer)
{
    size_t at = 0;
    for (uint32_t i = 0; i < buffer; i++)
        at += is_live(s, i, step) ? buffer_floats(g, s, i) : 0;
    return at;
}

size_t nb_grad_state_floats(const struct nb_grad *g, uint32_t layer, uint32_t site)
{
    const struct nb_span *s = span_of(g, layer);
    const uint32_t step = step_of(s, site);
    if (step == s->n_steps)
        return (size_t)g->batch.rows * s->out.width;
    const size_t chosen = is_routed(s, step) ? (size_t)g->batch.rows * g->plan->hp.n_chosen : 0;
    return offset_of(g, s, step, s->n_buffers) + chosen;
}

// ---- A stage

#define SOME 16384 // floats that a thread copies at once

struct copying {
    float *to;
    const float *from;
    size_t n;
};

static void copy_some(void *arg, uint32_t unit, uint32_t thread)
{
    const struct copying *c = arg;
    const size_t at = (size_t)unit * SOME, left = c->n - at;
    memcpy(c->to + at, c->from + at, (left < SOME ? left : SOME) * sizeof(*c->to));
}

// States are larger than caches: one thread alone would keep the others waiting for memory.
static void copy(const struct nb_grad *g, float *to, // NOLINT(*non-const-parameter)
                 const float *from, size_t n)
{
    struct copying c = {to, from, n};
    nb_each(g->team, (uint32_t)((n + SOME - 1) / SOME), copy_some, &c);
}

static void load_state(const struct nb_pass *p, uint32_t step, const float *from)
{
    const struct nb_grad *g = p->g;
    const uint32_t chosen = p->rows * g->plan->hp.n_chosen;
    for (uint32_t i = 0; i < p->span->n_buffers; i++)
        if (is_live(p->span, i, step)) {
            copy(g, p->data[i], from, buffer_floats(g, p->span, i));
            from += buffer_floats(g, p->span, i);
        }
    if (!is_routed(p->span, step))
        return;
    for (uint32_t i = 0; i < chosen; i++)
        p->routing.expert[i] = (uint16_t)from[i];
    nb_sort_rows(p);
}

static void store_state(const struct nb_pass *p, uint32_t step, float *to)
{
    const struct nb_grad *g = p->g;
    const uint32_t chosen = p->rows * g->plan->hp.n_chosen;
    for (uint32_t i = 0; i < p->span->n_buffers; i++)
        if (is_live(p->span, i, step)) {
            copy(g, to, p->data[i], buffer_floats(g, p->span, i));
            to += buffer_floats(g, p->span, i);
        }
    for (uint32_t i = 0; is_routed(p->span, step) && i < chosen; i++)
        to[i] = p->routing.expert[i];
}

static void store_result(const struct nb_pass *p, float *to)
{
    const struct nb_place *out = &p->span->out;
    for (uint32_t i = 0; i < p->rows; i++)
        memcpy(to + (size_t)i * out->width, nb_value(p, out, i), out->width * sizeof(*to));
}

int nb_grad_stage(struct nb_grad *g, uint32_t layer, uint32_t stage, const float *from, float *ret)
{
    const struct nb_span *s = span_of(g, layer);
    const uint32_t first = stage ? step_of(s, stage - 1) : 0, end = step_of(s, stage);
    if (g->device)
        return -ENOTSUP;
    for (uint32_t i = 0; i < s->n_buffers; i++)
        g->marks[i] = true;
    int rc = nb_tape_fit(g, s, g->batch.rows, g->marks, &g->values);
    if (rc == 0)
        rc = nb_floats_load(g, s, g->batch.rows);
    if (rc < 0)
        return rc;
    const struct nb_pass p = {.g = g,
                              .span = s,
                              .rows = g->batch.rows,
                              .data = g->values.data,
                              .gradient = g->d_data,
                              .routing = g->values.routing};
    load_state(&p, first, from);
    for (uint32_t i = first; i < end; i++)
        s->steps[i].kind->forward(&p, &s->steps[i]);
    if (end < s->n_steps)
        store_state(&p, end, ret);
    else
        store_result(&p, ret);
    return 0;
}

// ---- Sites

uint32_t nb_grad_site_matrices(const struct nb_grad *g, uint32_t layer, uint32_t site,
                               struct nb_grad_tensor **ret)
{
    const struct nb_span *s = span_of(g, layer);
    const uint32_t first = step_of(s, site);
    uint32_t n = 0;
    for (uint32_t i = first; i < s->n_steps && n < NB_GRAD_SITE; i++)
        if (is_matrix(&s->steps[i]) && nb_same_place(&s->steps[i].in, &s->steps[first].in))
            ret[n++] = s->steps[i].w;
    return n;
}

static struct nb_grad_rows rows_of(const struct nb_grad *g, const struct nb_span *s, uint32_t step,
                                   const struct nb_place *a, const float *state)
{
    return (struct nb_grad_rows){state + offset_of(g, s, step, a->buffer) + a->at, a->stride,
                                 nb_buffer_rows(g, s, a->buffer, g->batch.rows)};
}

struct nb_grad_rows nb_grad_site_input(const struct nb_grad *g, uint32_t layer, uint32_t site,
                                       uint32_t expert, const float *state)
{
    const struct nb_span *s = span_of(g, layer);
    const uint32_t step = step_of(s, site), chosen = g->batch.rows * g->plan->hp.n_chosen;
    const struct nb_place *in = &s->steps[step].in;
    struct nb_grad_rows r = rows_of(g, s, step, in, state);
    if (!s->buffers[in->buffer].of_experts)
        return r;
    // Rows lie by expert.
    const float *taken = state + offset_of(g, s, step, s->n_buffers);
    uint32_t before = 0, n = 0;
    for (uint32_t i = 0; i < chosen; i++) {
        before += taken[i] < (float)expert;
        n += taken[i] == (float)expert;
    }
    return (struct nb_grad_rows){r.x + before * r.stride, r.stride, n};
}

struct nb_grad_rows nb_grad_site_stream(const struct nb_grad *g, uint32_t layer, uint32_t site,
                                        const struct nb_grad_tensor *w, const float *state)
{
    const struct nb_span *s = span_of(g, layer);
    const uint32_t step = step_of(s, site);
    for (uint32_t i = step; i < s->n_steps; i++) {
        const struct nb_step *to = &s->steps[i];
        if (is_matrix(to) && to->w == w && to->op->add && is_live(s, to->old.buffer, step) &&
            !s->buffers[to->old.buffer].of_experts)
            return rows_of(g, s, step, &to->old, state);
    }
    return (struct nb_grad_rows){0};
}
