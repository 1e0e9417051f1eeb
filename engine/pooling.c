// A text's vector: the mean of its rows, or the first or last of them.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"

int nb_pool_begin(struct nb_sequence *s)
{
    struct nb_model *m = s->model;
    const uint32_t n = m->plan->hp.embedding;
    if (!m->vectors)
        m->vectors = malloc((size_t)m->max_rows * n * sizeof(*m->vectors));
    if (!s->vector)
        s->vector = malloc(n * sizeof(*s->vector));
    if (!m->vectors || !s->vector)
        return -ENOMEM;
    memset(s->vector, 0, n * sizeof(*s->vector));
    s->pooled = 0;
    return 0;
}

bool nb_pool_wants(const struct nb_sequence *s, uint32_t position)
{
    if (position < s->pooled)
        return false;
    switch (s->model->plan->hp.pooling) {
    case NB_POOLING_MEAN:
        return true;
    case NB_POOLING_CLS:
        return position == 0;
    default:
        return position + 1 == s->length;
    }
}

void nb_pool_add(struct nb_sequence *s, uint32_t position, const float *row)
{
    s->pooled = position + 1;
    for (uint32_t i = 0; i < s->model->plan->hp.embedding; i++)
        s->vector[i] += (double)row[i];
}

void nb_pool_end(struct nb_sequence *s, float *ret)
{
    const struct nb_hparams *hp = &s->model->plan->hp;
    const double rows = hp->pooling == NB_POOLING_MEAN ? s->length : 1;
    double squares = 0, scale = 1 / rows;
    for (uint32_t i = 0; i < hp->embedding; i++)
        squares += s->vector[i] * s->vector[i];
    if (s->request.normalise && !hp->any_length && squares > 0)
        scale = 1 / sqrt(squares);
    for (uint32_t i = 0; i < hp->embedding; i++)
        ret[i] = (float)(s->vector[i] * scale);
}
