// The states of a distillation: each is whole, in its scratch file, before the journal tells of it.
#include <errno.h>
#include <string.h>

#include "daemon/worker/jobs_distill.h"
#include "machine/clock.h"

enum { SAVED = NB_COMPRESS_RECORDS }; // a journal's kind: the slot of a whole state

int nb_jobs_distill_visit(void *user, uint32_t kind, const void *data, uint32_t bytes)
{
    struct distilling *k = user;
    if (kind != SAVED || bytes != sizeof(k->slot))
        return 1;
    memcpy(&k->slot, data, sizeof(k->slot));
    k->saved = k->slot < NB_JOB_SCRATCH;
    return k->saved ? 0 : 1;
}

// Of several processes one keeps states and writes the result.
bool nb_jobs_distill_leads(const struct distilling *k)
{
    return !k->work->share || k->work->share->rank == 0;
}

int nb_jobs_distill_save(struct distilling *k)
{
    if (!nb_jobs_distill_leads(k))
        return 0;
    const uint32_t slot = (k->slot + 1) % NB_JOB_SCRATCH;
    const uint64_t began = nb_now_ns();
    int rc = nb_jobs_scratch_turn(&k->scratch, slot);
    if (rc == 0)
        rc = nb_train_store(k->train, nb_jobs_scratch_write, &k->scratch);
    if (rc == 0)
        rc = nb_jobs_scratch_write(&k->scratch, &k->told, sizeof(k->told));
    if (rc < 0)
        return nb_fail(k->error, rc, "the training's state cannot be written: %s", strerror(-rc));
    k->slot = slot;
    rc = nb_journal_keep(nb_compress_journal(k->compress), SAVED, &slot, sizeof(slot),
                         &k->work->scratch[slot], 1, k->error);
    k->saved_ns = nb_now_ns();
    k->saving_ns = k->saved_ns - began;
    return rc;
}

// One that cannot be read any more costs the steps before it, nothing else.
int nb_jobs_distill_restore(struct distilling *k)
{
    int rc = nb_jobs_scratch_turn(&k->scratch, k->slot);
    if (rc == 0)
        rc = nb_train_restore(k->train, nb_jobs_scratch_read, &k->scratch);
    if (rc == 0)
        rc = nb_jobs_scratch_read(&k->scratch, &k->told, sizeof(k->told));
    if (rc == 0)
        return 0;
    nb_train_destroy(k->train);
    k->train = NULL;
    k->saved = false;
    memset(&k->told, 0, sizeof(k->told));
    rc = nb_train_create(k->student.plan, k->teacher->plan, k->work->team, &k->learnt, &k->options,
                         &k->train, k->error);
    return rc == 0 ? nb_jobs_distill_round(k) : rc;
}

// Others go on from what the one that leads has.
int nb_jobs_distill_align(struct distilling *k)
{
    const struct nb_train_share *share = k->work->share;
    int rc = nb_train_align(k->train);
    if (rc == 0)
        rc = share->copy(share->user, &k->told, sizeof(k->told));
    return rc == 0 ? 0 : nb_fail(k->error, rc, "the other processes cannot be reached");
}
