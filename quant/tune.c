// What tuning's steps need: tensors, their memory, tapes. No step is run here.
#include "quant/tune_room.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "quant/encode.h"

static size_t floats_of(const struct nb_grad_tensor *t)
{
    return (size_t)t->experts * t->rows * t->cols;
}

static float *floats(size_t n)
{
    return aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64 + 64);
}

static float *zeros(size_t n)
{
    float *x = floats(n);
    if (x)
        memset(x, 0, n * sizeof(*x));
    return x;
}

// --- What is refused

static int check_windows(const struct nb_tune *t, const struct nb_windows *w, struct nb_error *e)
{
    const struct nb_hparams *hp = &t->plan->hp;
    if (w->length > hp->context)
        return nb_fail(e, -EINVAL, "windows of %u tokens are longer than the model's context of %u",
                       w->length, hp->context);
    for (size_t i = 0; i < (size_t)w->n * w->length; i++)
        if (w->tokens[i] < 0 || (uint32_t)w->tokens[i] >= hp->vocab)
            return nb_fail(e, -EINVAL, "token %d of the text is outside the model's vocabulary",
                           w->tokens[i]);
    return 0;
}

static bool is_rate(float x)
{
    return isfinite(x) && x >= 0;
}

static int check_options(const struct nb_tune *t, struct nb_error *e)
{
    const struct nb_tune_options *o = &t->options;
    const uint64_t rows = (uint64_t)o->batch * t->windows->length;
    if (t->plan->hp.arch->encoder)
        return nb_fail(e, -ENOTSUP,
                       "a %s model has no logits: it cannot be tuned against another's",
                       t->plan->hp.arch->name);
    if (!is_rate(o->code_rate) || !is_rate(o->scale_rate) || !is_rate(o->vector_rate) ||
        !is_rate(o->layer_code_rate) || !is_rate(o->layer_scale_rate) ||
        !is_rate(o->layer_vector_rate))
        return nb_fail(e, -EINVAL, "a rate of tuning is negative or no number");
    if (o->batch == 0 || rows == 0 || rows > NB_GRAD_ROWS || o->batch > t->windows->n)
        return nb_fail(e, -EINVAL, "a batch of %u windows of %u tokens; there are %u windows",
                       o->batch, t->windows->length, t->windows->n);
    if (o->layer_steps > NB_TUNE_STEPS || o->steps > NB_TUNE_STEPS)
        return nb_fail(e, -EINVAL, "more than %u steps of tuning", NB_TUNE_STEPS);
    return check_windows(t, t->windows, e);
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
    float *own = from->weights ? NULL : floats(m->floats);
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
    const bool fixed = from->fixed || nb_type_info(from->type)->block == 1;
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
    v->x = zeros(4 * v->floats);
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
    t->layer_values = floats(t->layer_floats);
    t->layer_gradient = floats(t->layer_floats);
    bool failed = !t->layer_values || !t->layer_gradient;
    for (uint32_t i = 0; i < t->n_matrices && !failed; i++) {
        struct nb_tuned_matrix *m = &t->matrices[i];
        const bool outside = m->layer == NB_TUNE_OUTSIDE;
        const size_t at = outside ? 0 : used[m->layer];
        m->values = outside ? floats(m->floats) : t->layer_values + at;
        if (m->latent)
            m->gradient = outside ? floats(m->floats) : t->layer_gradient + at;
        if (!outside)
            used[m->layer] += (m->floats + 15) / 16 * 16;
        failed = !m->values || (m->latent && !m->gradient);
    }
    free(used);
    return failed ? -ENOMEM : 0;
}

static int make_rows(struct nb_tune *t)
{
    const struct nb_hparams *hp = &t->plan->hp;
    const size_t rows = t->rows, row = hp->embedding;
    t->slice = t->rows < NB_TUNE_SLICE ? t->rows : NB_TUNE_SLICE;
    t->x = floats((hp->n_layers + 1) * rows * row);
    t->reference = floats(2 * rows * row);
    t->d = floats(rows * row);
    t->logits = floats((size_t)t->slice * hp->vocab);
    t->reference_logits = floats((size_t)t->slice * hp->vocab);
    t->row_loss = calloc(rows, sizeof(*t->row_loss));
    t->order = calloc(t->windows->n, sizeof(*t->order));
    t->sequence = calloc(rows, sizeof(*t->sequence));
    t->tapes = calloc(hp->n_layers + 1, sizeof(*t->tapes)); // NOLINT(bugprone-sizeof-expression)
    return t->x && t->reference && t->d && t->logits && t->reference_logits && t->row_loss &&
                   t->order && t->sequence && t->tapes
               ? 0
               : -ENOMEM;
}

// The float model's results, where windows come more than once.
static int make_kept(struct nb_tune *t, uint64_t *left)
{
    const struct nb_windows *w = t->windows;
    const uint64_t floats_kept = (uint64_t)w->n * w->length * t->plan->hp.embedding;
    if ((uint64_t)t->options.steps * t->options.batch <= w->n ||
        floats_kept * sizeof(float) > *left)
        return 0;
    *left -= floats_kept * sizeof(float);
    t->kept = floats(floats_kept);
    t->is_kept = calloc(w->n, sizeof(*t->is_kept));
    return t->kept && t->is_kept ? 0 : -ENOMEM;
}

// A tape for each layer until their memory is used up; whoever has none computes again.
static int make_tapes(struct nb_tune *t, struct nb_error *e)
{
    uint64_t left = t->options.memory;
    for (uint32_t i = 0; i < t->options.batch; i++)
        t->sequence[i] = (struct nb_grad_sequence){t->windows->tokens, t->windows->length, 0};
    int rc = nb_grad_batch(t->grad, t->sequence, t->options.batch, e);
    if (rc == 0)
        rc = make_kept(t, &left);
    for (uint32_t i = 0; i < t->plan->n_layers && rc == 0; i++) {
        const uint64_t bytes = nb_tape_bytes(t->grad, i);
        if (bytes > left)
            continue;
        left -= bytes;
        rc = nb_tape_create(t->grad, i, &t->tapes[i]);
    }
    return rc;
}

// --- Creation

static uint64_t key_of(const struct nb_tune *t, const struct nb_tune_matrix *matrices)
{
    const struct nb_windows *w = t->windows;
    XXH64_hash_t key = XXH3_64bits(w->tokens, (size_t)w->n * w->length * sizeof(*w->tokens));
    const struct nb_tune_options *o = &t->options;
    const float rates[] = {o->code_rate,       o->scale_rate,       o->vector_rate,
                           o->layer_code_rate, o->layer_scale_rate, o->layer_vector_rate};
    const uint64_t numbers[] = {w->n, w->length, o->batch, o->steps, o->layer_steps, o->seed};
    key = XXH3_64bits_withSeed(rates, sizeof(rates), key);
    key = XXH3_64bits_withSeed(numbers, sizeof(numbers), key);
    for (uint32_t i = 0; i < t->n_matrices; i++) {
        const uint32_t what[] = {matrices[i].type, matrices[i].fixed};
        key = XXH3_64bits_withSeed(matrices[i].name, strlen(matrices[i].name), key);
        key = XXH3_64bits_withSeed(what, sizeof(what), key);
        key = XXH3_64bits_withSeed(matrices[i].encoded, t->matrices[i].bytes, key);
    }
    return key;
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
        struct nb_tuned_matrix *m = &t->matrices[i];
        m->tensor->gradient = m->gradient;
        t->to_begin = t->to_begin || (m->latent && is_before_layers(t->plan, m->tensor));
    }
    for (uint32_t i = 0; i < t->n_vectors; i++) {
        t->vectors[i].tensor->gradient = t->vectors[i].gradient;
        t->to_begin = t->to_begin || is_before_layers(t->plan, t->vectors[i].tensor);
    }
}

static int create(struct nb_tune *t, const struct nb_tune_matrix *matrices, uint32_t n,
                  struct nb_error *e)
{
    int rc = check_options(t, e);
    if (rc == 0)
        rc = nb_grad_open(t->plan, t->team, &t->grad, e);
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = add_matrix(t, &matrices[i], e);
    if (rc < 0)
        return rc;
    t->rows = t->options.batch * t->windows->length;
    t->key = key_of(t, matrices);
    if (add_vectors(t) < 0 || place_matrices(t) < 0 || make_rows(t) < 0)
        return nb_fail(e, -ENOMEM, "no memory to tune with batches of %u tokens", t->rows);
    set_gradients(t);
    rc = make_tapes(t, e);
    return rc == -ENOMEM ? nb_fail(e, rc, "no memory for the tapes of %u tokens", t->rows) : rc;
}

int nb_tune_create(const struct nb_plan *plan, struct nb_team *team,
                   const struct nb_windows *windows, const struct nb_tune_matrix *matrices,
                   uint32_t n, const struct nb_tune_options *options, struct nb_tune **ret,
                   struct nb_error *ret_error)
{
    struct nb_tune *t = calloc(1, sizeof(*t));
    int rc = -ENOMEM;
    if (t) {
        *t = (struct nb_tune){.plan = plan,
                              .team = team,
                              .windows = windows,
                              .options = *options,
                              .entered = NB_TUNE_OUTSIDE};
        t->matrices = calloc(n + 1, sizeof(*t->matrices));
    }
    if (!t || !t->matrices)
        nb_fail(ret_error, rc, "no memory to tune");
    else
        rc = create(t, matrices, n, ret_error);
    if (rc < 0)
        nb_tune_destroy(t);
    else
        *ret = t;
    return rc;
}

static void destroy_matrices(struct nb_tune *t)
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

void nb_tune_destroy(struct nb_tune *t)
{
    if (!t)
        return;
    for (uint32_t i = 0; t->tapes && i < t->plan->n_layers; i++)
        nb_tape_destroy(t->tapes[i]);
    destroy_matrices(t);
    nb_grad_close(t->grad);
    free(t->layer_values);
    free(t->layer_gradient);
    free(t->tapes);
    free(t->x);
    free(t->reference);
    free(t->d);
    free(t->logits);
    free(t->reference_logits);
    free(t->row_loss);
    free(t->order);
    free(t->sequence);
    free(t->kept);
    free(t->is_kept);
    free(t->inputs);
    free(t->targets);
    free(t);
}

// --- What it has

void nb_tune_report(const struct nb_tune *t, struct nb_tune_report *ret)
{
    *ret = (struct nb_tune_report){.vectors = t->n_vectors};
    for (uint32_t i = 0; i < t->n_matrices; i++) {
        ret->tuned += t->matrices[i].latent != NULL;
        ret->fixed += t->matrices[i].latent == NULL;
        ret->weights += t->matrices[i].latent ? t->matrices[i].floats : 0;
    }
    for (uint32_t i = 0; i < t->plan->n_layers; i++)
        ret->taped += t->tapes[i] != NULL;
}

uint32_t nb_tune_done(const struct nb_tune *t)
{
    return t->done;
}

void nb_tune_encode(const struct nb_tune *t, uint32_t i, void *ret)
{
    const struct nb_tuned_matrix *m = &t->matrices[i];
    if (m->latent)
        nb_latent_encode(m->latent, t->team, ret);
    else
        memcpy(ret, m->encoded, m->bytes);
}

const float *nb_tune_vector(const struct nb_tune *t, uint32_t i, struct nb_str *ret_name,
                            uint32_t *ret_n)
{
    if (i >= t->n_vectors)
        return NULL;
    *ret_name = t->vectors[i].tensor->name;
    *ret_n = (uint32_t)t->vectors[i].floats;
    return t->vectors[i].x;
}
