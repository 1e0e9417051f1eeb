// What tuning's steps need: tensors, their memory, tapes. No step is run here.
#include "quant/tune_room.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

// --- What is refused

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
    return nb_windows_check(t->windows, t->plan->hp.context, t->plan->hp.vocab, "model", e);
}

// --- Memory

static int make_rows(struct nb_tune *t)
{
    const struct nb_hparams *hp = &t->plan->hp;
    const size_t rows = t->rows, row = hp->embedding;
    t->slice = t->rows < NB_TUNE_SLICE ? t->rows : NB_TUNE_SLICE;
    t->x = nb_grad_floats((hp->n_layers + 1) * rows * row);
    t->reference = nb_grad_floats(2 * rows * row);
    t->d = nb_grad_floats(rows * row);
    t->logits = nb_grad_floats((size_t)t->slice * hp->vocab);
    t->reference_logits = nb_grad_floats((size_t)t->slice * hp->vocab);
    t->row_loss = calloc(rows + 1, sizeof(*t->row_loss));
    t->order = calloc(t->windows->n + 1, sizeof(*t->order));
    t->sequence = calloc(rows + 1, sizeof(*t->sequence));
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
    t->kept = nb_grad_floats(floats_kept);
    t->is_kept = calloc(w->n, sizeof(*t->is_kept));
    return t->kept && t->is_kept ? 0 : -ENOMEM;
}

// With what the float model's results leave of the memory.
static int make_tapes(struct nb_tune *t, struct nb_error *e)
{
    uint64_t left = t->options.memory;
    for (uint32_t i = 0; i < t->options.batch; i++)
        t->sequence[i] = (struct nb_grad_sequence){t->windows->tokens, t->windows->length, 0};
    int rc = nb_grad_batch(t->grad, t->sequence, t->options.batch, e);
    if (rc == 0)
        rc = make_kept(t, &left);
    return rc == 0 ? nb_tapes_create(t->grad, left, t->tapes) : rc;
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

static int create(struct nb_tune *t, const struct nb_tune_matrix *matrices, uint32_t n,
                  struct nb_error *e)
{
    int rc = check_options(t, e);
    if (rc == 0)
        rc = nb_grad_open(t->plan, t->team, &t->grad, e);
    if (rc == 0)
        rc = nb_tune_tensors_create(t, matrices, n, e);
    if (rc < 0)
        return rc;
    t->rows = t->options.batch * t->windows->length;
    t->key = key_of(t, matrices);
    if (make_rows(t) < 0)
        return nb_fail(e, -ENOMEM, "no memory to tune with batches of %u tokens", t->rows);
    rc = make_tapes(t, e);
    return rc == -ENOMEM ? nb_fail(e, rc, "no memory for the tapes of %u tokens", t->rows) : rc;
}

int nb_tune_create(const struct nb_plan *plan, struct nb_team *team,
                   const struct nb_windows *windows, const struct nb_tune_matrix *matrices,
                   uint32_t n, const struct nb_tune_options *options, struct nb_tune **ret,
                   struct nb_error *ret_error)
{
    struct nb_tune *t = calloc(1, sizeof(*t));
    if (!t)
        return nb_fail(ret_error, -ENOMEM, "no memory to tune");
    *t = (struct nb_tune){.plan = plan,
                          .team = team,
                          .windows = windows,
                          .options = *options,
                          .entered = NB_TUNE_OUTSIDE};
    int rc = create(t, matrices, n, ret_error);
    if (rc < 0)
        nb_tune_destroy(t);
    else
        *ret = t;
    return rc;
}

void nb_tune_destroy(struct nb_tune *t)
{
    if (!t)
        return;
    for (uint32_t i = 0; t->tapes && i < t->plan->n_layers; i++)
        nb_tape_destroy(t->tapes[i]);
    nb_tune_tensors_destroy(t);
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
