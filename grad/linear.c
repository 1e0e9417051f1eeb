// LINEAR and its gradients: GEMMs of whole batches (grad/gemm.h). Of experts each one's rows
// lie together.
#include <string.h>

#include "grad/gemm.h"
#include "grad/room.h"

// Rows that meet one matrix.
struct piece {
    uint32_t expert, first, n;
};

static bool has_experts(const struct nb_pass *p, const struct nb_step *s)
{
    return p->span->buffers[s->out.buffer].of_experts;
}

static uint32_t pieces_of(const struct nb_pass *p, const struct nb_step *s)
{
    return has_experts(p, s) ? p->g->plan->hp.n_experts : 1;
}

static struct piece piece_of(const struct nb_pass *p, const struct nb_step *s, uint32_t i)
{
    if (!has_experts(p, s))
        return (struct piece){0, 0, p->rows};
    const uint32_t *first = p->routing.first;
    return (struct piece){i, first[i], first[i + 1] - first[i]};
}

// --- Biases

struct biases {
    const struct nb_pass *p;
    const struct nb_step *s;
    struct piece piece;
};

#define ROWS    16 // of a unit of work
#define COLUMNS 64

static void add_bias(void *arg, uint32_t unit, uint32_t thread)
{
    const struct biases *b = arg;
    const uint32_t cols = b->s->w->rows, end = nb_least((unit + 1) * ROWS, b->piece.n);
    const float *bias = nb_vector_of(b->s->bias) + (size_t)b->piece.expert * cols;
    for (uint32_t i = unit * ROWS; i < end; i++) {
        float *y = nb_value(b->p, &b->s->out, b->piece.first + i);
        for (uint32_t j = 0; j < cols; j++)
            y[j] += bias[j];
    }
}

// The sum over all rows, in their order, of some columns.
static void sum_bias(void *arg, uint32_t unit, uint32_t thread)
{
    const struct biases *b = arg;
    const uint32_t cols = b->s->w->rows, at = unit * COLUMNS, n = nb_least(cols - at, COLUMNS);
    float sum[COLUMNS] = {0};
    for (uint32_t i = 0; i < b->piece.n; i++) {
        const float *dy = nb_gradient(b->p, &b->s->out, b->piece.first + i) + at;
        for (uint32_t j = 0; j < n; j++)
            sum[j] += dy[j];
    }
    float *to = b->s->bias->gradient + (size_t)b->piece.expert * cols + at;
    for (uint32_t j = 0; j < n; j++)
        to[j] += sum[j];
}

// --- Products, of operands as they are or as bf16

struct matrix {
    const float *x;
    size_t ld;
    uint32_t rows, cols;    // as it lies
    const uint16_t *narrow; // [rows][cols], with bf16
};

struct narrowing {
    const struct nb_pass *p;
    const struct matrix *from;
    uint16_t *to; // [rows][cols]
};

static void narrow_rows(void *arg, uint32_t unit, uint32_t thread)
{
    const struct narrowing *n = arg;
    const struct matrix *m = n->from;
    for (uint32_t i = unit * ROWS; i < nb_least((unit + 1) * ROWS, m->rows); i++)
        n->p->g->loops->narrow(m->x + i * m->ld, n->to + (size_t)i * m->cols, m->cols);
}

// Makes it an operand: with bf16 what it was before as this operand is of no use any more.
static void narrow(const struct nb_pass *p, int operand, struct matrix *m)
{
    struct narrowing n = {p, m, p->g->floats.narrow[operand]};
    if (!p->g->bf16)
        return;
    nb_each(p->g->team, (m->rows + ROWS - 1) / ROWS, narrow_rows, &n);
    m->narrow = n.to;
}

// C = beta C + op(A) op(B): `ta`, `tb` as of nb_sgemm.
static void product(const struct nb_pass *p, bool ta, bool tb, const struct matrix *a,
                    const struct matrix *b, float beta, float *c, size_t ldc)
{
    const uint32_t m = ta ? a->cols : a->rows, k = ta ? a->rows : a->cols;
    const uint32_t n = tb ? b->rows : b->cols;
    if (p->g->bf16)
        nb_bgemm(p->g->team, ta, tb, m, n, k, a->narrow, a->cols, b->narrow, b->cols, beta, c, ldc);
    else
        nb_sgemm(p->g->team, ta, tb, m, n, k, a->x, a->ld, b->x, b->ld, beta, c, ldc);
}

// --- Factors: y += scale (x A') B'

// to [n][rank] = scale times rows of x and A (transposed), or rows of dy and B.
static void make_low(const struct nb_pass *p, const struct nb_grad_factors *f, uint32_t n,
                     const float *rows, size_t stride, const float *by, bool transposed,
                     uint32_t width)
{
    float *to = p->g->floats.low;
    nb_sgemm(p->g->team, false, transposed, n, f->rank, width, rows, stride, by,
             transposed ? width : f->rank, 0.0f, to, f->rank);
    for (size_t i = 0; i < (size_t)n * f->rank; i++)
        to[i] *= f->scale;
}

static void add_factors(const struct nb_pass *p, const struct nb_step *s, const struct piece *piece)
{
    const struct nb_grad_factors *f = s->w->factors;
    make_low(p, f, piece->n, nb_value(p, &s->in, piece->first), s->in.stride, f->a, true,
             s->w->cols);
    nb_sgemm(p->g->team, false, true, piece->n, s->w->rows, f->rank, p->g->floats.low, f->rank,
             f->b, f->rank, 1.0f, nb_value(p, &s->out, piece->first), s->out.stride);
}

static void factors_back(const struct nb_pass *p, const struct nb_step *s,
                         const struct piece *piece)
{
    const struct nb_grad_factors *f = s->w->factors;
    const float *x = nb_value(p, &s->in, piece->first);
    const float *dy = nb_gradient(p, &s->out, piece->first);
    const uint32_t n = piece->n, rows = s->w->rows, cols = s->w->cols;
    float *low = p->g->floats.low;
    make_low(p, f, n, x, s->in.stride, f->a, true, cols);
    nb_sgemm(p->g->team, true, false, rows, f->rank, n, dy, s->out.stride, low, f->rank, 1.0f,
             f->d_b, f->rank);
    make_low(p, f, n, dy, s->out.stride, f->b, false, rows);
    nb_sgemm(p->g->team, true, false, f->rank, cols, n, low, f->rank, x, s->in.stride, 1.0f, f->d_a,
             cols);
    if (nb_is_wanted(p, &s->in))
        nb_sgemm(p->g->team, false, false, n, cols, f->rank, low, f->rank, f->a, cols, 1.0f,
                 nb_gradient(p, &s->in, piece->first), s->in.stride);
}

// --- The op

static void show(const struct nb_pass *p, const struct nb_step *s, const struct piece *piece)
{
    if (p->shows && p->g->see)
        p->g->see(p->g->see_user, s->w, piece->expert, nb_value(p, &s->in, piece->first),
                  s->in.stride, piece->n);
}

struct coding {
    const struct nb_pass *p;
    const struct nb_grad_tensor *w;
    const struct matrix *from;
};

static void code_rows(void *arg, uint32_t unit, uint32_t thread)
{
    const struct coding *c = arg;
    const struct matrix *m = c->from;
    const float most = c->w->inputs == NB_INPUT_FIXED ? c->w->range : 0.0f;
    for (uint32_t i = unit * ROWS; i < nb_least((unit + 1) * ROWS, m->rows); i++)
        c->p->g->loops->round_codes(m->x + i * m->ld, most,
                                    c->p->g->floats.coded + (size_t)i * m->cols, m->cols);
}

// As products take it: what another matrix's was before is of no use any more.
static struct matrix input_of(const struct nb_pass *p, const struct nb_step *s,
                              const struct piece *piece)
{
    const struct matrix m = {nb_value(p, &s->in, piece->first), s->in.stride, piece->n, s->w->cols,
                             NULL};
    struct coding c = {p, s->w, &m};
    if (s->w->inputs == NB_INPUT_BLOCK)
        return m;
    nb_each(p->g->team, (m.rows + ROWS - 1) / ROWS, code_rows, &c);
    return (struct matrix){p->g->floats.coded, m.cols, m.rows, m.cols, NULL};
}

static struct matrix weights_of(const struct nb_pass *p, const struct nb_step *s,
                                const struct piece *piece)
{
    return (struct matrix){nb_floats_of(p->g, s, piece->expert), s->w->cols, s->w->rows, s->w->cols,
                           NULL};
}

static void linear_piece(const struct nb_pass *p, const struct nb_step *s,
                         const struct piece *piece)
{
    show(p, s, piece);
    struct matrix x = input_of(p, s, piece), w = weights_of(p, s, piece);
    narrow(p, 0, &x);
    narrow(p, 1, &w);
    product(p, false, true, &x, &w, s->op->add ? 1.0f : 0.0f, nb_value(p, &s->out, piece->first),
            s->out.stride);
    if (s->w->factors)
        add_factors(p, s, piece);
    struct biases b = {p, s, *piece};
    if (s->bias)
        nb_each(p->g->team, (piece->n + ROWS - 1) / ROWS, add_bias, &b);
}

void nb_linear(const struct nb_pass *p, const struct nb_step *s)
{
    nb_take_old(p, s);
    for (uint32_t i = 0; i < pieces_of(p, s); i++) {
        const struct piece piece = piece_of(p, s, i);
        if (piece.n)
            linear_piece(p, s, &piece);
    }
}

static void linear_piece_back(const struct nb_pass *p, const struct nb_step *s,
                              const struct piece *piece)
{
    const struct nb_grad_tensor *w = s->w;
    struct matrix values = weights_of(p, s, piece);
    struct matrix dy = {nb_gradient(p, &s->out, piece->first), s->out.stride, piece->n, w->rows,
                        NULL};
    if (w->gradient || nb_is_wanted(p, &s->in))
        narrow(p, 0, &dy); // for both products
    if (w->gradient) {
        struct matrix x = input_of(p, s, piece);
        narrow(p, 1, &x);
        product(p, true, false, &dy, &x, 1.0f,
                w->gradient + (size_t)piece->expert * w->rows * w->cols, w->cols);
    }
    if (nb_is_wanted(p, &s->in)) {
        narrow(p, 1, &values);
        product(p, false, false, &dy, &values, 1.0f, nb_gradient(p, &s->in, piece->first),
                s->in.stride);
    }
    if (w->factors)
        factors_back(p, s, piece);
    struct biases b = {p, s, *piece};
    if (s->bias && s->bias->gradient)
        nb_each(p->g->team, (w->rows + COLUMNS - 1) / COLUMNS, sum_bias, &b);
}

void nb_linear_back(const struct nb_pass *p, const struct nb_step *s)
{
    for (uint32_t i = 0; i < pieces_of(p, s); i++) {
        const struct piece piece = piece_of(p, s, i);
        if (piece.n)
            linear_piece_back(p, s, &piece);
    }
    nb_take_old_back(p, s);
}
