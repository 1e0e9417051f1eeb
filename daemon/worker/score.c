// Scores: log-probabilities or whole rows of logits of given tokens, written to the client's arena
// as the rows come.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "daemon/worker/submissions.h"
#include "daemon/worker/serve.h"

// log softmax(logits)[token]; the sum in double, in the order of the vocabulary.
static float log_probability(const float *logits, uint32_t vocab, int32_t token)
{
    float max = logits[0];
    for (uint32_t i = 1; i < vocab; i++)
        max = logits[i] > max ? logits[i] : max;
    double sum = expf(logits[0] - max);
    for (uint32_t i = 1; i < vocab; i++)
        sum += expf(logits[i] - max);
    return (float)((double)(logits[token] - max) - log(sum));
}

void nb_score_row(struct nb_job *job, uint32_t position, const float *logits, uint32_t vocab)
{
    const struct nb_score *s = &job->score;
    if (position < s->first || position >= s->end)
        return;
    uint64_t row = position - s->first;
    if (s->what == NB_SCORE_LOGITS) {
        size_t bytes = vocab * sizeof(float);
        void *out = nb_channel_range(job->channel, s->out + row * bytes, bytes, alignof(float));
        if (out)
            memcpy(out, logits, bytes);
        return;
    }
    int32_t next = nb_sequence_tokens(job->session->sequence)[position + 1];
    float p = log_probability(logits, vocab, next);
    void *out = nb_channel_range(job->channel, s->out + row * sizeof(p), sizeof(p), alignof(float));
    if (out)
        memcpy(out, &p, sizeof(p));
}

// The results must all fit where the client wants them.
static int check_out(const struct nb_job *job, const struct nb_desc_score *d, uint32_t rows)
{
    uint64_t row = d->what == NB_SCORE_LOGITS ? job->channel->model->vocab : 1;
    uint64_t bytes = rows * row * sizeof(float);
    if (bytes > d->out_len || !nb_channel_range(job->channel, d->out, bytes, alignof(float)))
        return nb_refuse(job->channel, -ENOSPC,
                         "%u rows take %" PRIu64 " bytes: out has %" PRIu64 " at %" PRIu64
                         " of the arena",
                         rows, bytes, d->out_len, d->out);
    return 0;
}

int nb_on_score(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    const struct nb_desc_score *d = desc;
    uint64_t n = (uint64_t)d->base + d->n_tokens;
    int rc = nb_check_context(job->channel, n);
    if (rc < 0)
        return rc;
    if (d->what > NB_SCORE_LOGITS)
        return nb_refuse(job->channel, -EINVAL, "what is %u: 0 or 1", d->what);
    if (d->first < d->base || d->first >= n)
        return nb_refuse(job->channel, -EINVAL,
                         "first is %u: from base, %u, to the log's last token, %" PRIu64, d->first,
                         d->base, n ? n - 1 : 0);
    uint32_t end = (uint32_t)n - (d->what == NB_SCORE_LOGPROBS);
    rc = check_out(job, d, end - d->first);
    if (rc < 0)
        return rc;
    const struct nb_log_change change = {.session = submission->session,
                                         .base = d->base,
                                         .n_tokens = d->n_tokens,
                                         .keep = d->first,
                                         .tokens = d->tokens};
    rc = nb_job_set_log(job, &change);
    if (rc < 0)
        return rc;
    job->score = (struct nb_score){.what = d->what, .first = d->first, .end = end, .out = d->out};
    const struct nb_request request = {
        .score = true, .score_from = d->first, .sampling = NB_SAMPLING_GREEDY};
    return nb_job_start(job, &request);
}
