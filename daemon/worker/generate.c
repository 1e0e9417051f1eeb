// Generations: from the descriptor to the engine's request, and from tokens to completions. A
// generation that is submitted again after a worker's death replays the tokens it had: the same
// text comes of them, and what the client has of it is not sent twice.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/submissions.h"
#include "daemon/worker/serve.h"
#include "daemon/worker/stream.h"
#include "daemon/worker/worker.h"
#include "engine/text/tokenizer.h"
#include "libclient/sampling.h"
#include "tensor/fail.h"

#define DRAFTS (NB_GENERATE_DRAFTS_OFF | NB_GENERATE_DRAFTS_ALWAYS)
#define FLAGS  (NB_GENERATE_IGNORE_EOS | NB_GENERATE_LOGPROBS | DRAFTS)

_Static_assert(NB_SAMPLING_WINDOW_MAX == NB_REPEAT_WINDOW_MAX, "what a client is told");

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

// Text of one kind: `first` with its beginning, the rest in TEXTs of that kind.
static void post_text(struct nb_job *job, const struct nb_completion *first, struct nb_str text)
{
    struct nb_completion completion = *first;
    completion.a = first->kind == NB_COMPLETION_TOKEN ? (uint32_t)text.len : 0;
    do {
        size_t n = piece_of(text.data, text.len);
        memset(completion.text, 0, sizeof(completion.text));
        if (n)
            memcpy(completion.text, text.data, n);
        completion.text_len = (uint16_t)n;
        nb_channel_post(job->channel, &completion);
        text.data += n;
        text.len -= n;
        completion = (struct nb_completion){
            .user_data = job->user_data, .kind = NB_COMPLETION_TEXT, .b = first->b};
    } while (text.len > 0);
}

// All that the stream has ready, as text alone.
static void post_rest(struct nb_job *job)
{
    struct nb_str text;
    bool reasoning;
    while (nb_stream_next(job->stream, &text, &reasoning)) {
        const struct nb_completion completion = {.user_data = job->user_data,
                                                 .kind = NB_COMPLETION_TEXT,
                                                 .b = reasoning ? NB_TEXT_REASONING : 0};
        post_text(job, &completion, text);
    }
}

// --- the engine's events

void nb_generate_token(struct nb_job *job, int32_t token, float logprob)
{
    struct nb_str text;
    bool reasoning, stopped = nb_stream_token(job->stream, token);
    job->generated++;
    if (!job->first_ns)
        job->first_ns = nb_now_ns();
    if (!nb_stream_next(job->stream, &text, &reasoning))
        reasoning = nb_stream_reasons(job->stream);
    const struct nb_completion completion = {
        .user_data = job->user_data,
        .kind = NB_COMPLETION_TOKEN,
        .token = token,
        .logprob = logprob,
        .b = reasoning ? NB_TEXT_REASONING : 0,
    };
    atomic_fetch_add_explicit(&job->channel->page->tokens, 1, memory_order_relaxed);
    post_text(job, &completion, text);
    post_rest(job);
    if (!stopped)
        return;
    nb_sequence_stop(job->session->sequence);
    nb_job_finish(job, 0, NIBBLE_FINISH_STOP);
}

void nb_generate_finished(struct nb_job *job, enum nb_finish why, int error)
{
    const int32_t status = error == -EBADMSG ? NIBBLE_E_FORMAT : error;
    static const enum nibble_finish finishes[] = {
        [NB_FINISH_NONE] = NIBBLE_FINISH_NONE,     [NB_FINISH_EOS] = NIBBLE_FINISH_EOS,
        [NB_FINISH_LENGTH] = NIBBLE_FINISH_LENGTH, [NB_FINISH_CONTEXT] = NIBBLE_FINISH_CONTEXT,
        [NB_FINISH_SCORED] = NIBBLE_FINISH_NONE,   [NB_FINISH_ERROR] = NIBBLE_FINISH_ERROR,
    };
    if (job->stream) {
        nb_stream_end(job->stream);
        post_rest(job);
    }
    if (error) {
        const char *why_not = nb_sequence_error(job->session->sequence);
        nb_reason(job->channel, "%s", *why_not ? why_not : strerror(-error));
    }
    nb_job_finish(job, status, finishes[why]);
}

// --- the descriptor

static int make_stream(struct nb_job *job, const struct nb_desc_generate *d)
{
    const struct nb_tokenizer *tokenizer = nb_model_tokenizer(job->channel->model->model);
    void *stops;
    struct nb_error error;
    if (d->n_stop > NB_STOP_MAX)
        return nb_refuse(job->channel, -EINVAL, "%u stop strings: at most %u", d->n_stop,
                         NB_STOP_MAX);
    if (d->stop_len > NB_STOP_MAX * (4 + NB_STOP_LEN_MAX))
        return nb_refuse(job->channel, -EINVAL, "stop_len is %" PRIu64 ": at most %u", d->stop_len,
                         NB_STOP_MAX * (4 + NB_STOP_LEN_MAX));
    int rc = nb_channel_copy(job->channel, "stop strings", d->stop, d->stop_len, 1, &stops);
    if (rc < 0)
        return rc;
    const struct nb_stream_options options = {.stops = stops,
                                              .stops_len = d->stop_len,
                                              .n_stops = d->n_stop,
                                              .think_pairs = job->channel->model->think_pairs,
                                              .skip = d->text_skip};
    rc = nb_stream_create(tokenizer, &options, &job->stream, &error);
    free(stops);
    return rc == -EINVAL ? nb_refuse(job->channel, rc, "%s", error.text) : rc;
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
        *ret_stopped = nb_stream_token(job->stream, log[i]);
        eos = !(d->flags & NB_GENERATE_IGNORE_EOS) && nb_tokenizer_is_eog(tokenizer, log[i]);
        job->generated++;
        post_rest(job);
    }
    if (eos)
        return NB_FINISH_EOS;
    if (d->max_tokens && job->generated >= d->max_tokens)
        return NB_FINISH_LENGTH;
    return d->n_replay && length >= m->context ? NB_FINISH_CONTEXT : NB_FINISH_NONE;
}

static int check(struct nb_channel *c, const struct nb_desc_generate *d)
{
    const struct nibble_sampling sampling = {.temperature = d->temperature,
                                             .top_p = d->top_p,
                                             .min_p = d->min_p,
                                             .repeat_penalty = d->repeat_penalty,
                                             .repeat_window = d->repeat_window};
    char sentence[NB_REASON_MAX];
    uint64_t n = (uint64_t)d->base + d->n_tokens;
    if (nb_sampling_fault(&sampling, sentence, sizeof(sentence)) < 0)
        return nb_refuse(c, -EINVAL, "%s", sentence);
    if (d->flags & ~FLAGS)
        return nb_refuse(c, -EINVAL, "flags are %#x: at most %#x", d->flags, FLAGS);
    if ((d->flags & DRAFTS) == DRAFTS)
        return nb_refuse(c, -EINVAL, "drafts are asked for both never and always: choose one");
    if (d->n_replay > n)
        return nb_refuse(c, -EINVAL, "n_replay is %u: the log has %" PRIu64 " tokens", d->n_replay,
                         n);
    return 0;
}

static enum nb_drafts drafts_of(const struct nb_channel *c, uint32_t flags)
{
    if (flags & NB_GENERATE_DRAFTS_OFF || !c->model->drafts)
        return NB_DRAFTS_OFF;
    return flags & NB_GENERATE_DRAFTS_ALWAYS ? NB_DRAFTS_ALWAYS : NB_DRAFTS_MEASURED;
}

int nb_on_generate(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    const struct nb_desc_generate *d = desc;
    struct nb_request request = {
        .max_tokens = UINT32_MAX,
        .ignore_eos = d->flags & NB_GENERATE_IGNORE_EOS,
        .drafts = drafts_of(job->channel, d->flags),
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
    int rc = check(job->channel, d);
    if (rc == 0)
        rc = make_stream(job, d);
    if (rc == 0)
        rc = nb_job_set_log(job, &change);
    if (rc == 0)
        rc = nb_stream_begin(job->stream, nb_sequence_tokens(job->session->sequence),
                             job->prompt_tokens - d->n_replay);
    if (rc < 0)
        return rc;
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
    return nb_job_start(job, &request);
}
