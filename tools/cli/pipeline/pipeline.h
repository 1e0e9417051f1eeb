// What `nibble pipeline` was asked for. A *step* is a job's recipe with a name; a *chain* is steps
// one after the other, each on what the one before it has made.
//
//   recipe.c ──▶ struct pipeline ──▶ chains.c ──▶ search.c: a student's shape, by trials
//                                       │             │
//                                       └──────┬──────┘
//                                              ▼
//                      make.c: a file of a job, made once    judge.c: what eval finds of it
//                                                            targets.c: which of them it meets
#pragma once

#include "tools/cli/eval/eval.h"

#define PIPELINE_STEPS  16
#define PIPELINE_CHAINS 16
#define PIPELINE_SHAPES 16
#define PIPELINE_NAME   32 // of a step, with the NUL
#define PIPELINE_FILE   (PIPELINE_STEPS * PIPELINE_NAME + 64)

struct pipeline_step {
    const char *name;
    bool trains;              // it is a distillation; else a compression
    const json_t *recipe;     // the job's, but for what is to "fit"
    struct option_list texts; // that it learns from
    const json_t *targets;    // its own, or NULL
    const json_t *layers;     // to try: from 1 on so many, below that part of them; NULL: no search
    uint64_t tokens;          // of a shape's first trial
};

struct pipeline_chain {
    size_t step[PIPELINE_STEPS], n;
};

struct pipeline {
    struct common common;
    const char *model, *folder; // where the files come from, and go to
    nibble *connection;
    json_t *recipe; // has what the rest points to
    struct pipeline_step steps[PIPELINE_STEPS];
    struct pipeline_chain chains[PIPELINE_CHAINS];
    size_t n_steps, n_chains;
    const json_t *targets; // of each chain's last step; never NULL
    struct eval judge;     // beside the model
};

// --- recipe.c

// Whether the recipe says of a key that it is to fit.
bool pipeline_fits(const json_t *recipe, const char *key);

// Checks the recipe and takes it over, whatever becomes of it. An exit status.
int pipeline_read(json_t *recipe, struct pipeline *ret);

// --- make.c

// A file of the folder: a job's result, made once and found again by whoever asks for the same.
struct pipeline_job {
    const char *name; // NAME.gguf
    const char *from; // a path
    bool trains;
    json_t *recipe;
    const struct option_list *texts;
    bool may_fail; // then a job that ends with an error is no failure: `why` has its sentence
    char why[256];
};

// The path of a file of the folder; freed by the caller.
char *pipeline_path(const struct pipeline *p, const char *name, const char *suffix);
// Waits for the job, and takes up one that an earlier run has left. *ret_story is what is known of
// the file: "report" of the job, "seconds" where it ran under our eyes, "judged"; NULL where it may
// fail and did. An exit status.
int pipeline_make(const struct pipeline *p, struct pipeline_job *job, json_t **ret_story);
// What is kept beside NAME.gguf, as NAME and a suffix, for the next run: an object, empty where
// there is none; and an exit status.
#define PIPELINE_STORY ".made.json"
json_t *pipeline_recall(const struct pipeline *p, const char *name, const char *suffix);
int pipeline_keep(const struct pipeline *p, const char *name, const char *suffix,
                  const json_t *object);
// A folder in the folder (""; itself), made where it is missing; and the end of all files in it
// whose names begin so, and of the folder where nothing else is there. An exit status.
int pipeline_open_folder(const struct pipeline *p, const char *name);
void pipeline_remove_folder(const struct pipeline *p, const char *name, const char *begin);
// What tells one file's content from another's without reading it: path, size and time; and a list
// of these.
json_t *pipeline_stamp(const char *path);
json_t *pipeline_stamps(const struct option_list *paths);
// Gives the file of one name, and what is kept beside it, another name.
void pipeline_rename(const struct pipeline *p, const char *from, const char *to);

// --- judge.c

// Sets "judged" of the story of NAME.gguf: the model's object of eval's report. An exit status.
int pipeline_judge(struct pipeline *p, const char *name, json_t *story);
// What a token takes and nothing else, in ms. An exit status.
int pipeline_time(struct pipeline *p, const char *name, json_t *story, double *ret_ms);

// --- targets.c

// Checks the object of targets, makes sizes numbers, and sets what they need of the judge. An exit
// status.
int pipeline_targets_read(json_t *targets, struct eval *judge);
// A sentence for each target that the judged model misses, appended to `missed`.
void pipeline_targets_missed(const json_t *targets, const json_t *judged, json_t *missed);

// --- search.c

// Puts into `recipe`, of the chain's step `at`, on the file `from`, the shape that learns best
// among those that meet the targets; where none does, a sentence says so in `missed`. `name` is the
// step's file. What was tried is *ret_shapes. An exit status.
int pipeline_search(struct pipeline *p, const struct pipeline_chain *chain, size_t at,
                    const char *name, const char *from, json_t *recipe, json_t *missed,
                    json_t **ret_shapes);

// --- chains.c

// Runs all chains. What was found is eval's, with "steps" (a row for each file) and "chains". An
// exit status: of the work, not of the targets.
int pipeline_run(struct pipeline *p, json_t **ret_found);
