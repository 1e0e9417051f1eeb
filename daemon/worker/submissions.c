// Submissions: checking them, finding their handler, and what handlers have in common.
#include "daemon/worker/submissions.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/embed.h"
#include "daemon/worker/serve.h"
#include "engine/op.h"

static int nop(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    (void)submission;
    (void)desc;
    nb_job_done(job, 0, NIBBLE_FINISH_NONE, 0, 0);
    return 0;
}

static int counters(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    const struct nb_desc_counters *d = desc;
    const struct nb_channel *c = job->channel;
    struct {
        struct nb_counters head;
        struct nb_counter op[NB_COUNTERS_MAX];
    } told = {.head = {.steps = nb_model_steps(c->model->model), .n_ops = NB_SECTIONS}};
    void *out = nb_channel_range(job->channel, d->out, sizeof(told), alignof(uint64_t));
    if (!out)
        return nb_refuse(job->channel, -EINVAL,
                         "the counters' %zu bytes are not all within the arena, aligned to 8",
                         sizeof(told));
    struct nb_model_info info;
    struct nb_op_time times[NB_SECTIONS];
    nb_model_info(c->model->model, &info);
    nb_model_times(c->model->model, times);
    told.head.layers = info.n_layers;
    told.head.preparing = !nb_model_is_prepared(c->model->model);
    snprintf(told.head.device, sizeof(told.head.device), "%s", c->serve->device_name);
    for (uint32_t i = 0; i < NB_SECTIONS; i++) {
        snprintf(told.op[i].op, sizeof(told.op[i].op), "%s", nb_section_names[i]);
        told.op[i].ns = times[i].ns;
        told.op[i].dispatches = times[i].dispatches;
    }
    memcpy(out, &told, sizeof(told));
    nb_job_done(job, 0, NIBBLE_FINISH_NONE, 0, 0);
    return 0;
}

static const struct {
    uint32_t desc_size;
    int (*run)(struct nb_job *job, const struct nb_submission *submission, const void *desc);
} handlers[NB_SUBMIT_COUNT] = {
    [NB_SUBMIT_NOP] = {0, nop},
    [NB_SUBMIT_TOKENIZE] = {sizeof(struct nb_desc_tokenize), nb_on_tokenize},
    [NB_SUBMIT_DETOKENIZE] = {sizeof(struct nb_desc_detokenize), nb_on_detokenize},
    [NB_SUBMIT_GENERATE] = {sizeof(struct nb_desc_generate), nb_on_generate},
    [NB_SUBMIT_SCORE] = {sizeof(struct nb_desc_score), nb_on_score},
    [NB_SUBMIT_TENSOR] = {sizeof(struct nb_desc_tensor), nb_on_tensor},
    [NB_SUBMIT_GEMM] = {sizeof(struct nb_desc_gemm), nb_on_gemm},
    [NB_SUBMIT_DEQUANTIZE] = {sizeof(struct nb_desc_dequantize), nb_on_dequantize},
    [NB_SUBMIT_COUNTERS] = {sizeof(struct nb_desc_counters), counters},
    [NB_SUBMIT_EMBED] = {sizeof(struct nb_desc_embed), nb_on_embed},
};
#define DESC_MAX 120 // of all these
_Static_assert(DESC_MAX == sizeof(struct nb_desc_dequantize), "the largest");

// --- the two that are not answered

static void cancel(struct nb_channel *c, const struct nb_submission *submission)
{
    struct nb_job *job = submission->target ? nb_job_find(c, submission->target) : NULL;
    if (job)
        nb_job_cancel(job);
}

static void close_session(struct nb_channel *c, const struct nb_submission *submission)
{
    if (submission->session < NB_SESSIONS_MAX)
        nb_channel_close_session(c, submission->session);
}

// --- jobs

static int run_job(struct nb_channel *c, const struct nb_submission *s)
{
    static const uint64_t zero[2];
    alignas(8) char desc[DESC_MAX];
    struct nb_job *job;
    if (s->op >= NB_SUBMIT_COUNT || !handlers[s->op].run)
        return nb_refuse(c, -EOPNOTSUPP, "op %u: this worker has no such one", s->op);
    const void *from = nb_channel_range(c, s->desc, s->desc_len, 8);
    if (s->flags || s->region || memcmp(s->reserved, zero, sizeof(zero)))
        return nb_refuse(c, -EINVAL, "flags, region and reserved fields of a submission are 0");
    if (!from || s->desc_len != handlers[s->op].desc_size)
        return nb_refuse(c, -EINVAL,
                         "a descriptor of %u bytes at %" PRIu64
                         ": op %u has one of %u, within the arena, aligned to 8",
                         s->desc_len, s->desc, s->op, handlers[s->op].desc_size);
    if (c->serve->draining)
        return nb_refuse(c, -ESHUTDOWN, "the daemon is ending: try again when it is back");
    memcpy(desc, from, s->desc_len);
    atomic_signal_fence(memory_order_seq_cst); // the copy is the only look
    int rc = nb_job_create(c, s->user_data, &job);
    if (rc < 0)
        return rc;
    rc = handlers[s->op].run(job, s, desc);
    if (rc < 0)
        nb_job_drop(job);
    return rc;
}

void nb_submission_run(struct nb_channel *c, const struct nb_submission *submission)
{
    if (submission->op == NB_SUBMIT_CANCEL) {
        cancel(c, submission);
    } else if (submission->op == NB_SUBMIT_SESSION_CLOSE) {
        close_session(c, submission);
    } else if (!submission->user_data || nb_job_find(c, submission->user_data)) {
        c->broken = true; // no answer could be told from another job's
    } else {
        c->reason[0] = 0;
        int rc = run_job(c, submission);
        nb_serve_check(c->serve, rc); // opening a matrix
        if (rc == -ENOMEM && !c->reason[0])
            nb_reason(c, "the worker is out of memory");
        if (rc < 0)
            nb_job_refuse(c, submission->user_data, rc);
    }
}

static int open_session(struct nb_channel *c, uint32_t id, struct nb_session **ret)
{
    if (id >= NB_SESSIONS_MAX)
        return nb_refuse(c, -EINVAL, "session %u: at most %u", id, NB_SESSIONS_MAX - 1);
    struct nb_session *session = &c->sessions[id];
    if (session->job)
        return nb_refuse(c, NIBBLE_E_BUSY, "session %u runs a job already", id);
    if (!session->sequence) {
        int rc = nb_sequence_create(c->model->model, session, &session->sequence);
        if (rc < 0)
            return rc;
        nb_sequence_adapt(session->sequence, c->model->adapter);
        atomic_fetch_add(&c->page->sessions, 1);
        atomic_fetch_add(&c->model->page->sessions, 1);
    }
    *ret = session;
    return 0;
}

static int check_tokens(struct nb_channel *c, const int32_t *tokens, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= c->model->vocab)
            return nb_refuse(c, -EINVAL, "token %d at %u: the model has 0 to %u", tokens[i], i,
                             c->model->vocab - 1);
    return 0;
}

static int change_log(struct nb_channel *c, struct nb_sequence *sequence,
                      const struct nb_log_change *change, const int32_t *tokens)
{
    const int32_t *log = nb_sequence_tokens(sequence);
    uint32_t length = nb_sequence_length(sequence), same = 0;
    if (change->base > length)
        return nb_refuse(c, -EINVAL, "base is %u: the session's log has %u tokens", change->base,
                         length);
    if (check_tokens(c, tokens, change->n_tokens) < 0)
        return -EINVAL;
    while (same + 1 < change->n_tokens && change->base + same < length &&
           change->base + same < change->keep && log[change->base + same] == tokens[same])
        same++;
    return nb_sequence_set(sequence, change->base + same, tokens + same, change->n_tokens - same);
}

int nb_refuse_to_generate(struct nb_channel *c)
{
    return nb_refuse(c, NIBBLE_E_UNSUPPORTED,
                     "the model gives vectors of texts and generates none: use nibble embed");
}

int nb_check_context(struct nb_channel *c, uint64_t n)
{
    if (n <= c->model->context)
        return 0;
    return nb_refuse(c, NIBBLE_E_CONTEXT,
                     "%" PRIu64 " tokens do not fit into the context of %u: shorten the prompt", n,
                     c->model->context);
}

int nb_job_set_log(struct nb_job *job, const struct nb_log_change *change)
{
    struct nb_channel *c = job->channel;
    struct nb_session *session;
    void *tokens;
    if (!c->model->generates)
        return nb_refuse_to_generate(c);
    if (!change->n_tokens)
        return nb_refuse(c, -EINVAL, "n_tokens is 0: there is nothing to go on from");
    if (nb_check_context(c, (uint64_t)change->base + change->n_tokens) < 0)
        return NIBBLE_E_CONTEXT;
    int rc = open_session(c, change->session, &session);
    if (rc < 0)
        return rc;
    rc = nb_channel_copy(c, "tokens", change->tokens, (uint64_t)change->n_tokens * sizeof(int32_t),
                         alignof(int32_t), &tokens);
    if (rc < 0)
        return rc;
    rc = change_log(c, session->sequence, change, tokens);
    free(tokens);
    if (rc < 0)
        return rc;
    job->session = session;
    session->job = job;
    job->prompt_tokens = nb_sequence_length(session->sequence);
    return 0;
}

int nb_job_start(struct nb_job *job, const struct nb_request *request)
{
    struct nb_sequence *sequence = job->session->sequence;
    int rc = nb_sequence_start(sequence, request);
    if (rc == -E2BIG)
        return nb_refuse(job->channel, NIBBLE_E_CONTEXT,
                         "the prompt's %u tokens fill the context of %u: nothing can follow them",
                         nb_sequence_length(sequence), job->channel->model->context);
    if (rc < 0)
        return rc;
    nb_sequence_park(sequence, job->channel->held);
    job->cached = job->computed = nb_sequence_computed(sequence);
    return 0;
}

// --- the engine's events

static void on_token(void *user, int32_t token, float logprob)
{
    const struct nb_session *session = user;
    if (session->job)
        nb_generate_token(session->job, token, logprob);
}

static void on_logits(void *user, uint32_t position, const float *logits, uint32_t vocab)
{
    const struct nb_session *session = user;
    if (session->job)
        nb_score_row(session->job, position, logits, vocab);
}

static void on_finish(void *user, enum nb_finish why, int error)
{
    struct nb_session *session = user;
    if (session->job && session->job->embed)
        nb_embed_finished(session, error);
    else if (session->job)
        nb_generate_finished(session->job, why, error);
}

static void on_vector(void *user, const float *vector, uint32_t n)
{
    const struct nb_session *session = user;
    if (session->job)
        nb_embed_vector(session, vector, n);
}

const struct nb_model_events nb_session_events = {
    .on_token = on_token, .on_logits = on_logits, .on_finish = on_finish, .on_vector = on_vector};
