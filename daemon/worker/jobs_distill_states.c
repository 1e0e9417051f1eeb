// The states of a distillation: each is whole, in its scratch file, before the journal tells of it.
#include <errno.h>
#include <string.h>

#include "daemon/worker/jobs_distill.h"
#include "machine/clock.h"
#include "quant/state.h"

#define HEADS 4096 // bytes of both states' heads and hashes, at most

enum { SAVED = NB_COMPRESS_RECORDS }; // a journal's kind: a whole state

struct record {
    uint32_t slot, step;
};

int nb_jobs_distill_visit(void *user, uint32_t kind, const void *data, uint32_t bytes)
{
    struct distilling *k = user;
    struct record r;
    if (kind != SAVED || bytes != sizeof(r))
        return 1;
    memcpy(&r, data, sizeof(r));
    if (r.slot >= k->recipe.states)
        return 1;
    k->slot = r.slot;
    k->saved_step = r.step;
    k->n_saved++;
    return 0;
}

// Of several processes one keeps states and writes the result.
bool nb_jobs_distill_leads(const struct distilling *k)
{
    return !k->work->share || k->work->share->rank == 0;
}

// What is saved beside the trainer's state, under the same steps.
static struct nb_state told_of(struct distilling *k, uint32_t *done, struct nb_state_part *part)
{
    *done = nb_train_done(k->train);
    *part = (struct nb_state_part){&k->told, sizeof(k->told)};
    return (struct nb_state){
        .magic = "nbtold", .done = done, .all = k->options.steps, .parts = part, .n_parts = 1};
}

uint64_t nb_jobs_distill_state_bytes(const struct distilling *k)
{
    return nb_train_state_bytes(k->train) + sizeof(k->told) + HEADS;
}

// States lie in the scratch files in turns, and in each one behind the other.
static int turn(struct distilling *k, uint32_t slot)
{
    return nb_jobs_scratch_turn(&k->scratch, slot % NB_JOB_SCRATCH,
                                slot / NB_JOB_SCRATCH * nb_jobs_distill_state_bytes(k));
}

static int store(struct distilling *k, uint32_t slot)
{
    struct nb_state_part part;
    uint32_t done;
    const struct nb_state told = told_of(k, &done, &part);
    int rc = turn(k, slot);
    if (rc == 0)
        rc = nb_train_store(k->train, nb_jobs_scratch_write, &k->scratch);
    return rc == 0 ? nb_state_write(&told, nb_jobs_scratch_write, &k->scratch) : rc;
}

static int load(struct distilling *k, uint32_t slot)
{
    struct nb_state_part part;
    uint32_t done;
    const struct nb_state told = told_of(k, &done, &part);
    int rc = turn(k, slot);
    if (rc == 0)
        rc = nb_train_restore(k->train, nb_jobs_scratch_read, &k->scratch);
    if (rc == 0)
        rc = nb_state_read(&told, nb_jobs_scratch_read, &k->scratch);
    return rc == 0 && done != nb_train_done(k->train) ? -EBADMSG : rc;
}

int nb_jobs_distill_save(struct distilling *k)
{
    if (!nb_jobs_distill_leads(k))
        return 0;
    const struct record r = {.slot = (k->slot + 1) % k->recipe.states,
                             .step = nb_train_done(k->train)};
    const uint64_t began = nb_now_ns();
    int rc = store(k, r.slot);
    if (rc < 0)
        return nb_fail(k->error, rc, "the training's state cannot be written: %s", strerror(-rc));
    k->slot = r.slot;
    k->saved_step = r.step;
    k->n_saved++;
    rc = nb_journal_keep(nb_compress_journal(k->compress), SAVED, &r, sizeof(r),
                         &k->work->scratch[r.slot % NB_JOB_SCRATCH], 1, k->error);
    k->saved_ns = nb_now_ns();
    k->saving_ns = k->saved_ns - began;
    return rc;
}

// States that cannot be read any more cost the steps since the one before, nothing else.
int nb_jobs_distill_restore(struct distilling *k)
{
    const uint32_t all = k->recipe.states, n = k->n_saved < all ? k->n_saved : all;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t slot = (k->slot + all - i) % all;
        if (load(k, slot) < 0)
            continue;
        k->slot = slot;
        k->saved_step = nb_train_done(k->train);
        return 0;
    }
    nb_train_destroy(k->train);
    k->train = NULL;
    k->n_saved = k->saved_step = 0;
    memset(&k->told, 0, sizeof(k->told));
    int rc = nb_train_create(k->student.plan, k->teacher->plan, k->work->team, &k->learnt,
                             &k->options, &k->train, k->error);
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
