// Submissions: one table from what a client may ask for to its handler. A handler validates its
// private copy of the descriptor, and either answers at once, or starts a job that the engine's
// events finish.
#pragma once

#include "daemon/worker/channel.h"
#include "engine/engine.h"

void nb_submission_run(struct nb_channel *c, const struct nb_submission *submission);

// The engine's events; their user is the nb_session.
extern const struct nb_model_events nb_session_events;

// Handlers: 0, or the status to refuse the job with. `desc` is private and of the size in the
// table.
int nb_on_tokenize(struct nb_job *job, const struct nb_submission *submission, const void *desc);
int nb_on_detokenize(struct nb_job *job, const struct nb_submission *submission, const void *desc);
int nb_on_generate(struct nb_job *job, const struct nb_submission *submission, const void *desc);
int nb_on_score(struct nb_job *job, const struct nb_submission *submission, const void *desc);
int nb_on_embed(struct nb_job *job, const struct nb_submission *submission, const void *desc);
int nb_on_tensor(struct nb_job *job, const struct nb_submission *submission, const void *desc);
int nb_on_gemm(struct nb_job *job, const struct nb_submission *submission, const void *desc);
int nb_on_dequantize(struct nb_job *job, const struct nb_submission *submission, const void *desc);

// The part of the events that is a generation's and a score's.
void nb_generate_token(struct nb_job *job, int32_t token, float logprob);
void nb_generate_finished(struct nb_job *job, enum nb_finish why, int error);
void nb_score_row(struct nb_job *job, uint32_t position, const float *logits, uint32_t vocab);

// Binds the job to the session (made at its first use) and sets the session's log to its first
// `base` tokens and the `n_tokens` of the arena; of those, the ones that the log holds already at
// their place keep their KV, below `keep`. NIBBLE_E_BUSY, NIBBLE_E_CONTEXT, -EINVAL.
struct nb_log_change {
    uint32_t session, base, n_tokens, keep;
    uint64_t tokens;
};
// NIBBLE_E_UNSUPPORTED, of a model that only embeds.
int nb_refuse_to_generate(struct nb_channel *c);
int nb_check_context(struct nb_channel *c, uint64_t n); // that n tokens fit: NIBBLE_E_CONTEXT
int nb_job_set_log(struct nb_job *job, const struct nb_log_change *change);
// Starts the engine on the job's session; the rest comes by events.
int nb_job_start(struct nb_job *job, const struct nb_request *request);
