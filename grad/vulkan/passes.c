// Spans run on the device: their values are laid out behind each other, what the steps read is
// sent, the steps are recorded, and what the caller wants is brought back.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "grad/vulkan/room.h"

#define ALIGN 16 // floats

// --- Places

static size_t take(size_t *at, size_t floats)
{
    const size_t here = *at;
    *at += (floats + ALIGN - 1) / ALIGN * ALIGN;
    return here;
}

static bool looks_up(const struct nb_step *s)
{
    return s->op->kind == NB_OP_EMBED;
}

size_t nb_values_lay(const struct nb_grad *g, const struct nb_span *s, uint32_t rows,
                     uint32_t *ret_at, uint32_t *ret_looked)
{
    size_t at = 0;
    for (uint32_t i = 0; i < s->n_buffers; i++) {
        const size_t here = take(&at, (size_t)rows * s->buffers[i].width);
        if (ret_at)
            ret_at[i] = (uint32_t)here;
    }
    if (ret_looked)
        *ret_looked = (uint32_t)at;
    for (uint32_t i = 0; i < s->n_steps; i++)
        if (looks_up(&s->steps[i]))
            take(&at, (size_t)rows * s->steps[i].out.width);
    return at;
}

uint32_t nb_looked_at(const struct nb_recording *r, const struct nb_step *s)
{
    size_t at = r->looked;
    for (const struct nb_step *i = r->span->steps; i < s; i++)
        if (looks_up(i))
            take(&at, (size_t)r->rows * i->out.width);
    return (uint32_t)at;
}

// --- What a device lacks

static int check(const struct nb_grad *g, const struct nb_run *run)
{
    const struct nb_tap *tap = &g->tap;
    bool lacks = g->bf16 || g->see || run->tape;
    for (int i = 0; i < 3; i++)
        lacks |= tap->ret[i] || tap->d[i];
    for (uint32_t i = 0; i < run->span->n_steps; i++) {
        const struct nb_grad_tensor *w = run->span->steps[i].w;
        lacks |= w && (w->factors || w->inputs != NB_INPUT_BLOCK);
    }
    return lacks ? -ENOTSUP : 0;
}

// --- What crosses

static void look_up(const struct nb_grad *g, const struct nb_step *s, uint32_t row, float *to)
{
    if (s->w->values)
        memcpy(to, s->w->values + (size_t)row * s->out.width, s->out.width * sizeof(*to));
    else
        g->kernels->decode_row(&s->w->matrix->packed, row, to);
}

// Of an EMBED: the rows that the batch looks up, each once.
static int send_looked(const struct nb_recording *r, const struct nb_step *s)
{
    const struct nb_looked *l = &r->v->looked[s->op->lookup];
    const size_t width = s->out.width;
    float *rows = nb_grad_floats(l->n * width);
    if (!rows)
        return -ENOMEM;
    for (uint32_t i = 0; i < l->n; i++)
        look_up(r->g, s, l->of[i], rows + i * width);
    int rc = nb_vulkan_send(r->v, rows, l->n * width, &r->v->values, nb_looked_at(r, s));
    free(rows);
    return rc;
}

static int bring_looked(const struct nb_recording *r, const struct nb_step *s)
{
    const struct nb_looked *l = &r->v->looked[s->op->lookup];
    const size_t width = s->out.width;
    if (!s->w->gradient)
        return 0;
    float *rows = nb_grad_floats(l->n * width);
    int rc = rows ? nb_vulkan_bring(r->v, &r->v->gradients, nb_looked_at(r, s), l->n * width, rows)
                  : -ENOMEM;
    for (uint32_t i = 0; i < l->n && rc == 0; i++)
        for (size_t j = 0; j < width; j++)
            s->w->gradient[l->of[i] * width + j] += rows[i * width + j];
    free(rows);
    return rc;
}

static int each_looked(const struct nb_recording *r,
                       int (*fn)(const struct nb_recording *r, const struct nb_step *s))
{
    int rc = 0;
    for (uint32_t i = 0; i < r->span->n_steps && rc == 0; i++)
        if (looks_up(&r->span->steps[i]))
            rc = fn(r, &r->span->steps[i]);
    return rc;
}

// A value's rows, which in their buffer may be a part of longer ones.
static int bring_rows(const struct nb_recording *r, const struct nb_vulkan_buffer *from,
                      const struct nb_place *p, float *ret)
{
    const size_t at = r->v->at[p->buffer];
    if (p->width == p->stride)
        return nb_vulkan_bring(r->v, from, at, (size_t)r->rows * p->width, ret);
    float *rows = nb_grad_floats((size_t)r->rows * p->stride);
    int rc = rows ? nb_vulkan_bring(r->v, from, at, (size_t)r->rows * p->stride, rows) : -ENOMEM;
    for (uint32_t i = 0; i < r->rows && rc == 0; i++)
        memcpy(ret + (size_t)i * p->width, rows + (size_t)i * p->stride + p->at,
               p->width * sizeof(*ret));
    free(rows);
    return rc;
}

// To the gradient of a value that is whole rows of its buffer, as spans' results are.
static int send_rows(const struct nb_recording *r, const float *d, const struct nb_place *p)
{
    if (p->width != p->stride)
        return -ENOTSUP;
    return nb_vulkan_send(r->v, d, (size_t)r->rows * p->width, &r->v->gradients,
                          r->v->at[p->buffer]);
}

// --- Runs

static int prepare(struct nb_grad *g, const struct nb_run *run, struct nb_recording *ret)
{
    struct nb_grad_vulkan *v = g->device;
    const struct nb_span *s = run->span;
    *ret = (struct nb_recording){.g = g,
                                 .v = v,
                                 .span = s,
                                 .weights = &v->resident[nb_span_number(g, s)],
                                 .rows = run->rows};
    const size_t floats = nb_values_lay(g, s, run->rows, v->at, &ret->looked);
    nb_vulkan_doing(v->device, "training with %u rows", run->rows);
    int rc = check(g, run);
    if (rc == 0)
        rc = nb_vulkan_fit(v, floats, NB_VULKAN_DEVICE, &v->values);
    if (rc == 0)
        rc = nb_resident_send(g, s);
    if (rc == 0 && run->x)
        rc = nb_vulkan_send(v, run->x, (size_t)run->rows * g->plan->hp.embedding, &v->values,
                            v->at[NB_INPUT]);
    return rc == 0 ? each_looked(ret, send_looked) : rc;
}

static int forward(struct nb_grad *g, const struct nb_run *run)
{
    struct nb_recording r;
    int rc = prepare(g, run, &r);
    if (rc < 0)
        return rc;
    nb_record_begin(&r);
    for (uint32_t i = 0; i < run->steps; i++)
        nb_record_forward(&r, &run->span->steps[i]);
    rc = nb_record_end(&r);
    if (rc == 0 && run->ret)
        rc = bring_rows(&r, &g->device->values, &run->span->out, run->ret);
    if (rc == 0 && run->ret_result)
        rc = bring_rows(&r, &g->device->values, &run->span->result, run->ret_result);
    return rc;
}

// Zeros for all gradients, but for those that the caller gives.
static int begin_gradients(struct nb_recording *r, const struct nb_run *run)
{
    struct nb_grad_vulkan *v = r->v;
    const struct nb_span *s = r->span;
    const bool learns = nb_resident_learns(s);
    int rc = nb_vulkan_fit(v, nb_values_lay(r->g, s, r->rows, NULL, NULL), NB_VULKAN_DEVICE,
                           &v->gradients);
    if (rc == 0 && learns)
        rc = nb_vulkan_fit(v, r->weights->floats, NB_VULKAN_DEVICE, &v->sums);
    if (rc < 0)
        return rc;
    nb_record_begin(r);
    nb_record_zeros(r, &v->gradients);
    if (learns)
        nb_record_zeros(r, &v->sums);
    rc = nb_record_end(r);
    if (rc == 0 && run->d && r->wanted[s->out.buffer])
        rc = send_rows(r, run->d, &s->out);
    if (rc == 0 && run->d_result && r->wanted[s->result.buffer])
        rc = send_rows(r, run->d_result, &s->result);
    return rc;
}

static int record_back(struct nb_recording *r, const struct nb_run *run)
{
    const struct nb_span *s = r->span;
    nb_record_begin(r);
    for (uint32_t i = 0; i < (run->d ? s->n_steps : s->result_steps); i++)
        if (s->steps[i].again)
            nb_record_forward(r, &s->steps[i]);
    for (uint32_t i = s->n_steps; i > 0; i--)
        if (r->wanted[s->steps[i - 1].out.buffer])
            nb_record_backward(r, &s->steps[i - 1]);
    return nb_record_end(r);
}

static int backward(struct nb_grad *g, const struct nb_run *run)
{
    const struct nb_span *s = run->span;
    struct nb_recording r;
    nb_mark_wanted(s, run->ret_d != NULL, g->marks);
    if (!run->d && s->out.buffer != NB_INPUT)
        g->marks[s->out.buffer] = false; // it is zero, and so is what it alone leads to
    int rc = prepare(g, run, &r);
    r.wanted = g->marks;
    if (rc == 0)
        rc = begin_gradients(&r, run);
    if (rc == 0)
        rc = record_back(&r, run);
    if (rc == 0 && nb_resident_learns(s))
        rc = nb_resident_bring(g, s);
    if (rc == 0)
        rc = each_looked(&r, bring_looked);
    if (rc == 0 && run->ret_d)
        rc = nb_vulkan_bring(g->device, &g->device->gradients, g->device->at[NB_INPUT],
                             (size_t)run->rows * g->plan->hp.embedding, run->ret_d);
    return rc;
}

// --- The head takes as many rows at once as a shader sees.

static float *behind(float *x, size_t floats)
{
    return x ? x + floats : NULL;
}

static int in_parts(struct nb_grad *g, const struct nb_run *run,
                    int (*fn)(struct nb_grad *g, const struct nb_run *run))
{
    const struct nb_span *s = run->span;
    const size_t row = (nb_values_lay(g, s, ALIGN, NULL, NULL) / ALIGN + 1) * sizeof(float);
    const size_t width = g->plan->hp.embedding, out = s->out.width, result = s->result.width;
    const uint64_t fit = g->device->device->max_range / row;
    const uint32_t most = fit < run->rows ? (uint32_t)fit : run->rows;
    int rc = most ? 0 : -E2BIG;
    for (uint32_t at = 0; at < run->rows && rc == 0; at += most) {
        struct nb_run part = *run;
        part.rows = nb_least(run->rows - at, most);
        part.x = run->x + at * width;
        part.ret = behind(run->ret, at * out);
        part.ret_result = behind(run->ret_result, at * result);
        part.d = behind(run->d, at * out);
        part.d_result = run->d_result ? run->d_result + at * result : NULL;
        part.ret_d = behind(run->ret_d, at * width);
        rc = fn(g, &part);
    }
    return rc;
}

static int run_span(struct nb_grad *g, const struct nb_run *run,
                    int (*fn)(struct nb_grad *g, const struct nb_run *run))
{
    const bool head = run->span == &g->spans[g->n_spans - 1];
    return head ? in_parts(g, run, fn) : fn(g, run);
}

int nb_vulkan_forward(struct nb_grad *g, const struct nb_run *run)
{
    return run_span(g, run, forward);
}

int nb_vulkan_backward(struct nb_grad *g, const struct nb_run *run)
{
    return run_span(g, run, backward);
}
