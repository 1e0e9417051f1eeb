// What a client asked for and was not yet answered: a table in each channel, named by the client's
// user_data. A job ends in exactly one DONE completion.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "libclient/include/nibble.h"
#include "libclient/ring.h"

struct nb_channel;
struct nb_embed;
struct nb_session;
struct nb_stream;
struct nb_text_task;
struct nb_matrix_job;

// Where a score's results go: rows [first, end) of the log, to the arena from `out`.
struct nb_score {
    uint32_t what, first, end;
    uint64_t out;
};

struct nb_job {
    uint64_t user_data; // 0: a free entry
    struct nb_channel *channel;
    struct nb_session *session;       // that it runs on; NULL for text
    struct nb_text_task *text;        // that a tokenization waits for
    struct nb_stream *stream;         // of a generation
    struct nb_score score;            // of a score
    struct nb_embed *embed;           // NULL: the job is none
    struct nb_matrix_job *matrix_job; // NULL: the job is none
    uint32_t prompt_tokens, generated, cached;
    uint32_t computed;                           // last reported
    uint64_t submitted_ns, started_ns, first_ns; // 0: not yet
};

// -EPROTO: user_data is 0 or in use; NIBBLE_E_QUOTA: the table is full.
int nb_job_create(struct nb_channel *c, uint64_t user_data, struct nb_job **ret);
struct nb_job *nb_job_find(struct nb_channel *c, uint64_t user_data);

// Posts DONE and frees the entry. The session's sequence must have no request any more, or be about
// to lose it (from within an engine's event). `a`, `b`: as ring.h says for the op.
void nb_job_done(struct nb_job *job, int32_t status, enum nibble_finish finish, uint32_t a,
                 uint32_t b);
// DONE of a job that runs on a session, with its counts.
void nb_job_finish(struct nb_job *job, int32_t status, enum nibble_finish finish);
// Ends a running job with NIBBLE_E_CANCELLED.
void nb_job_cancel(struct nb_job *job);
// Frees the entry without a completion.
void nb_job_drop(struct nb_job *job);
// DONE for a submission that never became a job. All of these tell the channel's reason with a
// failure, if nb_reason has left one.
void nb_job_refuse(struct nb_channel *c, uint64_t user_data, int32_t status);

// The next step will be one that the job takes part in.
void nb_job_started(struct nb_job *job, uint64_t now);
// Posts PREFILL when the step has brought it further.
void nb_job_progress(struct nb_job *job);
