// A training that several processes share: sums over them, and one beginning.
#include <errno.h>

#include "distill/train_room.h"

int nb_train_join(struct nb_train *t, int rc, struct nb_train_loss *loss)
{
    const struct nb_train_share *s = t->options.share;
    double sums[] = {rc < 0,       loss->hard,     loss->soft,     loss->hidden,
                     loss->cosine, loss->relation, loss->attention};
    const int joined = s->sum_doubles(s->user, sums, sizeof(sums) / sizeof(sums[0]));
    if (rc < 0 || joined < 0)
        return rc < 0 ? rc : joined;
    if (sums[0] > 0)
        return -ECANCELED;
    *loss = (struct nb_train_loss){.hard = sums[1],
                                   .soft = sums[2],
                                   .hidden = sums[3],
                                   .cosine = sums[4],
                                   .relation = sums[5],
                                   .attention = sums[6]};
    for (uint32_t i = 0; i < t->n_tensors && rc == 0; i++)
        rc = s->sum_floats(s->user, t->tensors[i].gradient, t->tensors[i].floats);
    return rc;
}

int nb_train_align(struct nb_train *t)
{
    const struct nb_train_share *s = t->options.share;
    int rc = s->copy(s->user, &t->done, sizeof(t->done));
    for (uint32_t i = 0; i < t->n_tensors && rc == 0; i++) {
        size_t floats;
        float *state = nb_trained_state(&t->tensors[i], &floats);
        rc = s->copy(s->user, state, floats * sizeof(*state));
    }
    t->stale = true;
    return rc;
}
