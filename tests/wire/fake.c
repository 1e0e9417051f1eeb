// See fake.h. The model is a toy with the properties that the tests need: a token is a byte, the
// next one depends on those before it, the position and the seed, and nothing else, so that any
// worker goes on in the same way.
#include "tests/wire/fake.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static void must(bool condition)
{
    if (!condition) {
        perror("the fake daemon");
        abort();
    }
}

static void violation(struct fake *fake, const char *what)
{
    fprintf(stderr, "the client broke the protocol: %s\n", what);
    atomic_fetch_add(&fake->violations, 1);
}

// ---- The worker ----

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

static uint32_t render(const unsigned char *text, uint64_t size, int32_t *out, uint32_t max)
{
    uint32_t n = 0;
    for (uint64_t at = 0; at < size;) {
        uint32_t lengths[2];
        memcpy(lengths, text + at, sizeof lengths);
        at += sizeof lengths;
        n = put_token(out, max, n, FAKE_OPEN);
        n = put_tokens(out, max, n, text + at, lengths[0]);
        n = put_tokens(out, max, n, "\n", 1);
        n = put_tokens(out, max, n, text + at + lengths[0], lengths[1]);
        n = put_token(out, max, n, FAKE_SHUT);
        at += lengths[0] + lengths[1];
    }
    n = put_token(out, max, n, FAKE_OPEN);
    return put_tokens(out, max, n, "assistant\n", 10);
}

static void tokenize(struct fake *fake, struct fake_channel *channel,
                     const struct nb_submission *submission)
{
    struct nb_desc_tokenize desc;
    memcpy(&desc, arena(channel, submission->desc), sizeof desc);
    if (desc.text + desc.text_len > channel->arena ||
        desc.out + desc.out_max * 4ull > channel->arena || desc.out % 4)
        violation(fake, "a TOKENIZE outside the arena");
    const unsigned char *text = arena(channel, desc.text);
    int32_t *out = (void *)arena(channel, desc.out);
    uint32_t n = 0;
    atomic_fetch_add(&fake->n_tokenizes, 1);
    if (desc.flags & NB_TEXT_CHAT) {
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
    memcpy(&desc, arena(channel, submission->desc), sizeof desc);
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
        violation(fake, "tokens that do not continue the log");
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
    memcpy(&desc, arena(channel, submission->desc), sizeof desc);
    if (desc.first < desc.base ||
        !set_log(fake, channel, submission->session, desc.base, desc.tokens, desc.n_tokens)) {
        violation(fake, "a score before its base");
        post_done(fake, channel, submission->user_data, -EINVAL, 0);
        return;
    }
    const int32_t *log = channel->logs[submission->session];
    uint32_t n = channel->n_logs[submission->session];
    uint32_t row = desc.what == NB_SCORE_LOGITS ? FAKE_VOCAB : 1;
    uint32_t rows = n - desc.first - (desc.what == NB_SCORE_LOGITS ? 0 : 1);
    if ((uint64_t)rows * row * 4 != desc.out_len || desc.out + desc.out_len > channel->arena)
        violation(fake, "a score's room");
    float *out = (void *)arena(channel, desc.out);
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t j = 0; j < row; j++) // position and tokens decide
            out[i * row + j] =
                row == 1 ? -(float)log[desc.first + i + 1] : (float)(log[desc.first + i] + (int)j);
    post_done(fake, channel, submission->user_data, 0, 0);
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
            violation(fake, "a closed session with a job");
    channel->n_logs[submission->session] = 0;
}

static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyz";

// Token `index`'s text: one byte that is the token, or a long one with a piece that tells it.
static uint32_t text_of(const struct fake *fake, int32_t token, char *text)
{
    uint32_t size = token == FAKE_EOS ? 0 : fake->token_text ? fake->token_text : 1;
    for (uint32_t i = 0; i < size; i++)
        text[i] =
            fake->token_text ? letters[(i + (uint32_t)token) % (sizeof letters - 1)] : (char)token;
    return size;
}

static void post_text(struct fake *fake, struct fake_channel *channel, uint64_t user_data,
                      const char *text, uint32_t size)
{
    for (uint32_t at = 0; at < size; at += 32) {
        uint32_t n = size - at < 32 ? size - at : 32;
        struct nb_completion completion = {
            .user_data = user_data, .kind = NB_COMPLETION_TEXT, .text_len = (uint16_t)n};
        memcpy(completion.text, text + at, n);
        post(fake, channel, completion);
    }
}

// True: something happened that ends this round.
static bool countdown(_Atomic int *counter)
{
    return atomic_load(counter) > 0 && atomic_fetch_sub(counter, 1) == 1;
}

// False: the worker died in the middle of it.
static bool post_token(struct fake *fake, struct fake_channel *channel, const struct fake_job *job,
                       int32_t token)
{
    char text[FAKE_TEXT_MAX];
    uint32_t size = text_of(fake, token, text);
    uint32_t first = size < 32 ? size : 32;
    struct nb_completion completion = {.user_data = job->user_data,
                                       .kind = NB_COMPLETION_TOKEN,
                                       .token = token,
                                       .logprob = -0.5f,
                                       .text_len = (uint16_t)first,
                                       .a = size};
    memcpy(completion.text, text, first);
    post(fake, channel, completion);
    if (countdown(&fake->die_in_text))
        return false;
    post_text(fake, channel, job->user_data, text + first, size - first);
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
        post_text(fake, channel, job->user_data, text + known, size - known);
        skip -= known;
    }
    if (skip)
        violation(fake, "more text skipped than there was");
}

static void generate(struct fake *fake, struct fake_channel *channel,
                     const struct nb_submission *submission)
{
    struct fake_job job = {.user_data = submission->user_data, .session = submission->session};
    memcpy(&job.desc, arena(channel, submission->desc), sizeof job.desc);
    atomic_fetch_add(&fake->n_generates, 1);
    atomic_store(&fake->last_base, job.desc.base);
    atomic_store(&fake->last_n_tokens, job.desc.n_tokens);
    atomic_store(&fake->last_replay, job.desc.n_replay);
    for (unsigned i = 0; i < channel->n_jobs; i++)
        if (channel->jobs[i].session == job.session)
            violation(fake, "two jobs of one session");
    if (!set_log(fake, channel, job.session, job.desc.base, job.desc.tokens, job.desc.n_tokens)) {
        post_done(fake, channel, job.user_data, -EINVAL, 0);
        return;
    }
    if (channel->n_jobs == NB_JOBS_MAX) {
        violation(fake, "too many jobs");
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

static void take_submissions(struct fake *fake, struct fake_channel *channel)
{
    static void (*const ops[NB_OP_COUNT])(struct fake *, struct fake_channel *,
                                          const struct nb_submission *) = {
        [NB_OP_TOKENIZE] = tokenize, [NB_OP_DETOKENIZE] = detokenize,
        [NB_OP_GENERATE] = generate, [NB_OP_SCORE] = score,
        [NB_OP_CANCEL] = cancel,     [NB_OP_SESSION_CLOSE] = close_session,
    };
    const struct nb_submission *entries = (const void *)(channel->map + NB_CHANNEL_SQ_OFFSET);
    while (channel->sq_head != atomic_load(&indices(channel)->sq_tail)) {
        struct nb_submission submission = entries[channel->sq_head++ & (NB_SQ_ENTRIES - 1)];
        atomic_store(&indices(channel)->sq_head, channel->sq_head);
        if (submission.op >= NB_OP_COUNT || !ops[submission.op] || !submission.user_data ||
            submission.desc % 8)
            violation(fake, "a submission");
        else
            ops[submission.op](fake, channel, &submission);
    }
}

static int open_memory(struct fake_channel *channel, int fds[2])
{
    int pair[2];
    fds[0] = fake_memory(NB_CHANNEL_BYTES(channel->arena), SEALS);
    channel->map =
        mmap(NULL, NB_CHANNEL_BYTES(channel->arena), PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
    must(channel->map != MAP_FAILED && nb_wire_pair(SOCK_STREAM, pair) == 0);
    channel->sock = pair[0];
    fds[1] = pair[1];
    channel->sq_head = channel->cq_tail = 0;
    channel->n_jobs = 0;
    memset(channel->n_logs, 0, sizeof channel->n_logs);
    return 0;
}

static void close_memory(struct fake_channel *channel)
{
    munmap(channel->map, NB_CHANNEL_BYTES(channel->arena));
    close(channel->sock);
}

static void rebind(struct fake_channel *channel)
{
    struct nb_wire_channel packet = {.header = {.type = NB_WIRE_REBIND, .size = sizeof packet},
                                     .channel = channel->handle,
                                     .incarnation = ++channel->incarnation,
                                     .arena_bytes = channel->arena};
    int fds[2];
    close_memory(channel);
    open_memory(channel, fds);
    nb_wire_send(channel->control, &packet, sizeof packet, fds, 2);
    nb_wire_close_fds(fds, 2);
}

static void free_channel(struct fake_channel *channel)
{
    close_memory(channel);
    for (unsigned i = 0; i < NB_SESSIONS_MAX; i++)
        free(channel->logs[i]);
    *channel = (struct fake_channel){.control = -1};
}

static void lose(struct fake_channel *channel)
{
    struct nb_wire_channel_ref packet = {.header = {.type = NB_WIRE_CHANNEL_LOST,
                                                    .size = sizeof packet,
                                                    .status = NIBBLE_E_NO_MODEL},
                                         .channel = channel->handle,
                                         .text = "m0 was unloaded"};
    nb_wire_send(channel->control, &packet, sizeof packet, NULL, 0);
    free_channel(channel);
}

static void drop_client(struct fake *fake, unsigned i)
{
    for (unsigned j = 0; j < FAKE_CHANNELS; j++)
        if (fake->channels[j].control == fake->clients[i])
            free_channel(&fake->channels[j]);
    close(fake->clients[i]);
    fake->clients[i] = -1;
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
        rebind(channel);
        return false;
    }
    if (countdown(&fake->lose_after)) {
        lose(channel);
        return false;
    }
    if (countdown(&fake->hang_up_after)) {
        for (unsigned c = 0; c < FAKE_CLIENTS; c++)
            if (fake->clients[c] >= 0)
                drop_client(fake, c);
        return false;
    }
    if (eos)
        end_job(fake, channel, i, 0, NIBBLE_FINISH_EOS);
    return true;
}

// Returns whether there is more to do.
static bool work(struct fake *fake)
{
    bool more = false;
    for (unsigned i = 0; i < FAKE_CHANNELS; i++) {
        struct fake_channel *channel = &fake->channels[i];
        if (channel->control < 0)
            continue;
        take_submissions(fake, channel);
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

// ---- The daemon ----

int fake_memory(uint64_t size, unsigned seals)
{
    int fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    must(fd >= 0 && ftruncate(fd, (off_t)size) == 0 && fcntl(fd, F_ADD_SEALS, seals) == 0);
    return fd;
}

void fake_reply(int sock, const struct nb_wire_header *request, void *reply, uint32_t size,
                const int *fds, size_t n_fds)
{
    struct nb_wire_header *header = reply;
    header->type = request->type | NB_WIRE_REPLY;
    header->size = size;
    header->serial = request->serial;
    nb_wire_send(sock, reply, size, fds, n_fds);
}

void fake_refuse(int sock, const struct nb_wire_header *request, int code, const char *text)
{
    struct nb_wire_error error = {.header = {.status = code}};
    snprintf(error.text, sizeof error.text, "%s", text);
    fake_reply(sock, request, &error, sizeof error, NULL, 0);
}

static void list(struct fake *fake, int sock, const struct nb_wire_list_request *request)
{
    struct {
        struct nb_wire_list_reply head;
        struct nibble_model rows[2]; // a page
    } reply = {.head = {.row_size = sizeof(struct nibble_model), .total = FAKE_MODELS}};
    if (request->what != NB_LIST_MODELS) {
        reply.head.total = 0;
        fake_reply(sock, &request->header, &reply, sizeof reply.head, NULL, 0);
        return;
    }
    for (uint32_t i = request->cursor; i < FAKE_MODELS && reply.head.n < 2; i++) {
        struct nibble_model *row = &reply.rows[reply.head.n++];
        memset(row, 'x', sizeof *row); // nothing ends with a NUL but the name
        snprintf(row->name, sizeof row->name, "m%u", i);
        row->vocab = FAKE_VOCAB;
        row->context = fake->context;
    }
    uint32_t next = request->cursor + reply.head.n;
    reply.head.next_cursor = next < FAKE_MODELS ? next : 0;
    fake_reply(sock, &request->header, &reply,
               (uint32_t)(sizeof reply.head + reply.head.n * sizeof(struct nibble_model)), NULL, 0);
}

static void open_channel(struct fake *fake, int sock, const struct nb_wire_open_channel *request)
{
    struct fake_channel *channel = fake->channels;
    while (channel < fake->channels + FAKE_CHANNELS && channel->control >= 0)
        channel++;
    if (request->model[0] != 'm' || channel == fake->channels + FAKE_CHANNELS) {
        fake_refuse(sock, &request->header, NIBBLE_E_NO_MODEL,
                    "no model of that name is loaded: nibble load FILE");
        return;
    }
    int fds[2];
    channel->control = sock;
    channel->handle = ++fake->next_handle;
    channel->incarnation = 1;
    channel->arena = request->arena_bytes;
    open_memory(channel, fds);
    struct nb_wire_channel reply = {
        .channel = channel->handle, .incarnation = 1, .arena_bytes = channel->arena};
    fake_reply(sock, &request->header, &reply, sizeof reply, fds, 2);
    nb_wire_close_fds(fds, 2);
    atomic_fetch_add(&fake->n_channels, 1);
}

static void close_channel(struct fake *fake, int sock, const struct nb_wire_channel_ref *request)
{
    struct nb_wire_empty reply = {0};
    for (unsigned i = 0; i < FAKE_CHANNELS; i++)
        if (fake->channels[i].control == sock && fake->channels[i].handle == request->channel) {
            free_channel(&fake->channels[i]);
            atomic_fetch_sub(&fake->n_channels, 1);
            fake_reply(sock, &request->header, &reply, sizeof reply, NULL, 0);
            return;
        }
    violation(fake, "CLOSE_CHANNEL of an unknown channel");
}

static void load(struct fake *fake, int sock, const struct nb_wire_load *request)
{
    struct nb_wire_progress progress = {.header = {.type = NB_WIRE_PROGRESS,
                                                   .size = sizeof progress,
                                                   .serial = request->header.serial},
                                        .total = 100};
    for (progress.done = 0; progress.done <= 100; progress.done += 50)
        nb_wire_send(sock, &progress, sizeof progress, NULL, 0);
    struct nb_wire_empty reply = {0};
    if (strcmp(request->name, "slow") == 0) { // until it is cancelled
        struct pollfd readable = {sock, POLLIN, 0};
        alignas(8) unsigned char packet[NB_WIRE_MAX];
        int fds[NB_WIRE_FDS_MAX];
        size_t n_fds;
        poll(&readable, 1, 10000);
        int n = nb_wire_recv(sock, packet, fds, &n_fds);
        const struct nb_wire_header *header = (const void *)packet;
        if (n > 0 && header->type == NB_WIRE_CANCEL_LOAD &&
            header->serial == request->header.serial)
            atomic_fetch_add(&fake->cancel_load_seen, 1);
        fake_refuse(sock, &request->header, -ECANCELED, "cancelled");
        return;
    }
    fake_reply(sock, &request->header, &reply, sizeof reply, NULL, 0);
}

static void status(int sock, const struct nb_wire_header *request)
{
    struct nb_wire_status_reply reply = {.steps = 7, .mixed_steps = 3, .models = FAKE_MODELS};
    memset(reply.version, 'v', sizeof reply.version);
    fake_reply(sock, request, &reply, sizeof reply, NULL, 0);
}

static void handle(struct fake *fake, int sock, const struct nb_wire_header *request)
{
    const struct nb_wire_message *message = nb_wire_message(request->type);
    struct nb_wire_hello hello = {.magic = NB_WIRE_MAGIC, .version_min = 1, .version_max = 1};
    struct nb_wire_empty empty = {0};
    if (!message || !message->roles || message->size != request->size)
        violation(fake, "a request");
    else if (request->type == NB_WIRE_HELLO)
        fake_reply(sock, request, &hello, sizeof hello, NULL, 0);
    else if (request->type == NB_WIRE_LIST)
        list(fake, sock, (const void *)request);
    else if (request->type == NB_WIRE_STATUS)
        status(sock, request);
    else if (request->type == NB_WIRE_OPEN_CHANNEL)
        open_channel(fake, sock, (const void *)request);
    else if (request->type == NB_WIRE_CLOSE_CHANNEL)
        close_channel(fake, sock, (const void *)request);
    else if (request->type == NB_WIRE_LOAD)
        load(fake, sock, (const void *)request);
    else if (request->type == NB_WIRE_UNLOAD)
        fake_reply(sock, request, &empty, sizeof empty, NULL, 0);
}

static void serve_client(struct fake *fake, unsigned i)
{
    alignas(8) unsigned char packet[NB_WIRE_MAX];
    int fds[NB_WIRE_FDS_MAX];
    size_t n_fds = 0;
    int n = nb_wire_recv(fake->clients[i], packet, fds, &n_fds);
    if (n == -EAGAIN)
        return;
    if (n <= 0) {
        drop_client(fake, i);
        return;
    }
    const struct nb_wire_message *message =
        nb_wire_message(((struct nb_wire_header *)(void *)packet)->type);
    if (message && n_fds != message->fds)
        violation(fake, "fds");
    if (!fake->override || !fake->override(fake, fake->clients[i], (const void *)packet))
        handle(fake, fake->clients[i], (const void *)packet);
    nb_wire_close_fds(fds, n_fds);
}

static void accept_client(struct fake *fake, int listener)
{
    for (unsigned i = 0; i < FAKE_CLIENTS; i++)
        if (fake->clients[i] < 0) {
            fake->clients[i] = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
            return;
        }
}

static void *run(void *arg)
{
    struct fake *fake = arg;
    for (bool more = false;;) {
        struct pollfd fds[3 + FAKE_CLIENTS + FAKE_CHANNELS] = {{fake->wake[1], POLLIN, 0},
                                                               {fake->listener, POLLIN, 0},
                                                               {fake->admin_listener, POLLIN, 0}};
        for (unsigned i = 0; i < FAKE_CLIENTS; i++)
            fds[3 + i] = (struct pollfd){fake->clients[i], POLLIN, 0};
        for (unsigned i = 0; i < FAKE_CHANNELS; i++)
            fds[3 + FAKE_CLIENTS + i] = (struct pollfd){
                fake->channels[i].control < 0 ? -1 : fake->channels[i].sock, POLLIN, 0};
        poll(fds, 3 + FAKE_CLIENTS + FAKE_CHANNELS, more ? 0 : -1);
        if (fds[0].revents && nb_wake_drain(fake->wake[1]) < 0)
            return NULL;
        for (unsigned i = 0; i < 2; i++)
            if (fds[1 + i].revents)
                accept_client(fake, fds[1 + i].fd);
        for (unsigned i = 0; i < FAKE_CHANNELS; i++)
            if (fds[3 + FAKE_CLIENTS + i].revents)
                nb_wake_drain(fake->channels[i].sock); // before the clients: they may close it
        for (unsigned i = 0; i < FAKE_CLIENTS; i++)
            if (fds[3 + i].revents)
                serve_client(fake, i);
        more = work(fake);
    }
}

static int listen_on(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    must(sock >= 0 && bind(sock, (const struct sockaddr *)&address, sizeof address) == 0 &&
         listen(sock, 8) == 0);
    return sock;
}

struct fake *fake_start(void)
{
    struct fake *fake = calloc(1, sizeof *fake);
    snprintf(fake->dir, sizeof fake->dir, "/tmp/nibble-fake-XXXXXX");
    must(mkdtemp(fake->dir));
    snprintf(fake->path, sizeof fake->path, "%s/nibble.sock", fake->dir);
    snprintf(fake->admin_path, sizeof fake->admin_path, "%s/admin.sock", fake->dir);
    fake->listener = listen_on(fake->path);
    fake->admin_listener = listen_on(fake->admin_path);
    fake->context = 4096;
    for (unsigned i = 0; i < FAKE_CLIENTS; i++)
        fake->clients[i] = -1;
    for (unsigned i = 0; i < FAKE_CHANNELS; i++)
        fake->channels[i].control = -1;
    must(nb_wire_pair(SOCK_STREAM, fake->wake) == 0);
    must(pthread_create(&fake->thread, NULL, run, fake) == 0);
    return fake;
}

void fake_kick(struct fake *fake)
{
    nb_wake_send(fake->wake[0]);
}

void fake_stop(struct fake *fake)
{
    close(fake->wake[0]);
    pthread_join(fake->thread, NULL);
    for (unsigned i = 0; i < FAKE_CLIENTS; i++)
        if (fake->clients[i] >= 0)
            drop_client(fake, i);
    nb_wire_close_fds((int[]){fake->listener, fake->admin_listener, fake->wake[1]}, 3);
    unlink(fake->path);
    unlink(fake->admin_path);
    rmdir(fake->dir);
    free(fake);
}
