// Generations: from the descriptor to the engine's request, and from tokens to completions. A
// generation that is submitted again after a worker's death replays the tokens it had: the same
// text comes of them, and what the client has of it is not sent twice.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/ops.h"
#include "daemon/worker/serve.h"
#include "daemon/worker/stream.h"
#include "daemon/worker/worker.h"
#include "engine/tokenizer.h"

#define FLAGS (NB_GENERATE_IGNORE_EOS | NB_GENERATE_LOGPROBS)

// --- text to completions

// At most a completion's worth, cut between characters.
static size_t piece_of(const char *text, size_t len)
{
    const size_t most = sizeof(((struct nb_completion *)0)->text);
    if (len <= most)
        return len;
    size_t n = most;
    while (n && ((unsigned char)text[n] & 0xc0) == 0x80)
        n--;
    return n ? n : most;
}

static void post_text(struct nb_job *job, struct nb_completion *first, struct nb_str text)
{
    struct nb_completion completion = *first;
    bool more = first->kind == NB_COMPLETION_TOKEN || text.len;
    while (more) {
        size_t n = piece_of(text.data, text.len);
        memset(completion.text, 0, sizeof(completion.text));
        if (n)
            memcpy(completion.text, text.data, n);
        completion.text_len = (uint16_t)n;
        nb_channel_post(job->channel, &completion);
        text.data += n;
        text.len -= n;
        completion =
            (struct nb_completion){.user_data = job->user_data, .kind = NB_COMPLETION_TEXT};
        more = text.len > 0;
    }
}

static void post_rest(struct nb_job *job)
{
    struct nb_completion text = {.user_data = job->user_data, .kind = NB_COMPLETION_TEXT};
    post_text(job, &text, nb_stream_end(job->stream));
}

// --- the engine's events

void nb_generate_token(struct nb_job *job, int32_t token, float logprob)
{
    struct nb_str text;
    bool stopped = nb_stream_token(job->stream, token, &text);
    job->generated++;
    if (!job->first_ns)
        job->first_ns = nb_now_ns();
    struct nb_completion completion = {
        .user_data = job->user_data,
        .kind = NB_COMPLETION_TOKEN,
        .token = token,
        .logprob = logprob,
        .a = (uint32_t)text.len,
    };
    atomic_fetch_add_explicit(&job->channel->page->tokens, 1, memory_order_relaxed);
    post_text(job, &completion, text);
    if (!stopped)
        return;
    nb_sequence_stop(job->session->sequence);
    nb_job_finish(job, 0, NIBBLE_FINISH_STOP);
}

void nb_generate_finished(struct nb_job *job, enum nb_finish why, int error)
{
    static const enum nibble_finish finishes[] = {
        [NB_FINISH_NONE] = NIBBLE_FINISH_NONE,     [NB_FINISH_EOS] = NIBBLE_FINISH_EOS,
        [NB_FINISH_LENGTH] = NIBBLE_FINISH_LENGTH, [NB_FINISH_CONTEXT] = NIBBLE_FINISH_CONTEXT,
        [NB_FINISH_SCORED] = NIBBLE_FINISH_NONE,   [NB_FINISH_ERROR] = NIBBLE_FINISH_ERROR,
    };
    if (job->stream)
        post_rest(job);
    nb_job_finish(job, error, finishes[why]);
}

// --- the descriptor

static int make_stream(struct nb_job *job, const struct nb_desc_generate *d)
{
    const struct nb_tokenizer *tokenizer = nb_model_tokenizer(job->channel->model->model);
    void *stops;
    if (d->n_stop > NB_STOP_MAX || d->stop_len > NB_STOP_MAX * (4 + NB_STOP_LEN_MAX))
        return -EINVAL;
    int r = nb_channel_copy(job->channel, d->stop, d->stop_len, 1, &stops);
    if (r < 0)
        return r;
    r = nb_stream_create(tokenizer, stops, d->stop_len, d->n_stop, d->text_skip, &job->stream);
    free(stops);
    return r;
}

// Feeds the tokens that the job had generated before its worker died. Returns why it was over with
// them already, or NB_FINISH_NONE; *ret_stopped for a stop string.
static enum nb_finish replay(struct nb_job *job, const struct nb_desc_generate *d,
                             bool *ret_stopped)
{
    const struct nb_worker_model *m = job->channel->model;
    const struct nb_tokenizer *tokenizer = nb_model_tokenizer(m->model);
    const int32_t *log = nb_sequence_tokens(job->session->sequence);
    uint32_t length = nb_sequence_length(job->session->sequence);
    bool eos = false;
    *ret_stopped = false;
    job->prompt_tokens = length - d->n_replay;
    for (uint32_t i = length - d->n_replay; i < length && !*ret_stopped && !eos; i++) {
        struct nb_completion completion = {.user_data = job->user_data, .kind = NB_COMPLETION_TEXT};
        struct nb_str text;
        *ret_stopped = nb_stream_token(job->stream, log[i], &text);
        eos = !(d->flags & NB_GENERATE_IGNORE_EOS) && nb_tokenizer_is_eog(tokenizer, log[i]);
        job->generated++;
        post_text(job, &completion, text);
    }
    if (eos)
        return NB_FINISH_EOS;
    if (d->max_tokens && job->generated >= d->max_tokens)
        return NB_FINISH_LENGTH;
    return d->n_replay && length >= m->context ? NB_FINISH_CONTEXT : NB_FINISH_NONE;
}

int nb_op_generate(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    const struct nb_desc_generate *d = desc;
    struct nb_request request = {
        .max_tokens = UINT32_MAX,
        .ignore_eos = d->flags & NB_GENERATE_IGNORE_EOS,
        .sampling = {.temperature = d->temperature,
                     .top_k = d->top_k,
                     .top_p = d->top_p,
                     .min_p = d->min_p,
                     .repeat_penalty = d->repeat_penalty,
                     .repeat_window = d->repeat_window,
                     .seed = d->seed,
                     .logprobs = d->flags & NB_GENERATE_LOGPROBS},
    };
    const struct nb_log_change change = {.session = submission->session,
                                         .base = d->base,
                                         .n_tokens = d->n_tokens,
                                         .keep = UINT32_MAX,
                                         .tokens = d->tokens};
    if (d->flags & ~FLAGS || nb_sampling_check(&request.sampling) < 0)
        return -EINVAL;
    if (d->n_replay > (uint64_t)d->base + d->n_tokens)
        return -EINVAL;
    int r = make_stream(job, d);
    if (r == 0)
        r = nb_op_set_log(job, &change);
    if (r < 0)
        return r;
    bool stopped;
    enum nb_finish over = replay(job, d, &stopped);
    if (stopped)
        nb_job_finish(job, 0, NIBBLE_FINISH_STOP);
    else if (over != NB_FINISH_NONE)
        nb_generate_finished(job, over, 0);
    if (stopped || over != NB_FINISH_NONE)
        return 0;
    if (d->max_tokens)
        request.max_tokens = d->max_tokens - d->n_replay;
    return nb_op_start(job, &request);
}
