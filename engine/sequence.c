// Sequences: a token log each, and the request that is being worked on. No computing here: that is
// the scheduler's.
#include "engine/model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void link_last(struct nb_sequence *s)
{
    struct nb_model *m = s->model;
    s->prev = m->last;
    s->next = NULL;
    *(m->last ? &m->last->next : &m->first) = s;
    m->last = s;
}

static void unlink_sequence(struct nb_sequence *s)
{
    struct nb_model *m = s->model;
    *(s->prev ? &s->prev->next : &m->first) = s->next;
    *(s->next ? &s->next->prev : &m->last) = s->prev;
}

// A step's batch has room for every sequence.
static int grow_batch(struct nb_model *m)
{
    size_t n = m->n_sequences + 1;
    const uint32_t **blocks = reallocarray(m->blocks, n, sizeof(*blocks));
    if (!blocks)
        return -ENOMEM;
    m->blocks = blocks;
    const struct nb_adapter **adapters = reallocarray(m->adapters, n, sizeof(*adapters));
    if (!adapters)
        return -ENOMEM;
    m->adapters = adapters;
    struct nb_sequence **batch = reallocarray(m->batch, n, sizeof(struct nb_sequence *));
    if (!batch)
        return -ENOMEM;
    m->batch = batch;
    return 0;
}

int nb_sequence_create(struct nb_model *m, void *user, struct nb_sequence **ret)
{
    struct nb_sequence *s = calloc(1, sizeof(*s));
    uint32_t blocks = (m->plan->hp.context + NB_KV_POSITIONS - 1) / NB_KV_POSITIONS;
    if (!s || !(s->block = calloc(blocks, sizeof(*s->block))) || grow_batch(m) < 0) {
        if (s)
            free(s->block);
        free(s);
        return -ENOMEM;
    }
    s->model = m;
    s->user = user;
    memcpy(s->share, m->drafting.share, sizeof(s->share));
    link_last(s);
    m->n_sequences++;
    *ret = s;
    return 0;
}

void nb_sequence_destroy(struct nb_sequence *s)
{
    if (!s)
        return;
    nb_diagnosis_drop(s->model, s);
    nb_kv_trim(s, 0);
    unlink_sequence(s);
    s->model->n_sequences--;
    nb_ngrams_finish(&s->ngrams);
    nb_sequence_destroy(s->shadow);
    free(s->block);
    free(s->vector);
    free(s->log);
    free(s);
}

void nb_sequence_adapt(struct nb_sequence *s, const struct nb_adapter *adapter)
{
    s->adapter = adapter;
}

uint32_t nb_sequence_length(const struct nb_sequence *s)
{
    return s->length;
}

uint32_t nb_sequence_computed(const struct nb_sequence *s)
{
    return s->computed;
}

const int32_t *nb_sequence_tokens(const struct nb_sequence *s)
{
    return s->log;
}

int nb_sequence_append(struct nb_sequence *s, const int32_t *tokens, uint32_t n)
{
    if (s->length + n > s->capacity) {
        uint32_t capacity = s->length + n + s->capacity / 2 + 64;
        int32_t *log = reallocarray(s->log, capacity, sizeof(*log));
        if (!log)
            return -ENOMEM;
        s->log = log;
        s->capacity = capacity;
    }
    if (n)
        memcpy(s->log + s->length, tokens, n * sizeof(*tokens));
    s->length += n;
    return 0;
}

int nb_sequence_set(struct nb_sequence *s, uint32_t base, const int32_t *tokens, uint32_t n)
{
    const struct nb_hparams *hp = &s->model->plan->hp;
    if (s->active)
        return -EBUSY;
    if (base > s->length)
        return -EINVAL;
    if (n > hp->context - base)
        return -E2BIG;
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= hp->vocab)
            return -EINVAL;
    uint32_t before = s->length;
    nb_ngrams_cut(&s->ngrams, s->log, base);
    s->length = base;
    s->proposed = s->accepted = 0;
    int rc = nb_sequence_append(s, tokens, n);
    if (rc < 0) {
        s->length = before;
        return rc;
    }
    nb_kv_trim(s, s->computed < base ? s->computed : base);
    return 0;
}

static int check_embedding(struct nb_sequence *s, const struct nb_request *r)
{
    const struct nb_model *m = s->model;
    if (!r->embed)
        return -EOPNOTSUPP;
    if (r->max_tokens || r->score)
        return -EINVAL;
    // Where a token sees those after it, all of them must be in one step.
    if (!m->plan->hp.causal && s->length > m->max_rows)
        return -E2BIG;
    return nb_pool_begin(s);
}

int nb_sequence_start(struct nb_sequence *s, const struct nb_request *r)
{
    if (s->active)
        return -EBUSY;
    if (!s->length || (r->score && r->score_from >= s->length) ||
        nb_sampling_check(&r->sampling) < 0)
        return -EINVAL;
    if (r->max_tokens && s->length >= s->model->plan->hp.context)
        return -E2BIG;
    if (r->embed || !nb_model_generates(s->model)) {
        int rc = check_embedding(s, r);
        if (rc < 0)
            return rc;
    }
    // The first row whose logits are wanted must be computed again if it was.
    uint32_t wanted = r->score ? r->score_from : s->length - (r->max_tokens > 0);
    wanted = r->embed ? 0 : wanted;
    nb_kv_trim(s, s->computed < wanted ? s->computed : wanted);
    s->request = *r;
    s->generated = s->proposed = s->accepted = 0;
    s->failed = false;
    s->error[0] = '\0';
    s->active = true;
    unlink_sequence(s);
    link_last(s);
    return 0;
}

void nb_sequence_stop(struct nb_sequence *s)
{
    nb_diagnosis_drop(s->model, s);
    s->active = false;
}

const char *nb_sequence_error(const struct nb_sequence *s)
{
    return s->error;
}

void nb_sequence_drafts(const struct nb_sequence *s, uint32_t *ret_proposed, uint32_t *ret_accepted)
{
    *ret_proposed = s->proposed;
    *ret_accepted = s->accepted;
}

void nb_sequence_park(struct nb_sequence *s, bool parked)
{
    s->parked = parked;
}
