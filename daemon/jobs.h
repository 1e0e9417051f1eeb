// Jobs of the service: what takes long and is done beside everything else, at idle priority, by one
// worker after the other. A job is a folder of the state directory, so it outlives workers and
// brokers. What its kind means, and what its files hold, is the worker's affair.
#pragma once

#include <stdint.h>

#include "daemon/client.h"
#include "daemon/ledger.h"
#include "daemon/link.h"
#include "daemon/lists.h"

enum nb_jobs_state {
    NB_JOBS_STORING, // its sources are taken in; its JOB_START waits for that
    NB_JOBS_WAITING, // for its turn
    NB_JOBS_RUNNING,
    NB_JOBS_PAUSED,
    NB_JOBS_FINISHED,
    NB_JOBS_FAILED,
    NB_JOBS_STATES,
};
extern const char *const nb_jobs_states[NB_JOBS_STATES];

// A client that waits for a job's end.
struct nb_jobs_wait {
    TAILQ_ENTRY(nb_jobs_wait) entry;
    struct nb_client *client;
    uint32_t serial;
};

struct nb_service_job {
    TAILQ_ENTRY(nb_service_job) entry;
    struct nb_broker *broker;
    struct nb_client *owner; // who starts it, or is attached; NULL: nobody
    uint32_t serial;         // of the JOB_START that is not answered yet; else 0
    int detached;
    int abandoned; // cancelled while it is stored: it stays charged until that worker has ended
    int recipe;    // fd, while it is stored; -1: none
    struct nb_worker *worker; // perhaps one that was killed and has not ended yet
    struct nb_charge charge;
    TAILQ_HEAD(, nb_jobs_wait) waits;
    int answered; // the worker's JOB_DONE came
    struct nb_link_job_done answer;
    char fault[NB_FAULT_TEXT];
    uint32_t figures[NIBBLE_JOBS_CURVE]; // that each part of the row's curve is the mean of
    // What its record has, but for the curve
    enum nb_jobs_state state;
    struct nibble_jobs_row row;
    uint64_t copied_bytes, result_bytes; // charged
    uint64_t ended_s;
    uint32_t deaths;        // of workers in a row, without progress
    uint64_t journal_bytes; // at the last of them
    char results[NB_JOB_RESULTS][NB_NAME_MAX];
};

int nb_jobs_init(struct nb_broker *broker);  // reads what there is, and goes on with it
void nb_jobs_stop(struct nb_broker *broker); // ends the workers; the next broker goes on
void nb_jobs_finish(struct nb_broker *broker);
void nb_jobs_drop_client(struct nb_client *client); // cancels what is attached to it

NB_HANDLER(nb_on_job_start);
NB_HANDLER(nb_on_job_wait);
NB_HANDLER(nb_on_job_control);
NB_HANDLER(nb_on_job_result);

// ---- Inside (jobs.c, jobs_requests.c)

// Whether the client may know of the job.
bool nb_jobs_shown_to(const struct nb_service_job *job, const struct nb_client *client);
void nb_jobs_move(struct nb_service_job *job, enum nb_jobs_state state); // and says so everywhere
void nb_jobs_fail(struct nb_service_job *job, int status, const char *text);
void nb_jobs_kick(struct nb_broker *broker); // somebody's turn may have come
// Starts the worker that takes n files in from the socket, which is borrowed. -errno.
int nb_jobs_store(struct nb_service_job *job, int socket, uint32_t n);
// Removes it from the disk and from memory.
void nb_jobs_cancel(struct nb_service_job *job);
void nb_jobs_free(struct nb_service_job *job);                                // from memory alone
struct nb_service_job *nb_jobs_create(struct nb_broker *broker, uint64_t id); // NULL: no memory
// Tells those who wait: how far it is, or how it ended.
void nb_jobs_tell(struct nb_service_job *job);
void nb_jobs_tell_one(const struct nb_service_job *job, const struct nb_jobs_wait *wait);
void nb_jobs_answer(struct nb_service_job *job, int status, const struct nb_refusal *refusal);

// ---- On the disk (jobs_folder.c)

int nb_jobs_open_dir(struct nb_broker *broker); // sets jobs_dir
int nb_jobs_make_folder(struct nb_broker *broker, uint64_t *ret_id);
int nb_jobs_open_folder(const struct nb_service_job *job);             // fd or -errno
int nb_jobs_open_result(const struct nb_service_job *job, uint32_t i); // fd or -errno
uint64_t nb_jobs_journal_bytes(const struct nb_service_job *job);
void nb_jobs_save(const struct nb_service_job *job); // its record
void nb_jobs_remove_folder(struct nb_broker *broker, uint64_t id);
void nb_jobs_load(struct nb_broker *broker); // all that there are
