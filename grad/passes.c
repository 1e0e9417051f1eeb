// Spans run forward and backward: where each buffer is, and which gradients are wanted.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "grad/room.h"

static const struct nb_span *begin_span(const struct nb_grad *g)
{
    return &g->spans[0];
}

static const struct nb_span *layer_span(const struct nb_grad *g, uint32_t layer)
{
    return &g->spans[layer + 1];
}

static const struct nb_span *head_span(const struct nb_grad *g)
{
    return &g->spans[g->n_spans - 1];
}

static size_t row_bytes(const struct nb_place *a)
{
    return a->width * sizeof(float);
}

static void copy_rows(const struct nb_pass *p, const struct nb_place *from, float *to)
{
    for (uint32_t i = 0; i < p->rows; i++)
        memcpy(to + (size_t)i * from->width, nb_value(p, from, i), row_bytes(from));
}

// --- Memory

// The buffers of a span: x's and `callers` are the caller's, `kept` has the needed ones if it is
// not NULL, and of the others those that are asked for get memory.
static int place_values(struct nb_grad *g, const struct nb_span *s, uint32_t rows,
                        const struct nb_tape *kept, bool needed_alone, uint32_t callers)
{
    bool *here = g->marks;
    if (kept && (kept->span != s || kept->rows != rows))
        return -EINVAL;
    for (uint32_t i = 0; i < s->n_buffers; i++)
        here[i] = i != NB_INPUT && i != callers && (s->buffers[i].needed ? !kept : !needed_alone);
    int rc = nb_tape_fit(g, s, rows, here, &g->values);
    for (uint32_t i = 0; i < s->n_buffers && rc == 0; i++)
        g->data[i] = kept && s->buffers[i].needed ? kept->data[i] : g->values.data[i];
    return rc;
}

static struct nb_pass pass_of(struct nb_grad *g, const struct nb_span *s, uint32_t rows,
                              const float *x, const struct nb_tape *kept)
{
    g->data[NB_INPUT] = (float *)x; // no step writes there
    return (struct nb_pass){.g = g,
                            .span = s,
                            .rows = rows,
                            .data = g->data,
                            .gradient = g->d_data,
                            .routing = kept ? kept->routing : g->values.routing};
}

static void mark_kept(const struct nb_span *s, bool *ret)
{
    for (uint32_t i = 0; i < s->n_buffers; i++)
        ret[i] = i != NB_INPUT && s->buffers[i].needed;
}

int nb_tape_create(const struct nb_grad *g, uint32_t layer, struct nb_tape **ret)
{
    if (!g->backend->keeps)
        return -ENOTSUP;
    struct nb_tape *tape = calloc(1, sizeof(*tape));
    if (!tape)
        return -ENOMEM;
    mark_kept(layer_span(g, layer), g->marks);
    int rc = nb_tape_fit(g, layer_span(g, layer), g->batch.rows, g->marks, tape);
    if (rc < 0) {
        nb_tape_destroy(tape);
        return rc;
    }
    *ret = tape;
    return 0;
}

// Lays a tape out for the present batch, if it has the memory for that.
static int refit(const struct nb_grad *g, const struct nb_span *s, struct nb_tape *tape)
{
    if (tape->span != s)
        return -EINVAL;
    if (tape->rows == g->batch.rows)
        return 0;
    mark_kept(s, g->marks);
    if (nb_tape_size(g, s, g->batch.rows, g->marks) > tape->bytes)
        return -EINVAL;
    return nb_tape_fit(g, s, g->batch.rows, g->marks, tape);
}

uint64_t nb_tape_bytes(const struct nb_grad *g, uint32_t layer)
{
    mark_kept(layer_span(g, layer), g->marks);
    return nb_tape_size(g, layer_span(g, layer), g->batch.rows, g->marks);
}

void nb_tape_destroy(struct nb_tape *tape)
{
    if (!tape)
        return;
    nb_tape_finish(tape);
    free(tape);
}

int nb_tapes_create(const struct nb_grad *g, uint64_t bytes, struct nb_tape **ret)
{
    int rc = 0;
    for (uint32_t i = 0; i < g->plan->n_layers && rc == 0 && g->backend->keeps; i++) {
        const uint64_t wanted = nb_tape_bytes(g, i);
        if (wanted > bytes)
            continue;
        bytes -= wanted;
        rc = nb_tape_create(g, i, &ret[i]);
    }
    return rc;
}

float *nb_grad_floats(size_t n)
{
    return aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64 + 64);
}

// --- Forward

static int forward(struct nb_grad *g, const struct nb_run *r)
{
    const struct nb_span *s = r->span;
    // A tape keeps what the caller gets too, where backward needs it.
    const bool direct =
        r->ret && s->out.buffer != NB_INPUT && !(r->tape && s->buffers[s->out.buffer].needed);
    int rc = place_values(g, s, r->rows, r->tape, false, direct ? s->out.buffer : NB_NOWHERE);
    if (rc == 0 && r->steps == s->n_steps)
        rc = nb_floats_load(g, s, r->rows);
    if (rc < 0)
        return rc;
    struct nb_pass p = pass_of(g, s, r->rows, r->x, r->tape);
    p.shows = true;
    if (direct)
        g->data[s->out.buffer] = r->ret;
    for (uint32_t i = 0; i < r->steps; i++)
        s->steps[i].kind->forward(&p, &s->steps[i]);
    if (r->ret && !direct)
        copy_rows(&p, &s->out, r->ret);
    if (r->ret_result)
        copy_rows(&p, &s->result, r->ret_result);
    return 0;
}

static int run_forward(struct nb_grad *g, const struct nb_span *s, const float *x,
                       const struct nb_tape *keep, float *ret)
{
    return g->backend->forward(g, &(struct nb_run){.span = s,
                                                   .rows = g->batch.rows,
                                                   .x = x,
                                                   .tape = keep,
                                                   .steps = s->n_steps,
                                                   .ret = ret});
}

int nb_grad_begin(struct nb_grad *g, float *ret_x)
{
    return run_forward(g, begin_span(g), NULL, NULL, ret_x);
}

int nb_grad_layer(struct nb_grad *g, uint32_t layer, const float *x, struct nb_tape *keep,
                  float *ret_x)
{
    const struct nb_span *s = layer_span(g, layer);
    int rc = keep ? refit(g, s, keep) : 0;
    return rc == 0 ? run_forward(g, s, x, keep, ret_x) : rc;
}

int nb_grad_forward(struct nb_grad *g, float *x, size_t apart)
{
    const uint32_t layers = g->plan->n_layers;
    int rc = nb_grad_begin(g, x + layers % 2 * apart);
    for (uint32_t i = 0; i < layers && rc == 0; i++)
        rc = nb_grad_layer(g, i, x + (layers - i) % 2 * apart, NULL,
                           x + (layers - i - 1) % 2 * apart);
    return rc;
}

int nb_grad_head(struct nb_grad *g, uint32_t n, const float *x, float *ret_vectors,
                 float *ret_logits)
{
    const struct nb_span *s = head_span(g);
    return g->backend->forward(g,
                               &(struct nb_run){.span = s,
                                                .rows = n,
                                                .x = x,
                                                .steps = ret_logits ? s->n_steps : s->result_steps,
                                                .ret = ret_logits,
                                                .ret_result = ret_vectors});
}

// --- Backward

static bool has_gradient(const struct nb_grad_tensor *t)
{
    return t && (t->gradient || t->factors);
}

static bool is_marked(const bool *marks, const struct nb_place *p)
{
    return nb_is_somewhere(p) && marks[p->buffer];
}

// The gradients that lead to what the caller wants: from x on if that is wanted, and from each
// tensor on that is.
void nb_mark_wanted(const struct nb_span *s, bool to_input, bool *ret)
{
    memset(ret, 0, s->n_buffers * sizeof(*ret));
    ret[NB_INPUT] = to_input;
    for (uint32_t i = 0; i < s->n_steps; i++) {
        const struct nb_step *step = &s->steps[i];
        if (has_gradient(step->w) || has_gradient(step->weight) || has_gradient(step->bias) ||
            is_marked(ret, &step->in) || is_marked(ret, &step->other) ||
            is_marked(ret, &step->third) || is_marked(ret, &step->old))
            ret[step->out.buffer] = true;
    }
}

// Zeros for every gradient that is wanted, but for that in the result, which is `d`; NULL: that
// one is zero, and so is what it alone leads to.
static int place_gradients(struct nb_grad *g, const struct nb_span *s, uint32_t rows, bool to_input,
                           float *d)
{
    bool *wanted = g->marks;
    nb_mark_wanted(s, to_input, wanted);
    const bool last = s->out.buffer != NB_INPUT;
    const bool leads = !last || wanted[s->out.buffer];
    if (last)
        wanted[s->out.buffer] = false;
    int rc = nb_tape_fit(g, s, rows, wanted, &g->gradients);
    for (uint32_t i = 0; i < s->n_buffers && rc == 0; i++) {
        g->d_data[i] = g->gradients.data[i];
        if (g->d_data[i])
            memset(g->d_data[i], 0,
                   (size_t)nb_buffer_rows(g, s, i, rows) * s->buffers[i].width *
                       sizeof(**g->d_data));
    }
    if (rc == 0 && last)
        g->d_data[s->out.buffer] = leads ? d : NULL;
    return rc;
}

static void add_result(const struct nb_pass *p, const float *d)
{
    const struct nb_place *a = &p->span->result;
    for (uint32_t i = 0; d && nb_is_wanted(p, a) && i < p->rows; i++)
        for (uint32_t j = 0; j < a->width; j++)
            nb_gradient(p, a, i)[j] += d[(size_t)i * a->width + j];
}

static int backward(struct nb_grad *g, const struct nb_run *r)
{
    const struct nb_span *s = r->span;
    int rc = place_values(g, s, r->rows, r->tape, true, NB_NOWHERE);
    if (rc == 0)
        rc = place_gradients(g, s, r->rows, r->ret_d != NULL, r->d);
    if (rc == 0 && r->d)
        rc = nb_floats_load(g, s, r->rows);
    if (rc < 0)
        return rc;
    struct nb_pass p = pass_of(g, s, r->rows, r->x, r->tape);
    for (uint32_t i = 0; i < (r->d ? s->n_steps : s->result_steps) && !r->tape; i++)
        if (s->steps[i].again)
            s->steps[i].kind->forward(&p, &s->steps[i]);
    add_result(&p, r->d_result);
    for (uint32_t i = s->n_steps; i > 0; i--)
        if (nb_is_wanted(&p, &s->steps[i - 1].out))
            s->steps[i - 1].kind->backward(&p, &s->steps[i - 1]);
    if (r->ret_d)
        memcpy(r->ret_d, g->d_data[NB_INPUT],
               (size_t)r->rows * g->plan->hp.embedding * sizeof(*r->ret_d));
    return 0;
}

const struct nb_backend nb_backend_cpu = {.forward = forward, .backward = backward, .keeps = true};

int nb_grad_head_back(struct nb_grad *g, uint32_t n, const float *x, const float *d_vectors,
                      float *d_logits, float *ret_d)
{
    return g->backend->backward(g, &(struct nb_run){.span = head_span(g),
                                                    .rows = n,
                                                    .x = x,
                                                    .d = d_logits,
                                                    .d_result = d_vectors,
                                                    .ret_d = ret_d});
}

int nb_grad_layer_back(struct nb_grad *g, uint32_t layer, const float *x,
                       const struct nb_tape *kept, float *d, bool to_input)
{
    return g->backend->backward(g, &(struct nb_run){.span = layer_span(g, layer),
                                                    .rows = g->batch.rows,
                                                    .x = x,
                                                    .tape = kept,
                                                    .d = d,
                                                    .ret_d = to_input ? d : NULL});
}

int nb_grad_begin_back(struct nb_grad *g, float *d)
{
    return g->backend->backward(
        g, &(struct nb_run){.span = begin_span(g), .rows = g->batch.rows, .d = d});
}
