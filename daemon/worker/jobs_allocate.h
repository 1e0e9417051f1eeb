// The allocation of a compression with a target, in a job's worker (jobs_allocate.c).
#pragma once

#include "daemon/worker/jobs_calibrate.h"
#include "quant/allocation.h"
#include "quant/compress.h"

// The first members are the caller's; the rest is zero before.
struct nb_jobs_allocation {
    struct nb_jobs_calibration *calibration; // which comes before it
    const struct nb_recipe *recipe;

    struct nb_allocation *allocation;
    uint64_t load; // what it counts as beside the tensors' bytes
    struct nb_journal *journal;
    struct nb_error *error;
};

// -EINVAL where there is no text to judge by; -ENOMEM; with its line.
int nb_jobs_allocate_init(struct nb_jobs_allocation *a, struct nb_error *ret_error);
void nb_jobs_allocate_finish(struct nb_jobs_allocation *a);
// As of nb_journal_open: the calibration's records, and its own.
int nb_jobs_allocate_visit(void *user, uint32_t kind, const void *data, uint32_t bytes);
// What it counts as, in bytes of a result of so many: before the calibration begins.
uint64_t nb_jobs_allocate_load(struct nb_jobs_allocation *a, uint64_t bytes);
// Once the calibration is whole: the choices get their types.
int nb_jobs_allocate_run(struct nb_jobs_allocation *a, struct nb_compress *c,
                         struct nb_error *ret_error);
