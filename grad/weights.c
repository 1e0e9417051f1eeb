// The model's tensors as the caller sees them, and the matrices of one span as floats.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "grad/room.h"

// --- Tensors

static void add_vector(struct nb_grad *g, struct nb_str name, const float *x, uint32_t experts,
                       uint32_t rows, uint32_t cols)
{
    if (x && !nb_tensor_of_vector(g, x))
        g->tensors[g->n_tensors++] = (struct nb_grad_tensor){
            .name = name, .experts = experts, .rows = rows, .cols = cols, .vector = x};
}

static void add_vectors(struct nb_grad *g, const struct nb_op *op)
{
    if (op->kind == NB_OP_NORM) {
        add_vector(g, op->weight_name, op->weight, 1, op->each ? op->heads : 1, op->dim);
        add_vector(g, op->bias_name, op->bias, 1, 1, op->dim);
    } else if (op->kind == NB_OP_LINEAR) {
        add_vector(g, op->bias_name, op->bias, op->w->n, 1, op->w->packed.rows);
    }
}

int nb_tensors_create(struct nb_grad *g, struct nb_error *error)
{
    const struct nb_plan *plan = g->plan;
    g->tensors = calloc(plan->n_matrices + 2 * (size_t)plan->n_ops + 1, sizeof(*g->tensors));
    g->floats.seen = calloc(plan->n_matrices + 1, sizeof(*g->floats.seen));
    if (!g->tensors || !g->floats.seen)
        return nb_fail(error, -ENOMEM, "out of memory");
    // Matrices first: a matrix and its tensor have the same index.
    for (uint32_t i = 0; i < plan->n_matrices; i++) {
        const struct nb_matrix *m = &plan->matrices[i];
        g->tensors[g->n_tensors++] = (struct nb_grad_tensor){.name = m->name,
                                                             .experts = m->n,
                                                             .rows = m->packed.rows,
                                                             .cols = m->packed.cols,
                                                             .matrix = m};
    }
    for (uint32_t i = 0; i < plan->n_ops; i++)
        add_vectors(g, &plan->ops[i]);
    return 0;
}

struct nb_grad_tensor *nb_tensor_of_matrix(struct nb_grad *g, const struct nb_matrix *m)
{
    return &g->tensors[m - g->plan->matrices];
}

struct nb_grad_tensor *nb_tensor_of_vector(struct nb_grad *g, const float *x)
{
    for (uint32_t i = g->plan->n_matrices; i < g->n_tensors && x; i++)
        if (g->tensors[i].vector == x)
            return &g->tensors[i];
    return NULL;
}

struct nb_grad_tensor *nb_grad_tensors(struct nb_grad *g, uint32_t *ret_n)
{
    *ret_n = g->n_tensors;
    return g->tensors;
}

struct nb_grad_tensor *nb_grad_find(struct nb_grad *g, const char *name)
{
    for (uint32_t i = 0; i < g->n_tensors; i++)
        if (g->tensors[i].name.len == strlen(name) &&
            !memcmp(g->tensors[i].name.data, name, strlen(name)))
            return &g->tensors[i];
    return NULL;
}

// --- Matrices as floats

#define GROUPS 4 // row groups of a unit of work

struct dequantizing {
    const struct nb_grad *g;
    const struct nb_matrix *m;
    float *to;
};

static uint32_t units_of(const struct nb_packed *w)
{
    return (w->rows + GROUPS * NB_GROUP_ROWS - 1) / (GROUPS * NB_GROUP_ROWS);
}

static void dequantize_unit(void *arg, uint32_t unit, uint32_t thread)
{
    const struct dequantizing *d = arg;
    const uint32_t units = units_of(&d->m->packed), expert = unit / units;
    const struct nb_packed w = nb_matrix_of_expert(d->m, expert);
    const uint32_t row = unit % units * GROUPS * NB_GROUP_ROWS;
    const uint32_t end = nb_least(row + GROUPS * NB_GROUP_ROWS, w.rows);
    for (uint32_t r = row; r < end; r++)
        d->g->kernels->decode_row(&w, r, d->to + ((size_t)expert * w.rows + r) * w.cols);
}

static void dequantize(const struct nb_grad *g, const struct nb_matrix *m,
                       float *to) // NOLINT(*non-const-parameter)
{
    struct dequantizing d = {g, m, to};
    nb_each(g->team, m->n * units_of(&m->packed), dequantize_unit, &d);
}

void nb_grad_dequantize(struct nb_grad *g, const struct nb_grad_tensor *t, float *ret)
{
    if (t->matrix)
        dequantize(g, t->matrix, ret);
    else
        memcpy(ret, t->vector, (size_t)t->experts * t->rows * t->cols * sizeof(*ret));
}

static int reserve_low(struct nb_floats *w, const struct nb_span *s, uint32_t rows)
{
    size_t floats = 0;
    for (uint32_t i = 0; i < s->n_steps; i++) {
        const struct nb_grad_tensor *t = s->steps[i].w;
        if (t && t->factors && (size_t)rows * t->factors->rank > floats)
            floats = (size_t)rows * t->factors->rank;
    }
    if (floats <= w->low_floats)
        return 0;
    free(w->low);
    w->low = nb_grad_floats(floats);
    w->low_floats = w->low ? floats : 0;
    return w->low ? 0 : -ENOMEM;
}

static int reserve_coded(struct nb_grad *g, const struct nb_span *s, uint32_t rows)
{
    struct nb_floats *w = &g->floats;
    size_t floats = 0;
    for (uint32_t i = 0; i < s->n_steps; i++) {
        const struct nb_grad_tensor *t = s->steps[i].w;
        if (!t || t->inputs == NB_INPUT_BLOCK || s->steps[i].kind != &nb_step_kinds[NB_OP_LINEAR])
            continue;
        const size_t n = (size_t)nb_buffer_rows(g, s, s->steps[i].out.buffer, rows) * t->cols;
        floats = n > floats ? n : floats;
    }
    if (floats <= w->coded_floats)
        return 0;
    free(w->coded);
    w->coded = nb_grad_floats(floats);
    w->coded_floats = w->coded ? floats : 0;
    return w->coded ? 0 : -ENOMEM;
}

static int reserve_narrow(struct nb_grad *g, const struct nb_span *s, uint32_t rows)
{
    struct nb_floats *w = &g->floats;
    size_t n[2] = {0, 0};
    for (uint32_t i = 0; i < s->n_steps && g->bf16; i++) {
        const struct nb_grad_tensor *t = s->steps[i].w;
        if (!t || s->steps[i].kind != &nb_step_kinds[NB_OP_LINEAR])
            continue;
        const size_t of = nb_buffer_rows(g, s, s->steps[i].out.buffer, rows);
        const size_t wide = t->rows > t->cols ? t->rows : t->cols;
        const size_t second = (of > t->rows ? of : t->rows) * t->cols;
        n[0] = of * wide > n[0] ? of * wide : n[0];
        n[1] = second > n[1] ? second : n[1];
    }
    for (int i = 0; i < 2; i++) {
        if (n[i] <= w->narrow_n[i])
            continue;
        free(w->narrow[i]);
        w->narrow[i] = malloc(n[i] * sizeof(*w->narrow[i]));
        w->narrow_n[i] = w->narrow[i] ? n[i] : 0;
        if (!w->narrow[i])
            return -ENOMEM;
    }
    return 0;
}

static int reserve(struct nb_floats *w, size_t floats)
{
    if (floats <= w->floats)
        return 0;
    free(w->memory);
    w->memory = aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
    w->floats = w->memory ? floats : 0;
    w->of = NULL;
    return w->memory ? 0 : -ENOMEM;
}

static void load(struct nb_grad *g, const struct nb_step *s)
{
    const struct nb_matrix *m = s->w->matrix;
    // Counted from 1: 0 says that the matrix is not here.
    uint32_t *seen = &g->floats.seen[m - g->plan->matrices];
    if (s->w->values || *seen == m->replaced + 1)
        return;
    dequantize(g, m, g->floats.memory + s->floats);
    *seen = m->replaced + 1;
}

int nb_floats_load(struct nb_grad *g, const struct nb_span *s, uint32_t rows)
{
    struct nb_floats *w = &g->floats;
    int rc = reserve_low(w, s, rows);
    if (rc == 0)
        rc = reserve_coded(g, s, rows);
    if (rc == 0)
        rc = reserve_narrow(g, s, rows);
    if (rc == 0)
        rc = reserve(w, s->floats);
    if (rc < 0)
        return rc;
    if (w->of != s)
        memset(w->seen, 0, g->plan->n_matrices * sizeof(*w->seen));
    w->of = s;
    for (uint32_t i = 0; i < s->n_steps; i++)
        if (s->steps[i].kind == &nb_step_kinds[NB_OP_LINEAR])
            load(g, &s->steps[i]);
    return 0;
}

const float *nb_floats_of(const struct nb_grad *g, const struct nb_step *s, uint32_t expert)
{
    const float *all = s->w->values ? s->w->values : g->floats.memory + s->floats;
    return all + (size_t)expert * s->w->rows * s->w->cols;
}
