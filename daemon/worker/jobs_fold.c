// See jobs_fold.h. The fold is one record of the journal: a worker's death while it is searched
// begins the search anew.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/jobs_calibrate.h"
#include "quant/fold_search.h"
#include "tensor/type.h"

#define SEED 1 // of rotations

int nb_jobs_fold_visit(struct nb_jobs_fold *f, const void *data, uint32_t bytes)
{
    free(f->told);
    f->told = malloc(bytes + 1);
    if (!f->told)
        return -ENOMEM;
    memcpy(f->told, data, bytes);
    f->told_len = bytes;
    return 0;
}

void nb_jobs_fold_finish(struct nb_jobs_fold *f)
{
    nb_fold_source_destroy(f->source);
    nb_fold_destroy(f->fold);
    free(f->told);
}

// The type that a matrix will have; one that the source lacks has none.
static uint32_t type_of(void *user, struct nb_str name)
{
    const struct nb_jobs_calibration *c = user;
    const uint32_t i = nb_source_find(c->source, name);
    return i < c->source->n_tensors ? c->fold.choices[i].type : NB_TYPE_F32;
}

static int on_progress(void *user, uint32_t done, uint32_t total)
{
    const struct nb_jobs_calibration *c = user;
    char what[64];
    snprintf(what, sizeof(what), "folding %u/%u", done, total);
    nb_jobs_tell(c->work, what, c->writing + c->folding * done / total,
                 c->writing + c->folding + c->load + c->bytes);
    return 0;
}

static int append(const struct nb_fold *f, struct nb_journal *journal)
{
    void *data = NULL;
    size_t n = 0;
    int rc = nb_fold_store(f, &data, &n);
    if (rc == 0)
        rc = n > NB_JOURNAL_BLOB
                 ? -EFBIG
                 : nb_journal_append(journal, NB_JOBS_FOLD_RECORD, data, (uint32_t)n);
    free(data);
    return rc == 0 ? nb_journal_sync(journal, NULL, 0) : rc;
}

static int search(struct nb_jobs_calibration *c, struct nb_journal *journal, struct nb_error *e)
{
    const struct nb_windows *w = nb_calibration_windows(c->open);
    const struct nb_fold_search how = {.plan = nb_calibration_plan(c->open),
                                       .grad = nb_calibration_grad(c->open),
                                       .team = c->work->team,
                                       .tokens = w->tokens,
                                       .windows = w->n,
                                       .length = w->length,
                                       .methods = c->fold.methods,
                                       .seed = SEED,
                                       .type_of = type_of,
                                       .progress = on_progress,
                                       .user = c};
    int rc = nb_fold_search(c->fold.fold, &how, e);
    if (rc < 0)
        return rc;
    rc = append(c->fold.fold, journal);
    return rc < 0 ? nb_fail(e, rc, "the job's journal cannot be written: %s", strerror(-rc)) : 0;
}

int nb_jobs_fold_run(struct nb_jobs_calibration *c, const struct nb_choice *choices,
                     struct nb_journal *journal, struct nb_error *e)
{
    struct nb_jobs_fold *f = &c->fold;
    f->choices = choices;
    int rc = nb_jobs_calibrate_open(c, e);
    if (rc == 0)
        rc = nb_fold_create(nb_calibration_plan(c->open), &f->fold, e);
    if (rc == 0 && !f->told)
        rc = search(c, journal, e);
    else if (rc == 0 && nb_fold_restore(f->fold, f->told, f->told_len) < 0)
        rc = nb_fail(e, -EINVAL, "the job's journal has the fold of another model");
    nb_jobs_calibrate_close(c);
    return rc == 0 ? nb_fold_source_create(f->fold, c->source, &f->source, e) : rc;
}
