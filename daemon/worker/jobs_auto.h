// The method auto, in a job's worker (jobs_auto.c): error feedback judged beside search, on text
// that is held out.
//
//     search all ─▶ nb_jobs_auto_searched ─▶ error feedback ─▶ nb_jobs_auto_fed
#pragma once

#include "daemon/worker/jobs_calibrate.h"
#include "quant/compress.h"
#include "quant/gain.h"

#define NB_JOBS_AUTO_RECORDS (NB_COMPRESS_RECORDS + 32) // kinds of records, from this one on

// What the journal tells; all zero before.
struct nb_jobs_auto {
    double searched[NB_JOBS_HELD]; // divergence of each window
    uint32_t n_searched;
    bool judged, settled;
    struct nb_gain gain; // of error feedback, once it is judged
};

struct nb_jobs_auto_run {
    struct nb_jobs_calibration *calibration;
    struct nb_compress *compress;
    int fd; // of the result
};

// As of nb_journal_open.
int nb_jobs_auto_visit(void *user, uint32_t kind, const void *data, uint32_t bytes);
// Searches all scales and judges the file, unless that is done; then no tensor is there any more.
// Blocks; -errno with its line.
int nb_jobs_auto_searched(const struct nb_jobs_auto_run *run, struct nb_jobs_auto *a,
                          struct nb_error *ret_error);
// Whether error feedback is to write the file: until it is judged, and where it gained.
static inline bool nb_jobs_auto_feeds(const struct nb_jobs_auto *a)
{
    return !a->judged || a->gain.kept;
}
// Judges what error feedback has written, unless that is done. Where it gained nothing, the file
// becomes search's. Blocks; -errno with its line.
int nb_jobs_auto_fed(const struct nb_jobs_auto_run *run, struct nb_jobs_auto *a,
                     struct nb_error *ret_error);
