// A model and calibration text, run through the float engine to see what the model's matrices are
// multiplied by. Batch by batch, so that it can be gone on with by another process: whatever the
// threads, and wherever it was interrupted, the sums are the same to the bit.
#pragma once

#include "engine/plan.h"
#include "grad/grad.h"
#include "quant/importance.h"
#include "quant/ranges.h"
#include "quant/windows.h"
#include "tensor/source.h"

struct nb_calibration;

struct nb_calibration_text {
    struct nb_windows learnt, held_out;
};

struct nb_calibrate {
    const struct nb_source *source;
    const struct nb_source_file *texts;
    uint32_t n_texts;                  // 0: the model writes them (quant/written.h)
    uint32_t samples, length;          // windows, and tokens of each
    uint32_t held_out;                 // windows beside them, on which something is to be judged
    uint64_t seed;                     // of what it writes
    struct nb_calibration_text *given; // by another calibration; NULL or empty: none
    struct nb_team *team;
    const struct nb_cpu_allowed *allowed; // what the team is of
    // Of what it writes: tokens so far, and in all. May be NULL.
    void (*writing)(void *user, uint64_t done, uint64_t total);
    void *user;
};

// Packs the source to memory of this process and cuts the text. Blocks. -EINVAL for a length that
// the model or windows.h does not have, too short a text, or what loading refuses; with its line.
int nb_calibration_open(const struct nb_calibrate *how, struct nb_calibration **ret,
                        struct nb_error *ret_error);
void nb_calibration_close(struct nb_calibration *c); // NULL is fine

struct nb_grad *nb_calibration_grad(struct nb_calibration *c);
const struct nb_plan *nb_calibration_plan(const struct nb_calibration *c);
struct nb_image *nb_calibration_image(const struct nb_calibration *c); // its source's
const struct nb_windows *nb_calibration_windows(const struct nb_calibration *c);
const struct nb_windows *nb_calibration_held_out(const struct nb_calibration *c);
// Gives its text away, for a calibration of another source; this one is to be closed then.
void nb_calibration_give(struct nb_calibration *c, struct nb_calibration_text *ret);
// The Hessian (quant/hessian.h) of what the head reads in the float model, on some windows of all
// of the text: [embedding][embedding], which lives as long as `c`. Free after nb_calibration_run
// from the first window on, else a run over these. NULL: there is no head. -errno with its line.
int nb_calibration_head(struct nb_calibration *c, const double **ret, struct nb_error *ret_error);
// Batches of whole windows, from 0 on.
uint32_t nb_calibration_batches(const struct nb_calibration *c);
// Makes one the float engine's batch; the number of its rows to *ret. -ENOMEM with its line.
int nb_calibration_batch(struct nb_calibration *c, uint32_t batch, uint32_t *ret,
                         struct nb_error *ret_error);

// What nb_calibration_run does with inputs, for who runs the batches himself and has no ranges:
// sums of zero for all matrices of the plan in `s`, which stays until the end; and rows that a
// matrix is multiplied by, in their order, as nb_grad_see_fn. -ENOMEM, -ESTALE, -EINVAL with its
// line.
int nb_calibration_sums(struct nb_calibration *c, struct nb_importance *s,
                        struct nb_error *ret_error);
void nb_calibration_take(struct nb_calibration *c, const struct nb_grad_tensor *w, uint32_t expert,
                         const float *x, size_t stride, uint32_t n);

// From now on `ranges` is added to as well, by the same windows; NULL: not. It stays until the end.
void nb_calibration_see(struct nb_calibration *c, struct nb_ranges *ranges);

// Runs windows from number `done` on, one batch after the other, and adds to `s`: empty where
// `done` is 0. `after`: `done` windows are in the sums now; a negative return ends the work. -errno
// with its line.
int nb_calibration_run(struct nb_calibration *c, uint32_t done, struct nb_importance *s,
                       int (*after)(void *user, uint32_t done), void *user,
                       struct nb_error *ret_error);
