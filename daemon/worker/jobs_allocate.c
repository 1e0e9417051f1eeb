// What comes between the calibration and the tensors where a recipe has a target: which type each
// tensor gets. Whatever takes time is told in the journal, so that a worker's death loses one
// measurement and no more.
#include "daemon/worker/jobs_allocate.h"

#include <errno.h>
#include <string.h>

#define RECORDS (NB_COMPRESS_RECORDS + 16) // kinds, from this one on

int nb_jobs_allocate_init(struct nb_jobs_allocation *a, struct nb_error *ret_error)
{
    if (a->calibration->imatrix >= 0)
        return nb_fail(ret_error, -EINVAL,
                       "a target needs text, on part of which the result is judged: give "
                       "--calibration FILE in the place of --imatrix, or neither and the model "
                       "writes it");
    int rc = nb_allocation_create(a->calibration->source, a->recipe, &a->allocation);
    return rc < 0 ? nb_fail(ret_error, rc, "no memory for the allocation") : 0;
}

uint64_t nb_jobs_allocate_load(struct nb_jobs_allocation *a, uint64_t bytes)
{
    const struct nb_sampling_plan *plan = &a->calibration->sampling;
    const double runs = (double)nb_allocation_tokens(a->recipe) / plan->samples / plan->length;
    a->load = (uint64_t)(runs * (double)nb_jobs_calibrate_load(a->calibration, bytes));
    return a->load;
}

void nb_jobs_allocate_finish(struct nb_jobs_allocation *a)
{
    nb_allocation_destroy(a->allocation);
}

int nb_jobs_allocate_visit(void *user, uint32_t kind, const void *data, uint32_t bytes)
{
    struct nb_jobs_allocation *a = user;
    if (kind < RECORDS)
        return nb_jobs_calibrate_visit(a->calibration, kind, data, bytes);
    return nb_allocation_restore(a->allocation, (enum nb_allocation_record)(kind - RECORDS), data,
                                 bytes);
}

static int on_record(void *user, enum nb_allocation_record kind, const void *data, uint32_t bytes)
{
    struct nb_jobs_allocation *a = user;
    return nb_journal_keep(a->journal, RECORDS + (uint32_t)kind, data, bytes, NULL, 0, a->error);
}

static int on_progress(void *user, const char *what, uint64_t done)
{
    struct nb_jobs_allocation *a = user;
    const struct nb_jobs_calibration *c = a->calibration;
    const uint64_t all = nb_allocation_tokens(a->recipe),
                   before = c->writing + c->folding + c->load;
    const double part = (double)(done < all ? done : all) / (double)all;
    nb_jobs_tell(c->work, what, before + (uint64_t)((double)a->load * part), before + c->bytes);
    return 0;
}

// Bytes of the file that are no tensors'.
static uint64_t other_bytes(struct nb_compress *c, uint32_t n_tensors)
{
    uint64_t bytes = nb_compress_size(c);
    for (uint32_t i = 0; i < n_tensors; i++)
        bytes -= (nb_compress_bytes(c, i) + NB_ALLOCATION_ALIGN - 1) / NB_ALLOCATION_ALIGN *
                 NB_ALLOCATION_ALIGN;
    return bytes;
}

static int allocate(struct nb_jobs_allocation *a, struct nb_compress *c, struct nb_error *e)
{
    struct nb_judging judging;
    int rc = nb_jobs_calibrate_judging(a->calibration, &judging, e);
    if (rc < 0)
        return rc;
    const struct nb_allocation_run how = {.choices = nb_compress_choices(c),
                                          .other =
                                              other_bytes(c, a->calibration->source->n_tensors),
                                          .importance = &a->calibration->importance,
                                          .windows = nb_calibration_windows(a->calibration->open),
                                          .judging = judging,
                                          .keep = on_record,
                                          .progress = on_progress,
                                          .user = a};
    a->journal = nb_compress_journal(c);
    a->error = e;
    return nb_allocation_run(a->allocation, &how, e);
}

int nb_jobs_allocate_run(struct nb_jobs_allocation *a, struct nb_compress *c,
                         struct nb_error *ret_error)
{
    struct nb_choice *choices = nb_compress_choices(c);
    int rc = nb_allocation_types(a->allocation) ? 0 : allocate(a, c, ret_error);
    for (uint32_t i = 0; i < a->calibration->source->n_tensors && rc == 0; i++)
        if (!choices[i].fixed)
            choices[i].type = choices[i].wanted = nb_allocation_types(a->allocation)[i];
    return rc;
}
