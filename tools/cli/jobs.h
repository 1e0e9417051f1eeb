// Jobs of the service, as the verbs about them share them.
#pragma once

#include "tools/cli/cli.h"

// A recipe as JSON: a file's, or, of NULL, an empty one. An exit status.
int jobs_read_recipe(const char *path, json_t **ret);
// Whether a job's result has a file to go to, or is left where it is; says what is wrong.
// Whether a compression's recipe asks for what is learnt from text: without one, from the model's
// own.
bool jobs_learns(const json_t *recipe);
bool jobs_has_place(const char *verb, const char *out, bool detach);
// Says that a job was started and left to itself. An exit status.
int jobs_started(uint64_t job, bool json);
// Waits with a line of progress on stderr where that is a terminal. `what`: the line's begin. What
// nibble_jobs_wait returns, of which nothing is said.
int jobs_await(nibble *connection, uint64_t job, const char *what);
// The same, and says why it failed. An exit status.
int jobs_wait(nibble *connection, uint64_t job, const char *what);
// The files that a compression makes; the last is a weighted one's importance matrix, or a folder's
// small files.
enum jobs_result { JOBS_MODEL, JOBS_REPORT, JOBS_IMATRIX, JOBS_TEXTS = JOBS_IMATRIX };
// Writes one of them to `out`. An exit status.
int jobs_save(nibble *connection, uint64_t job, enum jobs_result which, const char *out,
              bool force);
// Or to the descriptor `to`, which is `name` to its user.
int jobs_copy(nibble *connection, uint64_t job, enum jobs_result which, const char *name, int to);
// One of them that is JSON; NULL: there is none that can be read.
json_t *jobs_json(nibble *connection, uint64_t job, enum jobs_result which);
// Tells what a report warns of, on stderr.
void jobs_warn(const json_t *report);
// Whether the job's model is a folder; and that folder as `out`. An exit status.
bool jobs_is_folder(nibble *connection, uint64_t job);
int jobs_save_folder(nibble *connection, uint64_t job, const char *out);
// Writes the job's model to `out` and prints its report; then the daemon forgets the job, unless
// `keep` is set. An exit status.
int jobs_fetch(nibble *connection, uint64_t job, const char *out, bool force, bool keep, bool json);
// The same for who has started the job: where the model cannot be written, it says how it can be
// had still. An exit status.
int jobs_deliver(nibble *connection, uint64_t job, const char *out, bool force, bool json);
