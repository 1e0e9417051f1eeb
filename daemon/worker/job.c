// The job table and what every job has in common: its life, its timings, its last completion.
#include "daemon/worker/job.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/channel.h"
#include "daemon/worker/embed.h"
#include "daemon/worker/matrices.h"
#include "daemon/worker/stream.h"
#include "daemon/worker/text.h"
#include "daemon/worker/worker.h"
#include "engine/engine.h"

struct nb_job *nb_job_find(struct nb_channel *c, uint64_t user_data)
{
    for (uint32_t i = 0; c->n_jobs && i < NB_JOBS_MAX; i++)
        if (c->jobs[i].user_data == user_data)
            return &c->jobs[i];
    return NULL;
}

int nb_job_create(struct nb_channel *c, uint64_t user_data, struct nb_job **ret)
{
    if (!user_data || nb_job_find(c, user_data))
        return -EPROTO;
    for (uint32_t i = 0; i < NB_JOBS_MAX; i++) {
        if (c->jobs[i].user_data)
            continue;
        c->jobs[i] =
            (struct nb_job){.user_data = user_data, .channel = c, .submitted_ns = nb_now_ns()};
        c->n_jobs++;
        atomic_store_explicit(&c->page->jobs, c->n_jobs, memory_order_relaxed);
        *ret = &c->jobs[i];
        return 0;
    }
    return nb_refuse(c, NIBBLE_E_QUOTA, "a channel has at most %u jobs at a time", NB_JOBS_MAX);
}

void nb_job_drop(struct nb_job *job)
{
    struct nb_channel *c = job->channel;
    if (job->session)
        job->session->job = NULL;
    nb_stream_destroy(job->stream);
    nb_embed_destroy(job->embed);
    nb_matrix_job_destroy(job->matrix_job);
    *job = (struct nb_job){0};
    c->n_jobs--;
    atomic_store_explicit(&c->page->jobs, c->n_jobs, memory_order_relaxed);
}

// The sentence goes before its DONE, in as many pieces as it takes.
static void post_reason(struct nb_channel *c, uint64_t user_data, int32_t status)
{
    size_t len = status < 0 ? strlen(c->reason) : 0;
    for (size_t at = 0; at < len;) {
        struct nb_completion piece = {.user_data = user_data, .kind = NB_COMPLETION_REASON};
        size_t n = len - at < sizeof(piece.text) ? len - at : sizeof(piece.text);
        memcpy(piece.text, c->reason + at, n);
        piece.text_len = (uint16_t)n;
        nb_channel_post(c, &piece);
        at += n;
    }
    c->reason[0] = 0;
}

void nb_job_done(struct nb_job *job, int32_t status, enum nibble_finish finish, uint32_t a,
                 uint32_t b)
{
    uint64_t now = nb_now_ns();
    uint64_t started = job->started_ns ? job->started_ns : now;
    uint64_t first = job->first_ns ? job->first_ns : now;
    uint32_t proposed = 0, accepted = 0;
    if (job->session)
        nb_sequence_drafts(job->session->sequence, &proposed, &accepted);
    const struct nb_completion done = {
        .user_data = job->user_data,
        .kind = NB_COMPLETION_DONE,
        .status = status,
        .proposed = proposed,
        .accepted = accepted,
        .a = a,
        .b = b,
        .done = {.finish = finish,
                 .cached_tokens = job->cached,
                 .queue_ns = started - job->submitted_ns,
                 .prefill_ns = first - started,
                 .decode_ns = now - first},
    };
    post_reason(job->channel, job->user_data, status);
    nb_channel_post(job->channel, &done);
    nb_job_drop(job);
}

void nb_job_finish(struct nb_job *job, int32_t status, enum nibble_finish finish)
{
    nb_job_done(job, status, finish, job->prompt_tokens, job->generated);
}

void nb_job_cancel(struct nb_job *job)
{
    if (job->session)
        nb_sequence_stop(job->session->sequence);
    if (job->text)
        nb_text_cancel(job->text);
    nb_job_finish(job, NIBBLE_E_CANCELLED, NIBBLE_FINISH_ERROR);
}

void nb_job_refuse(struct nb_channel *c, uint64_t user_data, int32_t status)
{
    const struct nb_completion done = {
        .user_data = user_data,
        .kind = NB_COMPLETION_DONE,
        .status = status,
        .done = {.finish = NIBBLE_FINISH_ERROR},
    };
    post_reason(c, user_data, status);
    nb_channel_post(c, &done);
}

void nb_job_started(struct nb_job *job, uint64_t now)
{
    if (!job->started_ns)
        job->started_ns = now;
}

void nb_job_progress(struct nb_job *job)
{
    if (!(job->stream || job->embed) || job->first_ns)
        return; // a score tells none, a generation none after its prefill
    uint32_t computed, total;
    if (job->embed) {
        nb_embed_progress(job->embed, &computed, &total);
    } else {
        computed = nb_sequence_computed(job->session->sequence);
        total = nb_sequence_length(job->session->sequence);
    }
    if (computed <= job->computed || computed >= total)
        return;
    job->computed = computed;
    const struct nb_completion progress = {
        .user_data = job->user_data,
        .kind = NB_COMPLETION_PREFILL,
        .a = computed,
        .b = total,
    };
    nb_channel_post(job->channel, &progress);
}
