// Submissions: checking them, finding their handler, and what handlers have in common.
#include "daemon/worker/ops.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/serve.h"
#include "engine/arch.h"

static int no_op(struct nb_job *job, const struct nb_submission *submission, const void *desc)
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
    } told = {.head = {.steps = nb_model_steps(c->model->model), .n_ops = NB_OP_KINDS}};
    void *out = nb_channel_range(job->channel, d->out, sizeof(told), alignof(uint64_t));
    if (!out)
        return -EINVAL;
    struct nb_model_info info;
    struct nb_op_time times[NB_OP_KINDS];
    nb_model_info(c->model->model, &info);
    nb_model_times(c->model->model, times);
    told.head.layers = info.n_layers;
    told.head.preparing = !nb_model_is_prepared(c->model->model);
    snprintf(told.head.device, sizeof(told.head.device), "%s", c->serve->device_name);
    for (uint32_t i = 0; i < NB_OP_KINDS; i++) {
        snprintf(told.op[i].op, sizeof(told.op[i].op), "%s", nb_op_names[i]);
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
} jobs[NB_OP_COUNT] = {
    [NB_OP_NOP] = {0, no_op},
    [NB_OP_TOKENIZE] = {sizeof(struct nb_desc_tokenize), nb_op_tokenize},
    [NB_OP_DETOKENIZE] = {sizeof(struct nb_desc_detokenize), nb_op_detokenize},
    [NB_OP_GENERATE] = {sizeof(struct nb_desc_generate), nb_op_generate},
    [NB_OP_SCORE] = {sizeof(struct nb_desc_score), nb_op_score},
    [NB_OP_TENSOR] = {sizeof(struct nb_desc_tensor), nb_op_tensor},
    [NB_OP_GEMM] = {sizeof(struct nb_desc_gemm), nb_op_gemm},
    [NB_OP_DEQUANTIZE] = {sizeof(struct nb_desc_dequantize), nb_op_dequantize},
    [NB_OP_COUNTERS] = {sizeof(struct nb_desc_counters), counters},
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
    if (s->op >= NB_OP_COUNT || !jobs[s->op].run)
        return -EOPNOTSUPP;
    const void *from = nb_channel_range(c, s->desc, s->desc_len, 8);
    if (s->flags || s->region || memcmp(s->reserved, zero, sizeof(zero)) || !from ||
        s->desc_len != jobs[s->op].desc_size)
        return -EINVAL;
    if (c->serve->draining)
        return -ESHUTDOWN;
    memcpy(desc, from, s->desc_len);
    atomic_signal_fence(memory_order_seq_cst); // the copy is the only look
    int r = nb_job_create(c, s->user_data, &job);
    if (r < 0)
        return r;
    r = jobs[s->op].run(job, s, desc);
    if (r < 0)
        nb_job_drop(job);
    return r;
}

void nb_op_run(struct nb_channel *c, const struct nb_submission *submission)
{
    if (submission->op == NB_OP_CANCEL) {
        cancel(c, submission);
    } else if (submission->op == NB_OP_SESSION_CLOSE) {
        close_session(c, submission);
    } else if (!submission->user_data || nb_job_find(c, submission->user_data)) {
        c->broken = true; // no answer could be told from another job's
    } else {
        int r = run_job(c, submission);
        nb_serve_check(c->serve, r); // opening a matrix
        if (r < 0)
            nb_job_refuse(c, submission->user_data, r);
    }
}

static int open_session(struct nb_channel *c, uint32_t id, struct nb_session **ret)
{
    if (id >= NB_SESSIONS_MAX)
        return -EINVAL;
    struct nb_session *session = &c->sessions[id];
    if (session->job)
        return NIBBLE_E_BUSY;
    if (!session->sequence) {
        int r = nb_sequence_create(c->model->model, session, &session->sequence);
        if (r < 0)
            return r;
        atomic_fetch_add(&c->page->sessions, 1);
        atomic_fetch_add(&c->model->page->sessions, 1);
    }
    *ret = session;
    return 0;
}

static int change_log(struct nb_sequence *sequence, const struct nb_log_change *change,
                      const int32_t *tokens)
{
    const int32_t *log = nb_sequence_tokens(sequence);
    uint32_t length = nb_sequence_length(sequence), same = 0;
    if (change->base > length)
        return -EINVAL;
    while (same + 1 < change->n_tokens && change->base + same < length &&
           change->base + same < change->keep && log[change->base + same] == tokens[same])
        same++;
    int r = nb_sequence_set(sequence, change->base + same, tokens + same, change->n_tokens - same);
    return r == -E2BIG ? NIBBLE_E_CONTEXT : r;
}

int nb_op_set_log(struct nb_job *job, const struct nb_log_change *change)
{
    struct nb_channel *c = job->channel;
    struct nb_session *session;
    void *tokens;
    if (!change->n_tokens)
        return -EINVAL;
    if ((uint64_t)change->base + change->n_tokens > c->model->context)
        return NIBBLE_E_CONTEXT;
    int r = open_session(c, change->session, &session);
    if (r < 0)
        return r;
    r = nb_channel_copy(c, change->tokens, (uint64_t)change->n_tokens * sizeof(int32_t),
                        alignof(int32_t), &tokens);
    if (r < 0)
        return r;
    r = change_log(session->sequence, change, tokens);
    free(tokens);
    if (r < 0)
        return r;
    job->session = session;
    session->job = job;
    job->prompt_tokens = nb_sequence_length(session->sequence);
    return 0;
}

int nb_op_start(struct nb_job *job, const struct nb_request *request)
{
    struct nb_sequence *sequence = job->session->sequence;
    int r = nb_sequence_start(sequence, request);
    if (r < 0)
        return r == -E2BIG ? NIBBLE_E_CONTEXT : r;
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
    const struct nb_session *session = user;
    if (session->job)
        nb_generate_finished(session->job, why, error);
}

const struct nb_model_events nb_op_events = {on_token, on_logits, on_finish};
