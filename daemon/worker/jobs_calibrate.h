// The calibration of a compression, in a job's worker (jobs_calibrate.c).
#pragma once

#include "daemon/worker/jobs.h"
#include "daemon/worker/jobs_fold.h"
#include "quant/calibrate.h"
#include "quant/compress.h"
#include "quant/importance.h"
#include "quant/judge.h"
#include "quant/recipe.h"

#define NB_JOBS_HELD 64 // windows at most that are judged in pairs, without a change and with it

// The first members are the caller's; the rest is zero before.
struct nb_jobs_calibration {
    struct nb_work *work;
    struct nb_source *source; // which a fold changes
    const struct nb_source_file *texts;
    uint32_t n_texts;
    int imatrix; // an importance matrix's fd in the place of texts, or -1
    struct nb_sampling_plan sampling;
    struct nb_jobs_fold fold;
    bool sees_ranges; // of inputs, for static activations
    bool by_the_way;  // error feedback measures the importance, which nothing before it needs

    struct nb_calibration *open;     // once it is needed
    struct nb_calibration_text text; // of the one that was closed
    struct nb_windows judged;        // of the text that is held out, as much as a judge takes
    // Of what comes after; what the calibration counts as beside that, and what writing its text
    // and the fold do
    uint64_t bytes, load, writing, folding;
    struct nb_importance importance;
    struct nb_ranges ranges;
    uint32_t done, stored; // windows
    bool known;            // an earlier job of the same files has measured the same
    struct nb_journal *journal;
    struct nb_error *error;
    void *coming; // what some parts were read of
    uint64_t came;
};

// What a run over its text takes, in bytes of tensors, of a model of so many bytes.
uint64_t nb_jobs_calibrate_load(const struct nb_jobs_calibration *c, uint64_t bytes);
// `size`: of the result; `after`: what comes after the calibration. Takes what an earlier job has
// measured of the same, if it was kept.
void nb_jobs_calibrate_init(struct nb_jobs_calibration *c, uint64_t size, uint64_t after);
void nb_jobs_calibrate_finish(struct nb_jobs_calibration *c);
// Keeps what was measured for the next job, once it is whole.
void nb_jobs_calibrate_keep(const struct nb_jobs_calibration *c);
// Opens model and text (`open`), where they are not yet.
int nb_jobs_calibrate_open(struct nb_jobs_calibration *c, struct nb_error *ret_error);
// Closes it but for the text, because its source changes: the next calibration has the same
// windows.
void nb_jobs_calibrate_close(struct nb_jobs_calibration *c);
// What a judge takes: opens model and text. Valid while it is open. -errno with its line.
int nb_jobs_calibrate_judging(struct nb_jobs_calibration *c, struct nb_judging *ret,
                              struct nb_error *ret_error);
// Judges the GGUF in `fd` on that text, by `most` windows at most. ret_windows: of each its mean,
// or NULL. -errno with its line.
int nb_jobs_calibrate_judge(struct nb_jobs_calibration *c, int fd, uint32_t most,
                            struct nb_divergence *ret, double *ret_windows,
                            struct nb_error *ret_error);
// As of nb_journal_open.
int nb_jobs_calibrate_visit(void *user, uint32_t kind, const void *data, uint32_t bytes);
// Measures what the journal does not tell of: then `importance` is whole, unless it is learnt by
// the way.
int nb_jobs_calibrate_run(struct nb_jobs_calibration *c, struct nb_journal *journal,
                          struct nb_error *ret_error);
