// The tuning of a compression, in a job's worker (jobs_tune.c).
#pragma once

#include "daemon/worker/jobs_calibrate.h"
#include "quant/calibrate.h"
#include "quant/compress.h"
#include "quant/recipe.h"
#include "quant/report.h"

#define NB_JOBS_TUNE_RECORDS (NB_COMPRESS_RECORDS + 24) // kinds of records, from this one on

// What the journal tells of it; all zero before.
struct nb_jobs_tuning {
    double before[NB_JOBS_HELD]; // KL of each window that is held out
    uint32_t n_before;
    bool saved, over, put; // a state, or the results, lie in scratch file `slot`; they are put
    uint32_t slot;
    struct nb_tuned tuned; // once it is over
};

struct nb_jobs_tune {
    struct nb_work *work;
    const struct nb_source *source;
    struct nb_calibration *calibration;
    struct nb_compress *compress; // with all tensors
    struct nb_tuning_plan plan;
    // Steps done of all. A negative return ends the work.
    int (*progress)(void *user, const char *what, uint32_t done, uint32_t total);
    void *user;
};

// A record of the journal, as of nb_journal_open.
int nb_jobs_tune_visit(void *user, uint32_t kind, const void *data, uint32_t bytes);
// Whether a model can be tuned, and a result of it judged. -ENOTSUP with its line.
int nb_jobs_tune_check(const struct nb_calibration *c, struct nb_error *ret_error);
// Of the disk, for states and results.
uint64_t nb_jobs_tune_bytes(const struct nb_source *s, uint64_t file_bytes);
// Tunes the matrices and norms of a file that is whole, and puts them in it, unless held-out text
// shows no gain. Goes on from the last state that was saved. Blocks; -errno with its line.
int nb_jobs_tune_run(const struct nb_jobs_tune *how, struct nb_jobs_tuning *t,
                     struct nb_error *ret_error);
