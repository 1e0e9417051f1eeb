// See needs.h.
#include "distill/needs.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "distill/cosine.h"
#include "grad/grad.h"
#include "grad/loss.h"

#define SLICE 256 // rows of the head at once

// A matrix of a layer whose columns read what can be cut.
struct reader {
    struct nb_grad_tensor *tensor;
    struct nb_axis axis;
    uint32_t layer;
    float *gradient; // [rows][cols], by gradient
    double *squares; // [cols] of its inputs, by activation
};

struct measuring {
    const struct nb_plan *plan;
    struct nb_team *team;
    const struct nb_windows *windows;
    enum nb_needs_by by;
    struct nb_grad *grad;
    struct reader *readers;
    uint32_t n_readers;
    float *values;   // of the largest tensor
    double *columns; // of the widest
    float *x;        // [layers + 1][length][embedding]
    float *d;        // [length][embedding]
    float *logits;   // [slice][vocab]
    float *soft, *hard;
    int32_t *label; // [length]
    struct nb_needs *ret;
};

// --- What reads what can be cut

static size_t floats_of(const struct nb_grad_tensor *t)
{
    return (size_t)t->experts * t->rows * t->cols;
}

static int add_reader(struct measuring *m, struct nb_grad_tensor *t)
{
    struct reader r = {.tensor = t};
    struct nb_str rest;
    enum nb_dim rows, cols;
    r.layer = nb_arch_layer(t->name, &rest);
    if (!t->matrix || r.layer == NB_NO_LAYER ||
        !nb_arch_dims(m->plan->hp.arch, t->name, &rows, &cols) ||
        !nb_axis_of(&m->plan->hp, cols, &r.axis))
        return 0;
    if (m->by == NB_NEEDS_BY_GRADIENT)
        t->gradient = r.gradient = nb_grad_floats(floats_of(t));
    else
        r.squares = calloc(t->cols, sizeof(*r.squares));
    m->readers[m->n_readers++] = r;
    return r.gradient || r.squares ? 0 : -ENOMEM;
}

static int add_readers(struct measuring *m)
{
    uint32_t n;
    size_t most = 1;
    struct nb_grad_tensor *all = nb_grad_tensors(m->grad, &n);
    int rc = 0;
    m->readers = calloc(n + 1, sizeof(*m->readers));
    if (!m->readers)
        return -ENOMEM;
    for (uint32_t i = 0; i < n && rc == 0 && m->by != NB_NEEDS_OF_LAYERS; i++) {
        rc = add_reader(m, &all[i]);
        most = floats_of(&all[i]) > most ? floats_of(&all[i]) : most;
    }
    m->values = nb_grad_floats(most);
    m->columns = calloc(most, sizeof(*m->columns));
    return rc == 0 && m->values && m->columns ? 0 : -ENOMEM;
}

// Columns' sums become those of the heads, rows or channels that they read.
static void add_columns(struct measuring *m, const struct reader *r, bool squared)
{
    const uint32_t n = m->ret->n[r->axis.cut], unit = r->axis.unit[0];
    double *to = m->ret->of[r->axis.cut] + (r->axis.cut == NB_CUT_WIDTH ? 0 : (size_t)r->layer * n);
    for (uint32_t i = 0; i < n; i++) {
        double sum = 0;
        for (uint32_t j = 0; j < unit; j++)
            sum += m->columns[i * unit + j];
        to[i] += squared ? sum * sum : sum;
    }
}

// --- By activation

static void see(void *user, const struct nb_grad_tensor *w, uint32_t expert, const float *x,
                size_t stride, uint32_t n)
{
    const struct measuring *m = user;
    struct reader *r = m->readers;
    (void)expert;
    while (r < m->readers + m->n_readers && r->tensor != w)
        r++;
    if (r == m->readers + m->n_readers)
        return;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < w->cols; j++)
            r->squares[j] += (double)x[i * stride + j] * (double)x[i * stride + j];
}

static void add_activations(struct measuring *m)
{
    for (uint32_t i = 0; i < m->n_readers; i++) {
        const struct reader *r = &m->readers[i];
        const uint32_t cols = r->tensor->cols;
        nb_grad_dequantize(m->grad, r->tensor, m->values);
        memset(m->columns, 0, cols * sizeof(*m->columns));
        for (size_t j = 0; j < floats_of(r->tensor); j++)
            m->columns[j % cols] += (double)m->values[j] * (double)m->values[j];
        for (uint32_t j = 0; j < cols; j++)
            m->columns[j] *= r->squares[j];
        add_columns(m, r, false);
    }
}

// --- By gradient

static int heads(struct measuring *m)
{
    const uint32_t rows = m->windows->length;
    const size_t row = m->plan->hp.embedding;
    const struct nb_distil_loss how = {.temperature = 1, .hard = 1.0f / (float)(rows - 1)};
    const float *x = m->x + m->plan->n_layers * rows * row;
    double loss = 0;
    int rc = 0;
    for (uint32_t at = 0, n; at < rows && rc == 0; at += n) {
        n = rows - at < SLICE ? rows - at : SLICE;
        rc = nb_grad_head(m->grad, n, x + at * row, NULL, m->logits);
        if (rc < 0)
            break;
        nb_grad_distil(m->grad, n, &how, NULL, m->label + at, m->logits, m->soft, m->hard);
        for (uint32_t i = 0; i < n; i++)
            loss += (double)m->hard[i];
        rc = nb_grad_head_back(m->grad, n, x + at * row, NULL, m->logits, m->d + at * row);
    }
    return rc == 0 && !isfinite(loss) ? -EDOM : rc;
}

static int add_gradients(struct measuring *m)
{
    const size_t apart = (size_t)m->windows->length * m->plan->hp.embedding;
    for (uint32_t i = 0; i < m->n_readers; i++)
        memset(m->readers[i].gradient, 0, floats_of(m->readers[i].tensor) * sizeof(float));
    int rc = heads(m);
    for (uint32_t i = m->plan->n_layers; i > 0 && rc == 0; i--)
        rc = nb_grad_layer_back(m->grad, i - 1, m->x + (i - 1) * apart, NULL, m->d, i > 1);
    for (uint32_t i = 0; i < m->n_readers && rc == 0; i++) {
        const struct reader *r = &m->readers[i];
        const uint32_t cols = r->tensor->cols;
        nb_grad_dequantize(m->grad, r->tensor, m->values);
        memset(m->columns, 0, cols * sizeof(*m->columns));
        for (size_t j = 0; j < floats_of(r->tensor); j++)
            m->columns[j % cols] += (double)m->values[j] * (double)r->gradient[j];
        add_columns(m, r, true);
    }
    return rc;
}

// --- Windows

static void add_layers(struct measuring *m, uint32_t rows)
{
    const uint32_t n = m->plan->hp.embedding;
    for (uint32_t i = 0; i < m->plan->n_layers; i++)
        for (uint32_t j = 0; j < rows; j++) {
            const float *x = m->x + ((size_t)i * rows + j) * n;
            m->ret->layer[i] += nb_away(x, x + (size_t)rows * n, n, 0, NULL) / rows / m->windows->n;
        }
}

static int run_window(struct measuring *m, uint32_t window, struct nb_error *e)
{
    uint32_t n;
    const int32_t *token = nb_window(m->windows, window, &n);
    const struct nb_grad_sequence sequence = {token, n, 0};
    const size_t apart = (size_t)n * m->plan->hp.embedding;
    for (uint32_t i = 0; i < n; i++)
        m->label[i] = i + 1 < n ? token[i + 1] : -1;
    int rc = nb_grad_batch(m->grad, &sequence, 1, e);
    if (rc < 0)
        return rc;
    rc = nb_grad_begin(m->grad, m->x);
    for (uint32_t i = 0; i < m->plan->n_layers && rc == 0; i++)
        rc = nb_grad_layer(m->grad, i, m->x + i * apart, NULL, m->x + (i + 1) * apart);
    if (rc == 0)
        add_layers(m, n);
    return rc == 0 && m->by == NB_NEEDS_BY_GRADIENT ? add_gradients(m) : rc;
}

// --- All of it

static int make(struct measuring *m)
{
    const struct nb_hparams *hp = &m->plan->hp;
    const size_t rows = m->windows->length;
    struct nb_needs *r = m->ret;
    r->layers = hp->n_layers;
    r->layer = calloc(hp->n_layers, sizeof(*r->layer));
    bool good = r->layer;
    for (int cut = 0; cut < NB_CUTS; cut++) {
        r->n[cut] = nb_cut_all(hp, (enum nb_cut)cut);
        r->of[cut] = calloc((size_t)hp->n_layers * r->n[cut] + 1, sizeof(double));
        good = good && r->of[cut];
    }
    m->x = nb_grad_floats((hp->n_layers + 1) * rows * hp->embedding);
    m->d = nb_grad_floats(rows * hp->embedding);
    m->logits = nb_grad_floats((size_t)SLICE * hp->vocab);
    m->soft = nb_grad_floats(SLICE);
    m->hard = nb_grad_floats(SLICE);
    m->label = calloc(rows + 1, sizeof(*m->label));
    return good && m->x && m->d && m->logits && m->soft && m->hard && m->label ? add_readers(m)
                                                                               : -ENOMEM;
}

static int measure(struct measuring *m, struct nb_error *e)
{
    const struct nb_hparams *hp = &m->plan->hp;
    int rc = nb_windows_check(m->windows, hp->context, hp->vocab, "model", e);
    if (rc == 0 && hp->for_vectors && m->by == NB_NEEDS_BY_GRADIENT)
        rc = nb_fail(e, -ENOTSUP,
                     "the gradient is that of a loss of logits, which a %s model that is made for "
                     "vectors does not learn: cut by activation (--cut-by)",
                     hp->arch->name);
    if (rc == 0)
        rc = nb_grad_open(m->plan, m->team, &m->grad, e);
    if (rc < 0)
        return rc;
    rc = make(m);
    if (rc == 0 && m->by == NB_NEEDS_BY_ACTIVATION)
        nb_grad_see(m->grad, see, m);
    for (uint32_t i = 0; i < m->windows->n && rc == 0; i++)
        rc = run_window(m, i, e);
    if (rc == 0 && m->by == NB_NEEDS_BY_ACTIVATION)
        add_activations(m);
    return rc == 0 || e->text[0] ? rc
           : rc == -EDOM         ? nb_fail(e, rc, "the model's loss on the text is not finite")
                                 : nb_fail(e, rc, "no memory to find what a model needs least");
}

int nb_needs_measure(const struct nb_plan *plan, struct nb_team *team,
                     const struct nb_windows *windows, enum nb_needs_by by, struct nb_needs *ret,
                     struct nb_error *ret_error)
{
    struct measuring m = {.plan = plan, .team = team, .windows = windows, .by = by, .ret = ret};
    *ret = (struct nb_needs){0};
    int rc = measure(&m, ret_error);
    for (uint32_t i = 0; i < m.n_readers; i++) {
        free(m.readers[i].gradient);
        free(m.readers[i].squares);
    }
    nb_grad_close(m.grad);
    free(m.readers);
    free(m.values);
    free(m.columns);
    free(m.x);
    free(m.d);
    free(m.logits);
    free(m.soft);
    free(m.hard);
    free(m.label);
    if (rc < 0)
        nb_needs_finish(ret);
    return rc;
}

void nb_needs_finish(struct nb_needs *m)
{
    free(m->layer);
    for (int cut = 0; cut < NB_CUTS; cut++)
        free(m->of[cut]);
    *m = (struct nb_needs){0};
}

// --- The most needed

struct ranked {
    double need;
    uint32_t i;
};

static int compare(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->need != y->need)
        return x->need < y->need ? 1 : -1;
    return x->i < y->i ? -1 : 1;
}

static int compare_numbers(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;
    return *x < *y ? -1 : 1;
}

int nb_needs_most(const double *need, uint32_t all, uint32_t n, uint32_t *ret)
{
    struct ranked *r = calloc((size_t)all + 1, sizeof(*r));
    if (!r)
        return -ENOMEM;
    for (uint32_t i = 0; i < all; i++)
        r[i] = (struct ranked){need[i], i};
    qsort(r, all, sizeof(*r), compare);
    for (uint32_t i = 0; i < n; i++)
        ret[i] = r[i].i;
    qsort(ret, n, sizeof(*ret), compare_numbers);
    free(r);
    return 0;
}
