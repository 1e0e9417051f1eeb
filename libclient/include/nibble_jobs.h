/* Jobs of the service: what it does by itself, at idle priority. A part of nibble.h, which includes
 * it and says what holds for every call.
 *
 * A job goes on after the death of its worker or of the daemon, to the same bytes. An application
 * sees and steers those of its own user, an admin connection those of all. Every call here blocks,
 * nibble_jobs_wait for as long as the job takes. */
#ifndef NIBBLE_JOBS_H
#define NIBBLE_JOBS_H

#include "nibble.h"

#ifdef __cplusplus
extern "C" {
#endif

#define NIBBLE_JOBS_CURVE 32

struct nibble_jobs_row {
    uint64_t id, done, total; /* total 0: not known yet */
    uint64_t eta_ms;          /* UINT64_MAX: not known */
    uint64_t disk_bytes;      /* in the state directory, charged to its user */
    uint64_t started_s;       /* since 1970 */
    uint32_t uid;
    int32_t status;     /* of a failed one: its code */
    uint32_t n_results; /* files of nibble_jobs_result, once it is finished */
    uint32_t restarts;  /* workers that died of it or with it */
    char kind[16];      /* "round", "weighted", "folder", "onnx", "distill" */
    char state[16];     /* "storing", "waiting", "running", "paused", "finished", "failed" */
    char name[64];      /* the source's file */
    char text[240];     /* what it is at, or why it failed */
    /* What it lowers, a loss, by how far it was then: the mean of each 32nd part of it; NaN where
     * nothing is known. Since the daemon was started */
    float curve[NIBBLE_JOBS_CURVE];
};
/* Up to `max` rows to ret_rows; returns how many there are in all. */
NIBBLE_API int nibble_jobs(nibble *connection, struct nibble_jobs_row *ret_rows, size_t max);

struct nibble_compress_options {
    uint32_t size;
    int detached;       /* else it is cancelled when this connection ends before it is finished */
    const char *recipe; /* required; JSON as {"to": "Q8_0"}, see nibble(1); 64 KiB at most */
    const char *kind;   /* NULL: "weighted" with one of the following, else "round". "weighted"
                         * without either: on text that the model writes by itself. "folder": a
                         * Hugging Face folder, of NF4 with the following too. "distill": trains a
                         * student on the texts below, by another recipe (nibble(1)) */
    /* Files of text (plain, or JSON lines with "text"), or folders with such files in them, on
     * which the model is run to learn which columns of its matrices matter; or what llama-imatrix
     * has learnt of them. */
    const char *const *calibration;
    size_t n_calibration;
    const char *imatrix; /* or NULL */
    /* Of the kind "distill": a GGUF, or NULL: the model at `path` is the teacher too */
    const char *teacher;
    /* LoRA adapters that are merged into the model before all else, as in nibble_load_options */
    const char *const *adapters;
    size_t n_adapters;
};
/* Compresses the model at `path` (as in nibble_load). Returns when the daemon has opened its files
 * by itself, or copied those that it cannot open. */
NIBBLE_API int nibble_compress(nibble *connection, const char *path,
                               const struct nibble_compress_options *options, uint64_t *ret_job);

struct nibble_jobs_wait_options {
    uint32_t size;
    uint32_t pad;
    /* A return other than 0 ends the wait, not the job, with NIBBLE_E_CANCELLED. `row` has id,
     * done, total, eta_ms, state, text and curve during the call, which cannot use the connection.
     * May be NULL. */
    int (*progress)(void *user, const struct nibble_jobs_row *row);
    void *user;
};
/* 0 once the job is finished, or what ended it. A paused one is waited for. options may be NULL. */
NIBBLE_API int nibble_jobs_wait(nibble *connection, uint64_t job,
                                const struct nibble_jobs_wait_options *options);

/* Cancelling removes all there is of a job, a finished one's results too. Resuming goes on with a
 * paused one, or with a failed one from where it was. -EINVAL: not in the job's state. */
enum nibble_jobs_what { NIBBLE_JOBS_CANCEL, NIBBLE_JOBS_PAUSE, NIBBLE_JOBS_RESUME };
NIBBLE_API int nibble_jobs_control(nibble *connection, uint64_t job, enum nibble_jobs_what what);

struct nibble_jobs_result {
    uint64_t bytes;
    uint32_t n;    /* files that the job has made */
    char name[64]; /* of this one: "model.gguf", "report.json", "imatrix.gguf" */
};
/* Opens a finished job's file `index` for reading; close the fd. ret_info may be NULL. */
NIBBLE_API int nibble_jobs_result(nibble *connection, uint64_t job, uint32_t index, int *ret_fd,
                                  struct nibble_jobs_result *ret_info);

#ifdef __cplusplus
}
#endif

#endif
