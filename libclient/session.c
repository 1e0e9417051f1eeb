// Sessions: a sequence's token log, of which the worker's KV cache is only a cache. The log here is
// the one that counts: it is what a new worker is told.
#include "libclient/client.h"

#include <errno.h>
#include <stdlib.h>

#define PAGE 4096u

static struct nb_channel *find_channel(nibble *c, const char *model, const char *adapter)
{
    NB_EACH(link, &c->channels) {
        struct nb_channel *channel = NB_OF(link, struct nb_channel, link);
        if (!channel->lost && strcmp(channel->model.name, model) == 0 &&
            strcmp(channel->adapter, adapter) == 0)
            return channel;
    }
    return NULL;
}

// An id is free when neither a session nor a job that its last owner abandoned has it.
static int choose_id(const struct nb_channel *channel, uint32_t *ret_id)
{
    uint64_t taken = 0;
    NB_EACH(link, &channel->sessions)
        taken |= 1ull << NB_OF(link, nibble_session, link)->id;
    for (unsigned i = 0; i < NB_JOBS_MAX; i++)
        if (channel->slots[i].user_data)
            taken |= 1ull << channel->slots[i].session;
    if (~taken == 0)
        return -ENOSPC;
    *ret_id = (uint32_t)__builtin_ctzll(~taken);
    return 0;
}

// Checked, the arena's size settled.
static int read_options(nibble *c, const struct nibble_session_options *given,
                        struct nibble_session_options *ret)
{
    struct nibble_session_options options = {0};
    int rc = given ? nb_options_read(c, NB_OPTIONS_SESSION, given, &options) : 0;
    if (rc < 0)
        return rc;
    uint64_t size = options.arena_bytes ? options.arena_bytes : NB_ARENA_DEFAULT;
    if (size > NB_ARENA_MAX)
        return nb_fail(c, NIBBLE_E_QUOTA, "arena_bytes is at most %u", NB_ARENA_MAX);
    if (options.drafts > NIBBLE_DRAFTS_ALWAYS)
        return nb_fail(c, -EINVAL, "drafts is %llu: at most %d", (unsigned long long)options.drafts,
                       NIBBLE_DRAFTS_ALWAYS);
    size = (size + PAGE - 1) / PAGE * PAGE;
    options.arena_bytes = size < NB_ARENA_MIN ? NB_ARENA_MIN : size;
    *ret = options;
    return 0;
}

static int open_on(struct nb_channel *channel, enum nibble_drafts drafts,
                   nibble_session **ret_session)
{
    nibble *c = channel->connection;
    uint32_t id;
    if (choose_id(channel, &id) < 0)
        return nb_fail(c, NIBBLE_E_QUOTA, "a connection has at most %u sessions on a model",
                       NB_SESSIONS_MAX);
    nibble_session *session = calloc(1, sizeof(*session));
    if (!session)
        return nb_fail(c, -ENOMEM, "out of memory");
    session->channel = channel;
    session->id = id;
    session->drafts = drafts;
    session->moves = channel->moves;
    nb_list_append(&channel->sessions, &session->link);
    *ret_session = session;
    return 0;
}

int nibble_session_open(nibble *c, const char *model, const struct nibble_session_options *options,
                        nibble_session **ret_session)
{
    struct nibble_session_options own = {0};
    int rc = read_options(c, options, &own);
    if (rc < 0)
        return rc;
    if (!model || !*model || strlen(model) >= NB_NAME_MAX)
        return nb_fail(c, NIBBLE_E_NO_MODEL, "a model's name has 1 to %d bytes", NB_NAME_MAX - 1);
    const char *adapter = own.adapter ? own.adapter : "";
    if (strlen(adapter) >= NB_NAME_MAX)
        return nb_fail(c, NIBBLE_E_NO_MODEL, "an adapter's name has 1 to %d bytes",
                       NB_NAME_MAX - 1);
    struct nb_channel *channel = find_channel(c, model, adapter);
    if (!channel)
        rc = nb_channel_open(c, model, adapter, own.arena_bytes, &channel);
    if (rc < 0)
        return rc;
    rc = open_on(channel, (enum nibble_drafts)own.drafts, ret_session);
    if (rc < 0 && nb_list_empty(&channel->sessions))
        nb_channel_close(channel);
    return rc;
}

static void destroy(nibble_session *session)
{
    struct nb_channel *channel = session->channel;
    nb_list_remove(&session->link);
    free(session->log);
    free(session);
    if (nb_list_empty(&channel->sessions))
        nb_channel_close(channel);
}

// Calls that wait for something of this session wait no longer.
static void end_calls(nibble_session *session)
{
    struct nb_channel *channel = session->channel;
    static const char sentence[] = "the session was closed";
    NB_EACH(link, &channel->waiting) {
        struct nb_task *task = NB_OF(link, struct nb_task, link);
        if (task->session == session->id) {
            nb_task_abandon(task);
            task->kind->fail(task, NIBBLE_E_CANCELLED, sentence);
        }
    }
    for (unsigned i = 0; i < NB_JOBS_MAX; i++) {
        struct nb_task *task = channel->slots[i].task;
        if (task && task->session == session->id) {
            nb_task_abandon(task);
            task->kind->fail(task, NIBBLE_E_CANCELLED, sentence);
        }
    }
}

void nibble_session_close(nibble_session *session)
{
    if (!session || session->closed)
        return;
    nibble *c = session->channel->connection;
    session->closed = true;
    if (session->job)
        nb_job_end(session->job, NIBBLE_E_CANCELLED, "the session was closed");
    end_calls(session);
    if (session->used)
        nb_channel_forget_session(session->channel, session->id);
    if (session->pins == 0)
        destroy(session);
    nb_leave(c);
}

void nb_session_pin(nibble_session *session)
{
    session->pins++;
}

void nb_session_unpin(nibble_session *session)
{
    if (--session->pins == 0 && session->closed)
        destroy(session);
}

const struct nibble_model *nibble_session_model(const nibble_session *session)
{
    return &session->channel->model;
}

size_t nibble_session_tokens(const nibble_session *session, const int32_t **ret_tokens)
{
    *ret_tokens = session->log;
    return session->n_log;
}

int nb_session_ready(const nibble_session *session)
{
    struct nb_channel *channel = session->channel;
    if (channel->connection->broken)
        return nb_fail(channel->connection, channel->connection->broken, "%s",
                       nibble_strerror(channel->connection->broken));
    if (channel->lost)
        return nb_fail(channel->connection, channel->lost, "%s", channel->lost_text);
    if (session->job || session->scoring)
        return nb_fail(
            channel->connection, NIBBLE_E_BUSY,
            "the session runs a job already: wait for it, cancel it, or open another session");
    return 0;
}

// A larger copy of the log's first tokens.
static int32_t *grown(const nibble_session *session, size_t keep, size_t n, size_t *ret_cap)
{
    size_t cap = n + n / 2 + 256;
    int32_t *log = malloc(cap * sizeof(*log));
    if (log && keep)
        memcpy(log, session->log, keep * sizeof(*log));
    *ret_cap = cap;
    return log;
}

static int check(const nibble_session *session, const int32_t *tokens, size_t n, size_t n_all)
{
    const struct nb_channel *channel = session->channel;
    const struct nibble_model *model = &channel->model;
    if (n_all == 0)
        return nb_fail(channel->connection, -EINVAL,
                       "an empty prompt: there is nothing to go on from");
    if (n_all > model->context)
        return nb_fail(
            channel->connection, NIBBLE_E_CONTEXT,
            "%zu tokens do not fit into the %u tokens of %s's context: shorten the prompt", n_all,
            model->context, model->name);
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= model->vocab)
            return nb_fail(channel->connection, -EINVAL, "token %d is not among the %u of %s",
                           tokens[i], model->vocab, model->name);
    return 0;
}

int nb_session_set_log(nibble_session *session, size_t keep, const int32_t *tokens, size_t n)
{
    int rc = check(session, tokens, n, n > SIZE_MAX - keep ? SIZE_MAX : keep + n);
    if (rc < 0)
        return rc;
    size_t common = keep;
    while (common < session->n_log && common < keep + n &&
           session->log[common] == tokens[common - keep])
        common++;
    int32_t *log = session->log; // `tokens` may lie in it
    size_t cap = session->cap_log;
    if (keep + n > cap && !(log = grown(session, keep, keep + n, &cap)))
        return nb_fail(session->channel->connection, -ENOMEM, "out of memory");
    if (n)
        memmove(log + keep, tokens, n * sizeof(*tokens));
    if (log != session->log)
        free(session->log);
    session->log = log;
    session->cap_log = cap;
    session->n_log = keep + n;
    if (session->known > common)
        session->known = common;
    return 0;
}

int nb_session_push(nibble_session *session, int32_t token)
{
    const struct nibble_model *model = &session->channel->model;
    if (token < 0 || (uint32_t)token >= model->vocab || session->n_log >= model->context)
        return -EPROTO;
    if (session->n_log == session->cap_log) {
        size_t cap;
        int32_t *log = grown(session, session->n_log, session->n_log + 1, &cap);
        if (!log)
            return -ENOMEM;
        free(session->log);
        session->log = log;
        session->cap_log = cap;
    }
    session->log[session->n_log++] = token;
    return 0;
}
