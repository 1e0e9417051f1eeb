// Embeddings: from the descriptor to token ids, from these to sequences of the engine, and vectors
// to where the client wants them.
#include "daemon/worker/embed.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/submissions.h"
#include "daemon/worker/serve.h"
#include "daemon/worker/text.h"
#include "daemon/worker/worker.h"

#define FLAGS (NB_EMBED_TOKENS | NB_EMBED_PLAIN | NB_EMBED_TRUNCATE)

struct nb_embed {
    struct nb_embed *next; // of the channel
    struct nb_job *job;
    struct nb_desc_embed desc;
    float *out;
    uint32_t *length; // of each text: in bytes or ids, then in tokens that are embedded
    struct nb_tokens tokens;
    uint64_t at; // in tokens: of the next text
    uint32_t started, done;
    uint64_t charged; // of the channel's text_bytes
};

struct nb_lane {
    struct nb_session session; // the engine's user; without a place in the channel's table
    uint32_t text;
};

// --- a job's life

// What it was about is over: its KV blocks are free.
static void end_lane(struct nb_session *lane)
{
    lane->job = NULL;
    nb_sequence_stop(lane->sequence);
    nb_sequence_set(lane->sequence, 0, NULL, 0);
}

static void unlink_embed(struct nb_embed *e)
{
    struct nb_embed **at = &e->job->channel->first_embed;
    while (*at && *at != e)
        at = &(*at)->next;
    if (*at)
        *at = e->next;
}

void nb_embed_destroy(struct nb_embed *e)
{
    if (!e)
        return;
    struct nb_channel *c = e->job->channel;
    for (uint32_t i = 0; c->lanes && i < NB_EMBED_LANES; i++) {
        if (c->lanes[i].session.job == e->job)
            end_lane(&c->lanes[i].session);
    }
    unlink_embed(e);
    c->text_bytes -= e->charged;
    nb_tokens_finish(&e->tokens);
    free(e->length);
    free(e);
}

void nb_embed_progress(const struct nb_embed *e, uint32_t *ret_done, uint32_t *ret_total)
{
    *ret_done = e->done;
    *ret_total = e->desc.n;
}

static void finish(struct nb_embed *e, int32_t status, uint32_t text)
{
    nb_job_done(e->job, status, status < 0 ? NIBBLE_FINISH_ERROR : NIBBLE_FINISH_NONE, text, 0);
}

// --- from tokens to the queue

// Cuts what is too long, so that the model's own end of a text stays. The status of a text that
// cannot be embedded, with its reason.
static int fit(struct nb_embed *e, int32_t *ids, uint32_t *n)
{
    struct nb_channel *c = e->job->channel;
    const uint32_t longest = c->model->longest_embedded;
    if (!*n)
        return nb_refuse(c, -EINVAL, "a text without a token has no vector");
    if (*n <= longest)
        return 0;
    if (!(e->desc.flags & NB_EMBED_TRUNCATE))
        return nb_refuse(c, NIBBLE_E_CONTEXT,
                         "%u tokens are more than the %u that the model embeds at once: shorten "
                         "the text, or have it cut (--truncate)",
                         *n, longest);
    if (nb_tokenizer_add_eos(nb_model_tokenizer(c->model->model)))
        ids[longest - 1] = ids[*n - 1];
    *n = longest;
    return 0;
}

static int check_ids(struct nb_channel *c, const int32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= c->model->vocab)
            return nb_refuse(c, -EINVAL, "token %d at %u: the model has 0 to %u", ids[i], i,
                             c->model->vocab - 1);
    return 0;
}

// Tells how many tokens the texts have, and makes of e->tokens what is embedded, without holes.
// Returns a status; *ret_text is the text that it is about.
static int take_tokens(struct nb_embed *e, uint32_t *counts, uint32_t *ret_text)
{
    int32_t *from = e->tokens.id, *to = from;
    for (uint32_t i = 0; i < e->desc.n; i++) {
        const uint32_t n = e->length[i]; // NOLINT(*NullDereference)
        int rc = check_ids(e->job->channel, from, n);
        if (rc == 0)
            rc = fit(e, from, &e->length[i]);
        *ret_text = i + 1;
        if (rc < 0)
            return rc;
        counts[i] = n;
        memmove(to, from, e->length[i] * sizeof(*to));
        to += e->length[i];
        from += n;
    }
    return 0;
}

static void queue(struct nb_embed *e)
{
    struct nb_channel *c = e->job->channel;
    struct nb_embed **end = &c->first_embed;
    void *counts = nb_channel_range(c, e->desc.counts, e->desc.n * sizeof(uint32_t), 4);
    uint32_t text = 0;
    int rc = take_tokens(e, counts, &text);
    if (rc < 0) {
        finish(e, rc, text);
        return;
    }
    e->charged = e->desc.input_len;
    c->text_bytes += e->charged;
    while (*end)
        end = &(*end)->next;
    *end = e;
}

// --- texts to tokens, perhaps on the helper's thread

static void run_texts(struct nb_text_task *t)
{
    const char *text = t->text;
    for (uint32_t i = 0; i < t->n_texts && t->status == 0 && !atomic_load(&t->stop); i++) {
        const size_t before = t->tokens.n;
        t->status = nb_tokenizer_encode(t->tokenizer, text, t->length[i], false, true, &t->tokens);
        if (t->status < 0)
            nb_text_explain(t, t->length[i]);
        t->failed = i + 1;
        text += t->length[i];
        t->length[i] = (uint32_t)(t->tokens.n - before);
    }
}

static void texts_done(struct nb_job *job, struct nb_text_task *t)
{
    struct nb_embed *e = job->embed;
    job->text = NULL;
    if (t->status < 0) {
        nb_reason(job->channel, "%s", t->error.text);
        finish(e, t->status, t->failed);
        return;
    }
    e->tokens = t->tokens;
    e->length = t->length;
    t->tokens = (struct nb_tokens){0};
    t->length = NULL;
    queue(e);
}

static const struct nb_text_kind texts_kind = {.run = run_texts, .answer = texts_done};

// --- the descriptor

static int check_lengths(struct nb_channel *c, const struct nb_desc_embed *d,
                         const uint32_t *lengths)
{
    const uint64_t unit = d->flags & NB_EMBED_TOKENS ? sizeof(int32_t) : 1;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < d->n; i++)
        sum += lengths[i] * unit;
    if (sum != d->input_len)
        return nb_refuse(c, -EINVAL, "the lengths of %u texts are %" PRIu64 " bytes, not %" PRIu64,
                         d->n, sum, d->input_len);
    return 0;
}

static int check(struct nb_channel *c, const struct nb_desc_embed *d, float **ret_out)
{
    if (!d->n || d->n > NB_EMBED_TEXTS)
        return nb_refuse(c, -EINVAL, "n is %u: 1 to %u texts", d->n, NB_EMBED_TEXTS);
    if (d->flags & ~FLAGS)
        return nb_refuse(c, -EINVAL, "flags are %#x: at most %#x", d->flags, FLAGS);
    if (!nb_channel_range(c, d->counts, d->n * sizeof(uint32_t), alignof(uint32_t)))
        return nb_refuse(c, -EINVAL,
                         "counts of %u at %" PRIu64 ": not all within the %" PRIu64
                         " bytes of the arena, aligned to 4",
                         d->n, d->counts, c->arena_bytes);
    const uint64_t bytes = (uint64_t)d->n * c->model->embedding * sizeof(float);
    *ret_out = nb_region_range(c, &d->out, bytes, alignof(float), true);
    if (!*ret_out)
        return nb_refuse(c, -EFAULT,
                         "out: %" PRIu64 " bytes at %" PRIu64
                         " are not all within region %u, aligned to 4 and to be written",
                         bytes, d->out.offset, d->out.region);
    return nb_text_check(c, d->input_len);
}

// Private copies of the input and its lengths.
static int copy_input(struct nb_channel *c, const struct nb_desc_embed *d, void **ret_input,
                      uint32_t **ret_lengths)
{
    const size_t align = d->flags & NB_EMBED_TOKENS ? alignof(int32_t) : 1;
    void *lengths = NULL, *input = NULL;
    int rc = nb_channel_copy(c, "lengths", d->lengths, d->n * sizeof(uint32_t), alignof(uint32_t),
                             &lengths);
    if (rc < 0)
        return rc;
    rc = check_lengths(c, d, lengths);
    if (rc == 0)
        rc = nb_channel_copy(c, "input", d->input, d->input_len, align, &input);
    if (rc < 0) {
        free(lengths);
        return rc;
    }
    *ret_input = input;
    *ret_lengths = lengths;
    return 0;
}

// Takes the copies over. -ENOMEM.
static int begin(struct nb_job *job, void *input, uint32_t *lengths)
{
    struct nb_embed *e = job->embed;
    if (e->desc.flags & NB_EMBED_TOKENS) {
        const size_t n = e->desc.input_len / sizeof(int32_t);
        e->tokens = (struct nb_tokens){.id = input, .n = n, .capacity = n};
        e->length = lengths;
        queue(e);
        return 0;
    }
    struct nb_text_task *t = nb_text_task_create(job, &texts_kind, input, e->desc.input_len);
    if (!t) {
        free(input);
        free(lengths);
        return -ENOMEM;
    }
    t->length = lengths;
    t->n_texts = e->desc.n;
    nb_text_submit(job, t);
    return 0;
}

int nb_on_embed(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    struct nb_channel *c = job->channel;
    struct nb_embed *e = calloc(1, sizeof(*e));
    uint32_t *lengths = NULL;
    void *input = NULL;
    if (!e)
        return -ENOMEM;
    job->embed = e; // the job's end destroys it
    e->job = job;
    memcpy(&e->desc, desc, sizeof(e->desc));
    if (!c->lanes)
        c->lanes = calloc(NB_EMBED_LANES, sizeof(*c->lanes));
    int rc = c->lanes ? check(c, &e->desc, &e->out) : -ENOMEM;
    if (rc == 0)
        rc = copy_input(c, &e->desc, &input, &lengths);
    return rc < 0 ? rc : begin(job, input, lengths);
}

// --- lanes

static struct nb_embed *next_embed(const struct nb_channel *c)
{
    struct nb_embed *e = c->first_embed;
    while (e && e->started == e->desc.n)
        e = e->next;
    return e;
}

static int start(struct nb_channel *c, struct nb_lane *lane, struct nb_embed *e)
{
    const uint32_t n = e->length[e->started];
    const struct nb_request request = {.embed = true,
                                       .normalise = !(e->desc.flags & NB_EMBED_PLAIN),
                                       .sampling = NB_SAMPLING_GREEDY};
    struct nb_session *s = &lane->session;
    int rc = s->sequence ? 0 : nb_sequence_create(c->model->model, s, &s->sequence);
    if (rc == 0)
        nb_sequence_adapt(s->sequence, c->model->adapter);
    if (rc == 0)
        rc = nb_sequence_set(s->sequence, 0, e->tokens.id + e->at, n);
    if (rc == 0)
        rc = nb_sequence_start(s->sequence, &request);
    if (rc < 0)
        return rc;
    s->channel = c;
    s->job = e->job;
    lane->text = e->started++;
    e->at += n;
    return 0;
}

// A text for the lane, if there is one.
static void feed(struct nb_channel *c, struct nb_lane *lane, uint64_t now)
{
    struct nb_embed *e = next_embed(c);
    if (!e)
        return;
    nb_job_started(e->job, now);
    int rc = start(c, lane, e);
    if (rc == 0)
        return;
    nb_reason(c, "no memory for the text");
    finish(e, rc, e->started + 1);
}

bool nb_embed_admit(struct nb_channel *c, uint64_t now)
{
    bool taking_part = false;
    for (uint32_t i = 0; c->first_embed && i < NB_EMBED_LANES; i++) {
        struct nb_lane *lane = &c->lanes[i];
        if (!lane->session.job && !c->held)
            feed(c, lane, now);
        if (!lane->session.job)
            continue;
        nb_sequence_park(lane->session.sequence, c->held);
        taking_part |= !c->held;
    }
    return taking_part;
}

void nb_embed_vector(const struct nb_session *session, const float *vector, uint32_t n)
{
    const struct nb_lane *lane = (const struct nb_lane *)session; // its first member
    memcpy(session->job->embed->out + (size_t)lane->text * n, vector, n * sizeof(*vector));
}

void nb_embed_finished(struct nb_session *session, int error)
{
    const struct nb_lane *lane = (const struct nb_lane *)session;
    struct nb_embed *e = session->job->embed;
    end_lane(session);
    if (error < 0) {
        nb_reason(e->job->channel, "%s", nb_sequence_error(session->sequence));
        finish(e, error == -EBADMSG ? NIBBLE_E_FORMAT : error, lane->text + 1);
    } else if (++e->done == e->desc.n) {
        finish(e, 0, 0);
    }
}

void nb_embed_forget(struct nb_channel *c, uint32_t region)
{
    for (uint32_t i = 0; region && i < NB_JOBS_MAX; i++)
        if (c->jobs[i].embed && c->jobs[i].embed->desc.out.region == region)
            nb_job_cancel(&c->jobs[i]);
}

void nb_embed_close(struct nb_channel *c)
{
    for (uint32_t i = 0; c->lanes && i < NB_EMBED_LANES; i++)
        nb_sequence_destroy(c->lanes[i].session.sequence);
    free(c->lanes);
}
