// The worker's half of fake.h. The model is a toy with the properties that the tests need: a token
// is a byte, the next one depends on those before it, the position and the seed, and nothing else,
// so that any worker goes on in the same way.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/wire/fake_inside.h"

static struct nb_ring_indices *indices(struct fake_channel *channel)
{
    return (struct nb_ring_indices *)(void *)channel->map;
}

static unsigned char *arena(struct fake_channel *channel, uint64_t at)
{
    return channel->map + NB_CHANNEL_ARENA_OFFSET + at;
}

static void post(struct fake *fake, struct fake_channel *channel, struct nb_completion completion)
{
    struct nb_completion *entries = (void *)(channel->map + NB_CHANNEL_CQ_OFFSET);
    if (fake->spoil)
        fake->spoil(channel, &completion);
    entries[channel->cq_tail & (NB_CQ_ENTRIES - 1)] = completion;
    channel->cq_tail++;
    if (nb_ring_publish(&indices(channel)->cq_tail, channel->cq_tail,
                        &indices(channel)->client_sleeps))
        nb_wake_send(channel->sock);
}

static void post_done(struct fake *fake, struct fake_channel *channel, uint64_t user_data,
                      int status, uint32_t a)
{
    post(fake, channel,
         (struct nb_completion){
             .user_data = user_data, .kind = NB_COMPLETION_DONE, .status = status, .a = a});
}

// True: something happened that ends this round.
static bool countdown(_Atomic int *counter)
{
    return atomic_load(counter) > 0 && atomic_fetch_sub(counter, 1) == 1;
}

// False: the worker died in the middle of its sentence.
static bool refuse(struct fake *fake, struct fake_channel *channel, uint64_t user_data)
{
    size_t len = strlen(fake->refuse);
    for (size_t at = 0; at < len; at += 32) {
        struct nb_completion piece = {.user_data = user_data, .kind = NB_COMPLETION_REASON};
        piece.text_len = (uint16_t)(len - at < 32 ? len - at : 32);
        memcpy(piece.text, fake->refuse + at, piece.text_len);
        post(fake, channel, piece);
        if (countdown(&fake->die_in_reason))
            return false;
    }
    post_done(fake, channel, user_data, fake->refuse_status, 0);
    return true;
}

static bool is_order(const struct nb_submission *submission)
{
    return submission->op == NB_SUBMIT_CANCEL || submission->op == NB_SUBMIT_SESSION_CLOSE;
}

static uint32_t put_tokens(int32_t *out, uint32_t max, uint32_t n, const void *text, uint64_t size)
{
    const unsigned char *bytes = text;
    for (uint64_t i = 0; i < size; i++, n++)
        if (n < max)
            out[n] = bytes[i];
    return n;
}

static uint32_t put_token(int32_t *out, uint32_t max, uint32_t n, int32_t token)
{
    if (n < max)
        out[n] = token;
    return n + 1;
}

// A conversation is its JSON, between two marks: what the library wrote is there for tests to read.
static uint32_t render(const unsigned char *text, uint64_t size, int32_t *out, uint32_t max)
{
    uint32_t n = put_token(out, max, 0, FAKE_OPEN);
    n = put_tokens(out, max, n, text, size);
    return put_token(out, max, n, FAKE_SHUT);
}

static void tokenize(struct fake *fake, struct fake_channel *channel,
                     const struct nb_submission *submission)
{
    struct nb_desc_tokenize desc;
    memcpy(&desc, arena(channel, submission->desc), sizeof(desc));
    uint64_t unit = desc.flags & NB_TEXT_RENDER ? 1 : 4;
    if (desc.text + desc.text_len > channel->arena ||
        desc.out + desc.out_max * unit > channel->arena || desc.out % unit)
        fake_violation(fake, "a TOKENIZE outside the arena");
    const unsigned char *text = arena(channel, desc.text);
    int32_t *out = (void *)arena(channel, desc.out);
    uint32_t n = 0;
    atomic_fetch_add(&fake->n_tokenizes, 1);
    if (desc.flags & NB_TEXT_RENDER) {
        n = (uint32_t)desc.text_len;
        memcpy(out, text, n < desc.out_max ? n : desc.out_max);
    } else if (desc.flags & NB_TEXT_CHAT) {
        n = render(text, desc.text_len, out, desc.out_max);
    } else {
        if (desc.flags & NB_TEXT_BOS)
            n = put_token(out, desc.out_max, n, FAKE_BOS);
        n = put_tokens(out, desc.out_max, n, text, desc.text_len);
    }
    post_done(fake, channel, submission->user_data, 0, n);
}

static void detokenize(struct fake *fake, struct fake_channel *channel,
                       const struct nb_submission *submission)
{
    struct nb_desc_detokenize desc;
    memcpy(&desc, arena(channel, submission->desc), sizeof(desc));
    const int32_t *tokens = (const void *)arena(channel, desc.tokens);
    unsigned char *out = arena(channel, desc.out);
    for (uint32_t i = 0; i < desc.n_tokens * 2 && i < desc.out_max;
         i++) // twice each, to be longer than guessed
        out[i] = (unsigned char)tokens[i / 2];
    post_done(fake, channel, submission->user_data, 0, desc.n_tokens * 2);
}

// The log becomes its first `base` tokens and the given ones.
static bool set_log(struct fake *fake, struct fake_channel *channel, uint32_t session,
                    uint32_t base, uint64_t tokens, uint32_t n)
{
    if (session >= NB_SESSIONS_MAX || base > channel->n_logs[session] || n == 0 ||
        tokens + n * 4ull > channel->arena || base + n > fake->context) {
        fake_violation(fake, "tokens that do not continue the log");
        return false;
    }
    channel->logs[session] = realloc(channel->logs[session], (fake->context + 1) * sizeof(int32_t));
    memcpy(channel->logs[session] + base, arena(channel, tokens), n * sizeof(int32_t));
    channel->n_logs[session] = base + n;
    return true;
}

static int32_t next_token(const int32_t *log, uint32_t n, uint64_t seed)
{
    uint64_t hash = seed * 0x9e3779b97f4a7c15ull + n;
    for (uint32_t i = n > 3 ? n - 3 : 0; i < n; i++)
        hash = (hash ^ (uint64_t)log[i]) * 0x100000001b3ull;
    return 'a' + (int32_t)((hash >> 20) % 26);
}

static void score(struct fake *fake, struct fake_channel *channel,
                  const struct nb_submission *submission)
{
    struct nb_desc_score desc;
    memcpy(&desc, arena(channel, submission->desc), sizeof(desc));
    if (desc.first < desc.base ||
        !set_log(fake, channel, submission->session, desc.base, desc.tokens, desc.n_tokens)) {
        fake_violation(fake, "a score before its base");
        post_done(fake, channel, submission->user_data, -EINVAL, 0);
        return;
    }
    const int32_t *log = channel->logs[submission->session];
    uint32_t n = channel->n_logs[submission->session];
    uint32_t row = desc.what == NB_SCORE_LOGITS ? FAKE_VOCAB : 1;
    uint32_t rows = n - desc.first - (desc.what == NB_SCORE_LOGITS ? 0 : 1);
    if ((uint64_t)rows * row * 4 != desc.out_len || desc.out + desc.out_len > channel->arena)
        fake_violation(fake, "a score's room");
    float *out = (void *)arena(channel, desc.out);
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t j = 0; j < row; j++) // position and tokens decide
            out[i * row + j] =
                row == 1 ? -(float)log[desc.first + i + 1] : (float)(log[desc.first + i] + (int)j);
    post_done(fake, channel, submission->user_data, 0, 0);
}

// A text's vector is the sum of its bytes or ids, and of the flags' and each number's own.
static void embed_text(const struct nb_desc_embed *desc, const unsigned char *input, uint32_t n,
                       float *out)
{
    float sum = (float)(desc->flags & ~NB_EMBED_TOKENS);
    for (uint32_t i = 0; i < n; i++) {
        int32_t id = input[i];
        if (desc->flags & NB_EMBED_TOKENS)
            memcpy(&id, input + i * sizeof(id), sizeof(id));
        sum += (float)id;
    }
    for (uint32_t j = 0; j < FAKE_WIDTH; j++)
        out[j] = sum + (float)j;
}

static void check_embed(struct fake *fake, const struct fake_channel *channel,
                        const struct nb_desc_embed *d, const uint32_t *lengths)
{
    const uint64_t unit = d->flags & NB_EMBED_TOKENS ? 4 : 1, n = d->n;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum += lengths[i] * unit;
    if (!n || n > NB_EMBED_TEXTS || sum != d->input_len || d->input_len > NB_TEXT_MAX ||
        d->input + d->input_len > channel->arena || d->counts + n * 4 > channel->arena ||
        (!d->out.region && d->out.offset + n * FAKE_WIDTH * 4 > channel->arena) ||
        d->out.offset % 4 || d->counts % 4 || d->input % unit)
        fake_violation(fake, "an EMBED");
}

// False: the worker died in the middle of it.
static bool embed(struct fake *fake, struct fake_channel *channel,
                  const struct nb_submission *submission)
{
    struct nb_desc_embed desc;
    memcpy(&desc, arena(channel, submission->desc), sizeof(desc));
    const uint32_t *lengths = (const void *)arena(channel, desc.lengths);
    const unsigned char *input = arena(channel, desc.input);
    const uint64_t unit = desc.flags & NB_EMBED_TOKENS ? 4 : 1;
    check_embed(fake, channel, &desc, lengths);
    atomic_fetch_add(&fake->n_embeds, 1);
    post(fake, channel,
         (struct nb_completion){.user_data = submission->user_data,
                                .kind = NB_COMPLETION_PREFILL,
                                .a = desc.n / 2,
                                .b = desc.n});
    if (countdown(&fake->die_in_embed))
        return false;
    if (atomic_load(&fake->hold)) {
        channel->embedding = submission->user_data;
        return true;
    }
    for (uint32_t i = 0; i < desc.n; i++) {
        ((uint32_t *)(void *)arena(channel, desc.counts))[i] = lengths[i];
        if (lengths[i] > fake->context) {
            post_done(fake, channel, submission->user_data, NIBBLE_E_CONTEXT, i + 1);
            return true;
        }
        if (!desc.out.region)
            embed_text(&desc, input, lengths[i],
                       (float *)(void *)arena(channel, desc.out.offset) + (size_t)i * FAKE_WIDTH);
        input += lengths[i] * unit;
    }
    post_done(fake, channel, submission->user_data, 0, 0);
    return true;
}

static void end_job(struct fake *fake, struct fake_channel *channel, unsigned i, int status,
                    uint32_t finish)
{
    struct fake_job job = channel->jobs[i];
    channel->jobs[i] = channel->jobs[--channel->n_jobs];
    post(fake, channel,
         (struct nb_completion){
             .user_data = job.user_data,
             .kind = NB_COMPLETION_DONE,
             .status = status,
             .b = job.generated,
             .done = {.finish = finish, .cached_tokens = job.desc.base, .decode_ns = 1}});
}

static void cancel(struct fake *fake, struct fake_channel *channel,
                   const struct nb_submission *submission)
{
    atomic_fetch_add(&fake->n_cancels, 1);
    if (submission->target && submission->target == channel->embedding) {
        channel->embedding = 0;
        post_done(fake, channel, submission->target, NIBBLE_E_CANCELLED, 0);
        return;
    }
    for (unsigned i = 0; i < channel->n_jobs; i++)
        if (channel->jobs[i].user_data == submission->target) {
            end_job(fake, channel, i, NIBBLE_E_CANCELLED, NIBBLE_FINISH_ERROR);
            return;
        }
}

static void close_session(struct fake *fake, struct fake_channel *channel,
                          const struct nb_submission *submission)
{
    atomic_fetch_add(&fake->n_closes, 1);
    for (unsigned i = 0; i < channel->n_jobs; i++)
        if (channel->jobs[i].session == submission->session)
            fake_violation(fake, "a closed session with a job");
    channel->n_logs[submission->session] = 0;
}

static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyz";

// Token `index`'s text: one byte that is the token, or a long one with a piece that tells it.
static uint32_t text_of(const struct fake *fake, int32_t token, char *text)
{
    uint32_t size = token == FAKE_EOS ? 0 : fake->token_text ? fake->token_text : 1;
    for (uint32_t i = 0; i < size; i++)
        text[i] = letters[(i + (uint32_t)token) % (sizeof(letters) - 1)];
    if (!fake->token_text)
        memcpy(text, &token, size); // its low byte
    return size;
}

static void post_text(struct fake *fake, struct fake_channel *channel, uint64_t user_data,
                      const char *text, uint32_t size, bool reasoning)
{
    for (uint32_t at = 0; at < size; at += 32) {
        uint32_t n = size - at < 32 ? size - at : 32;
        struct nb_completion completion = {.user_data = user_data,
                                           .kind = NB_COMPLETION_TEXT,
                                           .text_len = (uint16_t)n,
                                           .b = reasoning};
        memcpy(completion.text, text + at, n);
        post(fake, channel, completion);
    }
}

// How much of the text of the job's i-th token is reasoning; it begins with it.
static uint32_t reasoning_of(const struct fake *fake, uint32_t i, uint32_t size)
{
    return i < fake->reasoning ? size : i == fake->reasoning ? size / 2 : 0;
}

// False: the worker died in the middle of it.
static bool post_token(struct fake *fake, struct fake_channel *channel, const struct fake_job *job,
                       int32_t token)
{
    char text[FAKE_TEXT_MAX];
    uint32_t size = text_of(fake, token, text);
    uint32_t thought = reasoning_of(fake, job->generated, size), own = thought ? thought : size;
    uint32_t first = own < 32 ? own : 32;
    struct nb_completion completion = {.user_data = job->user_data,
                                       .kind = NB_COMPLETION_TOKEN,
                                       .token = token,
                                       .logprob = -0.5f,
                                       .text_len = (uint16_t)first,
                                       .a = own,
                                       .b = thought > 0};
    memcpy(completion.text, text, first);
    post(fake, channel, completion);
    if (countdown(&fake->die_in_text))
        return false;
    post_text(fake, channel, job->user_data, text + first, own - first, thought > 0);
    post_text(fake, channel, job->user_data, text + own, size - own, false);
    return true;
}

// What the client has not of the text of the tokens that it has.
static void catch_up(struct fake *fake, struct fake_channel *channel, const struct fake_job *job)
{
    char text[FAKE_TEXT_MAX];
    const int32_t *log =
        channel->logs[job->session] + channel->n_logs[job->session] - job->desc.n_replay;
    uint64_t skip = job->desc.text_skip;
    for (uint32_t i = 0; i < job->desc.n_replay; i++) {
        uint32_t size = text_of(fake, log[i], text);
        uint32_t known = skip < size ? (uint32_t)skip : size;
        uint32_t thought = reasoning_of(fake, i + 1, size);
        if (thought > known)
            post_text(fake, channel, job->user_data, text + known, thought - known, true);
        thought = thought > known ? thought : known;
        post_text(fake, channel, job->user_data, text + thought, size - thought, false);
        skip -= known;
    }
    if (skip)
        fake_violation(fake, "more text skipped than there was");
}

static void generate(struct fake *fake, struct fake_channel *channel,
                     const struct nb_submission *submission)
{
    struct fake_job job = {.user_data = submission->user_data, .session = submission->session};
    memcpy(&job.desc, arena(channel, submission->desc), sizeof(job.desc));
    atomic_fetch_add(&fake->n_generates, 1);
    atomic_store(&fake->last_base, job.desc.base);
    atomic_store(&fake->last_n_tokens, job.desc.n_tokens);
    atomic_store(&fake->last_replay, job.desc.n_replay);
    for (unsigned i = 0; i < channel->n_jobs; i++)
        if (channel->jobs[i].session == job.session)
            fake_violation(fake, "two jobs of one session");
    if (!set_log(fake, channel, job.session, job.desc.base, job.desc.tokens, job.desc.n_tokens)) {
        post_done(fake, channel, job.user_data, -EINVAL, 0);
        return;
    }
    if (channel->n_jobs == NB_JOBS_MAX) {
        fake_violation(fake, "too many jobs");
        return;
    }
    job.generated = job.desc.n_replay;
    uint32_t n = channel->n_logs[job.session] - job.desc.n_replay;
    channel->jobs[channel->n_jobs++] = job;
    if (channel->n_jobs > atomic_load(&fake->most_jobs))
        atomic_store(&fake->most_jobs, channel->n_jobs);
    post(fake, channel,
         (struct nb_completion){
             .user_data = job.user_data, .kind = NB_COMPLETION_PREFILL, .a = n, .b = n});
    catch_up(fake, channel, &job);
}

// False: the worker died with one.
static bool take_submissions(struct fake *fake, struct fake_channel *channel)
{
    static void (*const ops[NB_SUBMIT_COUNT])(struct fake *, struct fake_channel *,
                                              const struct nb_submission *) = {
        [NB_SUBMIT_TOKENIZE] = tokenize, [NB_SUBMIT_DETOKENIZE] = detokenize,
        [NB_SUBMIT_GENERATE] = generate, [NB_SUBMIT_SCORE] = score,
        [NB_SUBMIT_CANCEL] = cancel,     [NB_SUBMIT_SESSION_CLOSE] = close_session,
    };
    const struct nb_submission *entries = (const void *)(channel->map + NB_CHANNEL_SQ_OFFSET);
    while (channel->sq_head != atomic_load(&indices(channel)->sq_tail)) {
        struct nb_submission submission = entries[channel->sq_head++ & (NB_SQ_ENTRIES - 1)];
        atomic_store(&indices(channel)->sq_head, channel->sq_head);
        if (fake->refuse_status && !is_order(&submission)) {
            if (!refuse(fake, channel, submission.user_data))
                return false;
        } else if (submission.op == NB_SUBMIT_EMBED) {
            if (!embed(fake, channel, &submission))
                return false;
        } else if (submission.op >= NB_SUBMIT_COUNT || !ops[submission.op] ||
                   !submission.user_data || submission.desc % 8)
            fake_violation(fake, "a submission");
        else
            ops[submission.op](fake, channel, &submission);
    }
    return true;
}

// One token of one job. False: the channel is not what it was.
static bool step_job(struct fake *fake, struct fake_channel *channel, unsigned i)
{
    struct fake_job *job = &channel->jobs[i];
    uint32_t n = channel->n_logs[job->session];
    uint32_t max = job->desc.max_tokens ? job->desc.max_tokens : UINT32_MAX;
    if (job->generated >= max || n >= fake->context) {
        end_job(fake, channel, i, 0,
                n >= fake->context ? NIBBLE_FINISH_CONTEXT : NIBBLE_FINISH_LENGTH);
        return true;
    }
    int32_t token = next_token(channel->logs[job->session], n, job->desc.seed);
    job->generated++;
    bool eos = fake->eos_after && job->generated >= fake->eos_after;
    if (eos)
        token = FAKE_EOS;
    channel->logs[job->session][channel->n_logs[job->session]++] = token;
    int every = atomic_load(&fake->die_every);
    if (!post_token(fake, channel, job, token) || countdown(&fake->die_after) ||
        (every && ++channel->tokens % (uint32_t)every == 0)) {
        fake_rebind(fake, channel);
        return false;
    }
    if (countdown(&fake->lose_after)) {
        fake_lose(channel);
        return false;
    }
    if (countdown(&fake->hang_up_after)) {
        for (unsigned c = 0; c < FAKE_CLIENTS; c++)
            if (fake->clients[c] >= 0)
                fake_drop_client(fake, c);
        return false;
    }
    if (eos)
        end_job(fake, channel, i, 0, NIBBLE_FINISH_EOS);
    return true;
}

// Returns whether there is more to do.
bool fake_work(struct fake *fake)
{
    bool more = false;
    for (unsigned i = 0; i < FAKE_CHANNELS; i++) {
        struct fake_channel *channel = &fake->channels[i];
        if (channel->control < 0)
            continue;
        if (!take_submissions(fake, channel)) {
            fake_rebind(fake, channel);
            return true;
        }
        for (unsigned j = 0; j < channel->n_jobs && !atomic_load(&fake->hold); j++)
            if (!step_job(fake, channel, j))
                return true;
        more |= channel->n_jobs > 0 && !atomic_load(&fake->hold);
        more |= channel->control >= 0 &&
                !nb_ring_may_sleep(&indices(channel)->sq_tail, channel->sq_head,
                                   &indices(channel)->worker_sleeps);
    }
    return more;
}
