// Mode `job`: what its two halves, and the kinds of jobs, share.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/link.h"
#include "engine/cpu/threads.h"
#include "engine/device.h"
#include "quant/journal.h"
#include "tensor/fail.h"
#include "tensor/source.h"

#define NB_JOB_SCRATCH 2
#define NB_JOB_DEVICE  16 // bytes of a device's name, with the NUL

struct nb_train_share;

// What a kind of job gets. Whatever it says, it says through these: it has no other file, and it
// may be killed at any instant, and begun again with the same.
struct nb_work {
    const char *recipe; // JSON, hostile
    size_t recipe_len;
    struct nb_source_file files[NB_WIRE_FILES]; // of the model, then what else it was given
    uint32_t n_files;
    int journal;
    int results[NB_JOB_RESULTS];
    int scratch[NB_JOB_SCRATCH]; // files that the work keeps its state in; empty at its end
    int statistics;              // jobs_statistics.h: of these files; or -1
    uint8_t key[NB_JOURNAL_KEY]; // of recipe, files and kind
    struct nb_team *team;
    struct nb_cpu_allowed allowed;      // what the team is of
    const struct nb_train_share *share; // of a distillation by several processes; NULL: it is alone
    struct nb_device *device;           // that it computes on; NULL: the CPU
    // Progress, while it runs
    float figure; // told with it: what the work lowers, a loss; NaN: nothing
    double pace;  // nanoseconds of one of its units, as far as it is known before; 0: unknown
    uint64_t started_ns, started_done, told_ns;
};

struct nb_work_kind {
    const char *name;
    const char *results[NB_JOB_RESULTS]; // their names, as far as there are
    bool scratch;                        // it has the scratch files
    bool statistics;                     // and those that jobs of the same files share
    // Whether the recipe says what the kind can do, as far as that is known without the files.
    int (*check)(const char *recipe, size_t len, struct nb_error *ret_error);
    int (*run)(struct nb_work *work, struct nb_error *ret_error);
    // Which device a recipe names that was checked; "": the CPU. NULL: it knows no others.
    void (*device)(const char *recipe, size_t len, char ret[NB_JOB_DEVICE]);
};
int nb_jobs_round_check(const char *recipe, size_t len, struct nb_error *ret_error);
int nb_jobs_round(struct nb_work *work, struct nb_error *ret_error);
int nb_jobs_weighted(struct nb_work *work, struct nb_error *ret_error);
// The same for another kind of job: tensors of the types of a folder's recipe lie in the first
// scratch file, and results are for `then`, which gets them as a source, with what they were learnt
// from; both are borrowed.
struct nb_jobs_then {
    int (*run)(void *user, const struct nb_source *rounded, const json_t *calibration,
               struct nb_error *ret_error);
    void *user;
};
int nb_jobs_weigh(struct nb_work *work, const char *recipe, const struct nb_jobs_then *then,
                  struct nb_error *ret_error);
int nb_jobs_folder_check(const char *recipe, size_t len, struct nb_error *ret_error);
int nb_jobs_folder(struct nb_work *work, struct nb_error *ret_error);
int nb_jobs_distill_check(const char *recipe, size_t len, struct nb_error *ret_error);
int nb_jobs_distill(struct nb_work *work, struct nb_error *ret_error);
void nb_jobs_distill_device(const char *recipe, size_t len, char ret[NB_JOB_DEVICE]);
int nb_jobs_onnx_check(const char *recipe, size_t len, struct nb_error *ret_error);
int nb_jobs_onnx(struct nb_work *work, struct nb_error *ret_error);

// Waits until the broker has charged so many bytes of the disk to the job's user. A refusal is the
// end of this process.
int nb_jobs_need(uint64_t bytes);
// Says how much arithmetic one of the units of nb_jobs_tell is, in floating-point operations of
// products of matrices, so that the time is estimated before any work is done: by what the machine
// does with a small product now.
void nb_jobs_pace(struct nb_work *work, double operations);
// Tells how far the job is; from now and then on, however often it is called.
void nb_jobs_tell(struct nb_work *work, const char *what, uint64_t done, uint64_t total);

// jobs_given.c. A job's files by what they are for, in the order in which they came.
struct nb_jobs_given {
    struct nb_source_file model[NB_WIRE_FILES], texts[NB_WIRE_FILES], teacher[NB_WIRE_FILES],
        imatrix[NB_WIRE_FILES];
    uint32_t n_model, n_texts, n_teacher, n_imatrix;
};
void nb_jobs_sort(const struct nb_work *work, struct nb_jobs_given *ret);
// The whole room of a file (a result) at once, so that a full disk is met before the work, not
// after it; and leave of the broker for it and `more` bytes beside. -errno with its line.
int nb_jobs_make_room(int fd, uint64_t bytes, uint64_t more, struct nb_error *ret_error);

// A result that is one JSON object, from its start and durable; takes it. flags: of json_dumps.
// NULL is no memory for it. -errno with its line.
int nb_jobs_write_json(int fd, json_t *root, size_t flags, struct nb_error *ret_error);

// jobs_files.c: the files of a job's folder.
struct nb_jobs_files {
    struct nb_source_file items[NB_WIRE_FILES];
    char names[NB_WIRE_FILES][NB_WIRE_FILE_NAME];
    uint32_t n;
};
// Waits for n files from the client, and checks their names. -errno with its line.
int nb_jobs_files_receive(uint32_t n, struct nb_jobs_files *ret, struct nb_error *ret_error);
// Takes these files in. -errno with its line.
int nb_jobs_files_store(const struct nb_jobs_files *files, struct nb_error *ret_error);
// Opens them again: -ESTALE for one that changed meanwhile.
int nb_jobs_files_open(struct nb_jobs_files *ret, struct nb_error *ret_error);
// Whether they are still as they were when they were taken in.
int nb_jobs_files_check(const struct nb_jobs_files *files, struct nb_error *ret_error);

// jobs_device.c: a job's device. Its file, which is empty at first, before the sandbox is entered;
// the name that its recipe has, behind its door. -errno with its line.
int nb_jobs_device_begin(int *ret_fd, struct nb_error *ret_error);
int nb_jobs_device_keep(int fd, const char *name, struct nb_error *ret_error);
// Opens work->device where one was kept, and limits what drivers may open. Before the folder is
// closed and the sandbox entered. What nb_device_create returns, with its line.
int nb_jobs_device_open(struct nb_work *work, struct nb_error *ret_error);

// A file of the folder, read whole: its bytes, malloc'ed, with a NUL behind them.
int nb_jobs_read(const char *name, size_t most, char **ret, size_t *ret_len);
int nb_jobs_write(const char *name, const void *data, size_t len); // and makes it durable
