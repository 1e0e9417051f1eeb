// The tensors that tuning has: what of them is continuous, where they and their gradients lie.
#include "quant/tune_room.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/encode.h"

static size_t floats_of(const struct nb_grad_tensor *t)
{
    return (size_t)t->experts * t->rows * t->cols;
}

// --- Matrices

static bool has(const struct nb_op *op, const struct nb_grad_tensor *t)
{
    return t->matrix ? op->w == t->matrix : op->weight == t->vector || op->bias == t->vector;
}

// The layer of all ops that have the tensor.
static uint32_t layer_of(const struct nb_plan *plan, const struct nb_grad_tensor *t)
{
    uint32_t layer = 0, found = NB_TUNE_OUTSIDE;
    bool several = false;
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        while (layer < plan->n_layers && i >= plan->layer_ops[layer + 1])
            layer++;
        if (!has(&plan->ops[i], t))
            continue;
        const bool outside = i < plan->layer_ops[0] || layer == plan->n_layers;
        several = several || outside || (found != NB_TUNE_OUTSIDE && found != layer);
        found = layer;
    }
    return several ? NB_TUNE_OUTSIDE : found;
}

static bool is_named_before(const struct nb_tune *t, const struct nb_grad_tensor *tensor)
{
    for (uint32_t i = 0; i < t->n_matrices; i++)
        if (t->matrices[i].tensor == tensor)
            return true;
    return false;
}

static int keep_bytes(struct nb_tuned_matrix *m, const struct nb_tune_matrix *from)
{
    m->encoded = malloc(m->bytes);
    if (!m->encoded)
        return -ENOMEM;
    memcpy(m->encoded, from->encoded, m->bytes);
    return 0;
}

static int make_latent(struct nb_tune *t, struct nb_tuned_matrix *m,
                       const struct nb_tune_matrix *from)
{
    const struct nb_grad_tensor *g = m->tensor;
    float *own = from->weights ? NULL : nb_grad_floats(m->floats);
    if (!from->weights && !own)
        return -ENOMEM;
    if (own)
        nb_grad_dequantize(t->grad, g, own);
    int rc = nb_latent_create(t->team, m->type, (uint64_t)g->experts * g->rows, g->cols,
                              from->encoded, own ? own : from->weights, &m->latent);
    free(own);
    return rc;
}

static int fail_matrix(const struct nb_tune_matrix *from, int rc, struct nb_error *e)
{
    return nb_fail(e, rc, "tensor %s cannot be tuned as %s: %s", from->name,
                   nb_type_name(from->type),
                   rc == -EDOM ? "a scale or weight is not finite" : strerror(-rc));
}

static int add_matrix(struct nb_tune *t, const struct nb_tune_matrix *from, struct nb_error *e)
{
    struct nb_tuned_matrix *m = &t->matrices[t->n_matrices];
    struct nb_grad_tensor *g = nb_grad_find(t->grad, from->name);
    if (!g || !g->matrix || is_named_before(t, g))
        return nb_fail(e, -EINVAL, "tensor %s is no matrix of the model, or is named twice",
                       from->name);
    m->bytes = nb_encoded_bytes(from->type, (uint64_t)g->experts * g->rows, g->cols);
    if (m->bytes == 0)
        return nb_fail(e, -EINVAL, "tensor %s has %u columns, which are no whole blocks of %s",
                       from->name, g->cols, nb_type_name(from->type));
    t->n_matrices++;
    m->tensor = g;
    m->type = from->type;
    m->floats = floats_of(g);
    m->layer = layer_of(t->plan, g);
    const bool fixed =
        from->fixed || !nb_latent_bytes(from->type, (uint64_t)g->experts * g->rows, g->cols);
    int rc = fixed ? keep_bytes(m, from) : make_latent(t, m, from);
    return rc < 0 ? fail_matrix(from, rc, e) : 0;
}

// --- Vectors

static float root_mean_square(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return (float)sqrt(sum / (double)n);
}

static int add_vector(struct nb_tune *t, struct nb_grad_tensor *g)
{
    struct nb_tuned_vector *v = &t->vectors[t->n_vectors++];
    v->tensor = g;
    v->layer = layer_of(t->plan, g);
    v->floats = floats_of(g);
    v->x = calloc(4 * v->floats, sizeof(*v->x));
    if (!v->x)
        return -ENOMEM;
    v->first = v->x + v->floats;
    v->second = v->first + v->floats;
    v->gradient = v->second + v->floats;
    memcpy(v->x, g->vector, v->floats * sizeof(*v->x));
    v->unit = root_mean_square(v->x, v->floats);
    return 0;
}

static int add_vectors(struct nb_tune *t)
{
    uint32_t n;
    struct nb_grad_tensor *tensors = nb_grad_tensors(t->grad, &n);
    t->vectors = calloc(n + 1, sizeof(*t->vectors));
    if (!t->vectors)
        return -ENOMEM;
    const bool wanted = t->options.vector_rate > 0 || t->options.layer_vector_rate > 0;
    int rc = 0;
    for (uint32_t i = 0; i < n && rc == 0 && wanted; i++)
        if (tensors[i].vector)
            rc = add_vector(t, &tensors[i]);
    return rc;
}

// --- Memory

// Where each matrix lies while it is used: of a layer in the memory that all layers share.
static int place_matrices(struct nb_tune *t)
{
    size_t *used = calloc(t->plan->n_layers + 1, sizeof(*used));
    if (!used)
        return -ENOMEM;
    for (uint32_t i = 0; i < t->n_matrices; i++) {
        const struct nb_tuned_matrix *m = &t->matrices[i];
        if (m->layer == NB_TUNE_OUTSIDE)
            continue;
        used[m->layer] += (m->floats + 15) / 16 * 16;
        if (used[m->layer] > t->layer_floats)
            t->layer_floats = used[m->layer];
    }
    memset(used, 0, t->plan->n_layers * sizeof(*used));
    t->layer_values = nb_grad_floats(t->layer_floats);
    t->layer_gradient = nb_grad_floats(t->layer_floats);
    bool failed = !t->layer_values || !t->layer_gradient;
    for (uint32_t i = 0; i < t->n_matrices && !failed; i++) {
        struct nb_tuned_matrix *m = &t->matrices[i];
        const bool outside = m->layer == NB_TUNE_OUTSIDE;
        const size_t at = outside ? 0 : used[m->layer];
        m->values = outside ? nb_grad_floats(m->floats) : t->layer_values + at;
        if (m->latent)
            m->gradient = outside ? nb_grad_floats(m->floats) : t->layer_gradient + at;
        if (!outside)
            used[m->layer] += (m->floats + 15) / 16 * 16;
        failed = !m->values || (m->latent && !m->gradient);
    }
    free(used);
    return failed ? -ENOMEM : 0;
}

static bool is_before_layers(const struct nb_plan *plan, const struct nb_grad_tensor *g)
{
    for (uint32_t i = 0; i < plan->layer_ops[0]; i++)
        if (has(&plan->ops[i], g))
            return true;
    return false;
}

// Gradients stay where they are from now on.
static void set_gradients(struct nb_tune *t)
{
    for (uint32_t i = 0; i < t->n_matrices; i++) {
        const struct nb_tuned_matrix *m = &t->matrices[i];
        if (!m->latent)
            continue;
        m->tensor->gradient = m->gradient;
        t->to_begin = t->to_begin || is_before_layers(t->plan, m->tensor);
    }
    for (uint32_t i = 0; i < t->n_vectors; i++) {
        const struct nb_tuned_vector *v = &t->vectors[i];
        if (!v->x)
            continue;
        v->tensor->gradient = v->gradient;
        t->to_begin = t->to_begin || is_before_layers(t->plan, v->tensor);
    }
}

// --- All of them

int nb_tune_tensors_create(struct nb_tune *t, const struct nb_tune_matrix *matrices, uint32_t n,
                           struct nb_error *e)
{
    int rc = 0;
    t->matrices = calloc(n + 1, sizeof(*t->matrices));
    if (!t->matrices)
        return nb_fail(e, -ENOMEM, "no memory to tune");
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = add_matrix(t, &matrices[i], e);
    if (rc < 0)
        return rc;
    if (add_vectors(t) < 0 || place_matrices(t) < 0)
        return nb_fail(e, -ENOMEM, "no memory for what is tuned");
    set_gradients(t);
    return 0;
}

void nb_tune_tensors_destroy(struct nb_tune *t)
{
    for (uint32_t i = 0; t->matrices && i < t->n_matrices; i++) {
        struct nb_tuned_matrix *m = &t->matrices[i];
        if (m->layer == NB_TUNE_OUTSIDE) {
            free(m->values);
            free(m->gradient);
        }
        nb_latent_destroy(m->latent);
        free(m->encoded);
    }
    for (uint32_t i = 0; t->vectors && i < t->n_vectors; i++)
        free(t->vectors[i].x);
    free(t->matrices);
    free(t->vectors);
}
