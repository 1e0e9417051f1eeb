// The fold of a compression, in a job's worker (jobs_fold.c): found before anything is calibrated
// or rounded, told in the journal, and from then on a part of the source.
#pragma once

#include "quant/compress.h"
#include "quant/fold_source.h"

struct nb_jobs_calibration;

#define NB_JOBS_FOLD_RECORD (NB_COMPRESS_RECORDS + 1) // kind: the fold

// `methods` is the caller's; the rest is zero before.
struct nb_jobs_fold {
    uint32_t methods; // of quant/fold_search.h; 0: none
    void *told;       // by the journal; NULL: nothing
    size_t told_len;
    struct nb_fold *fold;
    struct nb_fold_source *source;
    const struct nb_choice *choices; // while it is searched
};

// As of nb_journal_open, of records of that kind.
int nb_jobs_fold_visit(struct nb_jobs_fold *f, const void *data, uint32_t bytes);
// Finds the calibration's fold, or takes what was told, and folds its source, which the calibration
// opens anew. choices: of each tensor. -errno with its line.
int nb_jobs_fold_run(struct nb_jobs_calibration *c, const struct nb_choice *choices,
                     struct nb_journal *journal, struct nb_error *ret_error);
void nb_jobs_fold_finish(struct nb_jobs_fold *f); // before the source is closed
