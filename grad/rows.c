// The ops that take a row each, forward by the CPU device's kernels. What is summed over rows (the
// gradients of norms' weights and of embeddings) is summed in their order, by columns.
#include <string.h>

#include "grad/room.h"

#define ROWS    16 // of a unit of work
#define COLUMNS 64

struct work {
    const struct nb_pass *p;
    const struct nb_step *s;
    void (*row)(const struct nb_pass *p, const struct nb_step *s, uint32_t row, uint32_t thread);
    uint32_t rows;
};

static void run_rows(void *arg, uint32_t unit, uint32_t thread)
{
    const struct work *w = arg;
    const uint32_t end = nb_least((unit + 1) * ROWS, w->rows);
    for (uint32_t row = unit * ROWS; row < end; row++)
        w->row(w->p, w->s, row, thread);
}

// Calls `row` for each row of the step's result.
static void each_row(const struct nb_pass *p, const struct nb_step *s,
                     void (*row)(const struct nb_pass *p, const struct nb_step *s, uint32_t row,
                                 uint32_t thread))
{
    struct work w = {p, s, row, nb_buffer_rows(p->g, p->span, s->out.buffer, p->rows)};
    nb_each(p->g->team, (w.rows + ROWS - 1) / ROWS, run_rows, &w);
}

static void each_columns(const struct nb_pass *p, const struct nb_step *s, uint32_t columns,
                         nb_unit_fn *fn)
{
    struct work w = {p, s, NULL, p->rows};
    nb_each(p->g->team, (columns + COLUMNS - 1) / COLUMNS, fn, &w);
}

static void add_to(float *y, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] += x[i];
}

// --- What is added to

static void take_old(const struct nb_pass *p, const struct nb_step *s, uint32_t row,
                     uint32_t thread)
{
    memcpy(nb_value(p, &s->out, row), nb_value(p, &s->old, row), s->out.width * sizeof(float));
}

void nb_take_old(const struct nb_pass *p, const struct nb_step *s)
{
    if (nb_is_somewhere(&s->old) && !nb_same_place(&s->old, &s->out))
        each_row(p, s, take_old);
}

static void take_old_back(const struct nb_pass *p, const struct nb_step *s, uint32_t row,
                          uint32_t thread)
{
    add_to(nb_gradient(p, &s->old, row), nb_gradient(p, &s->out, row), s->out.width);
}

void nb_take_old_back(const struct nb_pass *p, const struct nb_step *s)
{
    if (nb_is_wanted(p, &s->old) && !nb_same_place(&s->old, &s->out))
        each_row(p, s, take_old_back);
}

// --- EMBED

static uint32_t looked_up(const struct nb_pass *p, const struct nb_step *s, uint32_t row)
{
    const struct nb_batch *batch = &p->g->batch;
    return s->op->lookup == NB_LOOKUP_TOKEN      ? (uint32_t)batch->token[row]
           : s->op->lookup == NB_LOOKUP_POSITION ? batch->position[row]
                                                 : 0;
}

static void embed(const struct nb_pass *p, const struct nb_step *s, uint32_t row, uint32_t thread)
{
    const uint32_t at = looked_up(p, s, row), n = s->out.width;
    float *x = nb_scratch(p, thread), *y = nb_value(p, &s->out, row);
    if (s->w->values)
        memcpy(x, s->w->values + (size_t)at * n, n * sizeof(*x));
    else
        p->g->kernels->decode_row(&s->w->matrix->packed, at, x);
    if (!s->op->add)
        memset(y, 0, n * sizeof(*y));
    p->g->kernels->add(y, x, s->op->scale, n);
}

void nb_embed(const struct nb_pass *p, const struct nb_step *s)
{
    nb_take_old(p, s);
    each_row(p, s, embed);
}

static void embed_columns(void *arg, uint32_t unit, uint32_t thread)
{
    const struct work *w = arg;
    const uint32_t n = w->s->out.width, at = unit * COLUMNS, end = nb_least(at + COLUMNS, n);
    for (uint32_t row = 0; row < w->rows; row++) {
        const float *dy = nb_gradient(w->p, &w->s->out, row);
        float *to = w->s->w->gradient + (size_t)looked_up(w->p, w->s, row) * n;
        for (uint32_t i = at; i < end; i++)
            to[i] += w->s->op->scale * dy[i];
    }
}

void nb_embed_back(const struct nb_pass *p, const struct nb_step *s)
{
    if (s->w->gradient)
        each_columns(p, s, s->out.width, embed_columns);
    nb_take_old_back(p, s);
}

// --- NORM

static const float *norm_weight_of(const struct nb_step *s, uint32_t head)
{
    const float *weight = nb_vector_of(s->weight);
    return weight && s->op->each ? weight + (size_t)head * s->op->dim : weight;
}

static void norm_head(const struct nb_pass *p, const struct nb_step *s, const float *x,
                      uint32_t head, float *y)
{
    const struct nb_hparams *hp = &p->g->plan->hp;
    const float *weight = norm_weight_of(s, head);
    if (hp->arch->norm == NB_NORM_RMS)
        p->g->kernels->rmsnorm(x, weight, hp->norm_eps, s->op->dim, y);
    else
        p->g->kernels->layernorm(x, weight, nb_vector_of(s->bias), hp->norm_eps, s->op->dim, y);
}

// A backward pass that does not need the result wants the means and factors all the same.
static void norm(const struct nb_pass *p, const struct nb_step *s, uint32_t row, uint32_t thread)
{
    const struct nb_hparams *hp = &p->g->plan->hp;
    const uint32_t dim = s->op->dim;
    const float *x = nb_value(p, &s->in, row);
    float *y = p->data[s->out.buffer] ? nb_value(p, &s->out, row) : NULL;
    for (uint32_t h = 0; h < s->op->heads; h++) {
        p->g->loops->norm_stat(hp->arch->norm, x + h * dim, hp->norm_eps, dim,
                               nb_value(p, &s->aux, row) + 2 * h);
        if (y)
            norm_head(p, s, x + h * dim, h, y + h * dim);
    }
}

void nb_norm(const struct nb_pass *p, const struct nb_step *s)
{
    each_row(p, s, norm);
}

static void norm_back(const struct nb_pass *p, const struct nb_step *s, uint32_t row,
                      uint32_t thread)
{
    const uint32_t dim = s->op->dim;
    const float *x = nb_value(p, &s->in, row), *stat = nb_value(p, &s->aux, row);
    const float *dy = nb_gradient(p, &s->out, row);
    float *dx = nb_gradient(p, &s->in, row);
    for (uint32_t h = 0; h < s->op->heads; h++, x += dim, dy += dim, dx += dim)
        p->g->loops->norm_back(p->g->plan->hp.arch->norm, x, norm_weight_of(s, h), stat + 2 * h,
                               dim, dy, dx);
}

// Some columns of one head's weights, or of those that all heads share.
struct columns {
    uint32_t head, end, at, n;
};

static uint32_t column_units(const struct nb_op *op)
{
    return (op->dim + COLUMNS - 1) / COLUMNS;
}

static struct columns columns_of(const struct nb_op *op, uint32_t unit)
{
    const uint32_t units = column_units(op), at = unit % units * COLUMNS, head = unit / units;
    return (struct columns){op->each ? head : 0, op->each ? head + 1 : op->heads, at,
                            nb_least(op->dim - at, COLUMNS)};
}

static void norm_weight_back(void *arg, uint32_t unit, uint32_t thread)
{
    const struct work *w = arg;
    const struct nb_op *op = w->s->op;
    const struct columns c = columns_of(op, unit);
    float sum[COLUMNS] = {0};
    for (uint32_t row = 0; row < w->rows; row++)
        for (uint32_t h = c.head; h < c.end; h++)
            w->p->g->loops->norm_weight(nb_value(w->p, &w->s->in, row) + h * op->dim + c.at,
                                        nb_gradient(w->p, &w->s->out, row) + h * op->dim + c.at,
                                        nb_value(w->p, &w->s->aux, row) + 2 * h, c.n, sum);
    add_to(w->s->weight->gradient + (size_t)c.head * op->dim + c.at, sum, c.n);
}

static void norm_bias_back(void *arg, uint32_t unit, uint32_t thread)
{
    const struct work *w = arg;
    const struct nb_op *op = w->s->op;
    const uint32_t at = unit * COLUMNS, n = nb_least(op->dim - at, COLUMNS);
    float sum[COLUMNS] = {0};
    for (uint32_t row = 0; row < w->rows; row++)
        for (uint32_t h = 0; h < op->heads; h++)
            add_to(sum, nb_gradient(w->p, &w->s->out, row) + h * op->dim + at, n);
    add_to(w->s->bias->gradient + at, sum, n);
}

void nb_norm_back(const struct nb_pass *p, const struct nb_step *s)
{
    const struct nb_op *op = s->op;
    struct work w = {p, s, NULL, p->rows};
    if (s->weight && s->weight->gradient)
        nb_each(p->g->team, column_units(op) * (op->each ? op->heads : 1), norm_weight_back, &w);
    if (s->bias && s->bias->gradient)
        nb_each(p->g->team, column_units(op), norm_bias_back, &w);
    if (nb_is_wanted(p, &s->in))
        each_row(p, s, norm_back);
}

// --- ROPE: its gradient turns the other way.

static void rope(const struct nb_pass *p, const struct nb_step *s, uint32_t row, uint32_t thread)
{
    const struct nb_hparams *hp = &p->g->plan->hp;
    const float *angles =
        p->g->batch.rope + ((size_t)row * hp->n_ropes + s->op->rope) * hp->rope_dims;
    float *y = nb_value(p, &s->out, row);
    if (!nb_same_place(&s->in, &s->out))
        memcpy(y, nb_value(p, &s->in, row), s->out.width * sizeof(*y));
    p->g->kernels->rope(y, s->op->heads, s->op->dim, hp->rope_dims, angles, hp->arch->rope_neox);
}

void nb_rope(const struct nb_pass *p, const struct nb_step *s)
{
    each_row(p, s, rope);
}

static void rope_back(const struct nb_pass *p, const struct nb_step *s, uint32_t row,
                      uint32_t thread)
{
    const struct nb_hparams *hp = &p->g->plan->hp;
    const uint32_t n = hp->rope_dims;
    const float *angles = p->g->batch.rope + ((size_t)row * hp->n_ropes + s->op->rope) * n;
    float *back = nb_scratch(p, thread), *dy = nb_gradient(p, &s->out, row);
    for (uint32_t i = 0; i < n; i++)
        back[i] = i < n / 2 ? angles[i] : -angles[i];
    p->g->kernels->rope(dy, s->op->heads, s->op->dim, n, back, hp->arch->rope_neox);
    if (!nb_same_place(&s->in, &s->out))
        add_to(nb_gradient(p, &s->in, row), dy, s->out.width);
}

void nb_rope_back(const struct nb_pass *p, const struct nb_step *s)
{
    each_row(p, s, rope_back);
}

// --- ACTIVATE

static void activate(const struct nb_pass *p, const struct nb_step *s, uint32_t row,
                     uint32_t thread)
{
    p->g->kernels->activate(p->g->plan->hp.arch->activation, nb_value(p, &s->in, row),
                            nb_is_somewhere(&s->other) ? nb_value(p, &s->other, row) : NULL,
                            s->out.width, nb_value(p, &s->out, row));
}

void nb_activate(const struct nb_pass *p, const struct nb_step *s)
{
    each_row(p, s, activate);
}

static void activate_back(const struct nb_pass *p, const struct nb_step *s, uint32_t row,
                          uint32_t thread)
{
    const bool has_up = nb_is_somewhere(&s->other);
    p->g->loops->activate_back(p->g->plan->hp.arch->activation, nb_value(p, &s->in, row),
                               has_up ? nb_value(p, &s->other, row) : NULL, s->out.width,
                               nb_gradient(p, &s->out, row),
                               nb_is_wanted(p, &s->in) ? nb_gradient(p, &s->in, row) : NULL,
                               nb_is_wanted(p, &s->other) ? nb_gradient(p, &s->other, row) : NULL);
}

void nb_activate_back(const struct nb_pass *p, const struct nb_step *s)
{
    each_row(p, s, activate_back);
}

// --- ADD, CAP

static void add(const struct nb_pass *p, const struct nb_step *s, uint32_t row, uint32_t thread)
{
    p->g->kernels->add(nb_value(p, &s->out, row), nb_value(p, &s->in, row), s->op->scale,
                       s->out.width);
}

void nb_add(const struct nb_pass *p, const struct nb_step *s)
{
    nb_take_old(p, s);
    each_row(p, s, add);
}

static void add_back(const struct nb_pass *p, const struct nb_step *s, uint32_t row,
                     uint32_t thread)
{
    p->g->kernels->add(nb_gradient(p, &s->in, row), nb_gradient(p, &s->out, row), s->op->scale,
                       s->out.width);
}

void nb_add_back(const struct nb_pass *p, const struct nb_step *s)
{
    if (nb_is_wanted(p, &s->in))
        each_row(p, s, add_back);
    nb_take_old_back(p, s);
}

static void cap(const struct nb_pass *p, const struct nb_step *s, uint32_t row, uint32_t thread)
{
    float *y = nb_value(p, &s->out, row);
    if (!nb_same_place(&s->in, &s->out))
        memcpy(y, nb_value(p, &s->in, row), s->out.width * sizeof(*y));
    p->g->kernels->cap(y, s->op->scale, s->op->cap, s->out.width);
}

void nb_cap(const struct nb_pass *p, const struct nb_step *s)
{
    each_row(p, s, cap);
}

// What it was made of nobody reads, so its gradient takes the place of the result's.
static void cap_back(const struct nb_pass *p, const struct nb_step *s, uint32_t row,
                     uint32_t thread)
{
    float *dy = nb_gradient(p, &s->out, row);
    const float *y = s->op->cap > 0.0f ? nb_value(p, &s->out, row) : dy;
    p->g->loops->cap_back(y, s->op->scale, s->op->cap, s->out.width, dy);
    if (!nb_same_place(&s->in, &s->out))
        add_to(nb_gradient(p, &s->in, row), dy, s->out.width);
}

void nb_cap_back(const struct nb_pass *p, const struct nb_step *s)
{
    each_row(p, s, cap_back);
}
