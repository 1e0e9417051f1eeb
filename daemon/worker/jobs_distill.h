// A distillation under way: what jobs_distill.c runs, and jobs_distill_report.c tells of. Nobody
// else includes it.
#pragma once

#include "daemon/worker/jobs.h"
#include "daemon/worker/jobs_scratch.h"
#include "distill/prune.h"
#include "distill/train_recipe.h"
#include "quant/compress.h"
#include "tensor/image.h"

#define NB_DISTILL_CURVE 256   // points of the report's curve, at most
#define NB_DISTILL_TOLD  1000u // a step's units of progress

enum { NB_DISTILL_MODEL, NB_DISTILL_REPORT }; // results

// What is saved beside the trainer's state.
struct told {
    struct nb_train_loss before;                  // of the text that is held out
    struct nb_train_loss curve[NB_DISTILL_CURVE]; // sums over each point's steps
};

struct model {
    struct nb_source *source, *whole; // what `source` has the vocabulary cut of; NULL: nothing
    struct nb_image *image;
    struct nb_plan *plan; // these two: NULL where the model is not run
};

struct distilling {
    struct nb_work *work;
    struct nb_train_recipe recipe;
    struct nb_jobs_given given;
    struct nb_jobs_scratch scratch;
    enum nb_train_kind learns;
    struct model model, student; // what the student is a part of, and it
    struct model own_teacher;    // where another model teaches,
    struct model *teacher;       // or the model
    struct nb_lessons *lessons;  // or what one has said; NULL: nothing
    struct nb_source trained;    // the student with what it has learnt
    struct nb_source *adapter;   // in the place of `trained`; NULL: none
    struct nb_windows learnt, held;
    uint32_t n_tokens; // of the model, before its vocabulary was cut
    struct nb_pruned pruned;
    struct nb_train_options options;
    struct nb_train *train;
    struct nb_recipe *types; // of the result
    struct nb_compress *compress;
    uint32_t points;
    uint32_t slot, saved_step;    // of the last state, and
    uint32_t n_saved;             // how many have been saved
    uint64_t saved_ns, saving_ns; // when, and how long it took
    uint64_t began_ns;            // this process with its steps,
    uint32_t began_at;            // at this one
    struct told told;
    struct nb_error stopped; // why before the last step; "": it was not
    struct nb_train_loss after;
    struct nb_error *error;
};

double nb_jobs_distill_weights(const struct nb_source *s);
double nb_jobs_distill_tokens(const struct distilling *k, uint64_t steps);
uint32_t nb_jobs_distill_point(const struct distilling *k, uint32_t step); // of the curve
// How far it is, after a step.
void nb_jobs_distill_tell(const struct distilling *k, uint32_t step,
                          const struct nb_train_loss *loss);
int nb_jobs_distill_report(struct distilling *k);

// jobs_distill_file.c. All -errno with their line.
//
// The types of the result, as a compression's recipe.
int nb_jobs_distill_types(const struct nb_train_recipe *r, struct nb_recipe **ret,
                          struct nb_error *e);
// Makes k->trained, of the student and the trainer.
int nb_jobs_distill_trained(struct distilling *k);
// Opens the result and its journal.
int nb_jobs_distill_open(struct distilling *k);
// Has the trainer compute with what the file will have, where the recipe says so.
int nb_jobs_distill_round(struct distilling *k);
// On the disk, for the result and for states.
int nb_jobs_distill_make_room(struct distilling *k);
int nb_jobs_distill_write(struct distilling *k); // the whole file, durably

// jobs_distill_states.c. -errno with their line.
//
// Of several processes one keeps states and writes the result.
bool nb_jobs_distill_leads(const struct distilling *k);
int nb_jobs_distill_visit(void *user, uint32_t kind, const void *data, uint32_t bytes); // a record
int nb_jobs_distill_save(struct distilling *k);
int nb_jobs_distill_restore(struct distilling *k); // the last that is whole; none: from the start
uint64_t nb_jobs_distill_state_bytes(const struct distilling *k);
int nb_jobs_distill_align(struct distilling *k);
