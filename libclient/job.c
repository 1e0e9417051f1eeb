// Jobs as their user sees them: a queue of events that a callback, nibble_job_next or nobody takes.
// What makes the events is generate.c's business.
#include "libclient/client.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct nb_node *nb_job_event(nibble_job *job, enum nibble_event_type type, size_t text_size)
{
    struct nb_node *node = malloc(sizeof(*node) + text_size);
    if (!node)
        return NULL;
    nb_link_init(&node->link);
    node->event =
        (struct nibble_event){.type = type, .token = -1, .logprob = NAN, .text = node->text};
    return node;
}

nibble_job *nb_job_create(nibble_session *session, nibble_callback callback, void *user)
{
    nibble *c = session->channel->connection;
    nibble_job *job = calloc(1, sizeof(*job));
    if (job)
        job->done_node = nb_job_event(job, NIBBLE_EVENT_DONE, sizeof(job->sentence));
    if (!job || !job->done_node) {
        free(job);
        nb_fail(c, -ENOMEM, "out of memory");
        return NULL;
    }
    job->connection = c;
    job->session = session;
    job->callback = callback;
    job->user = user;
    nb_link_init(&job->events);
    nb_link_init(&job->ready);
    nb_link_init(&job->task.link);
    nb_link_init(&job->tokenize.task.link);
    nb_list_append(&c->jobs, &job->link);
    session->job = job;
    return job;
}

void nb_job_queue(nibble_job *job, struct nb_node *node)
{
    nb_list_append(&job->events, &node->link);
    if (!job->callback)
        job->connection->delivered++;
    else if (!job->in_callback && nb_list_empty(&job->ready))
        nb_list_append(&job->connection->ready, &job->ready);
}

void nb_job_finish(nibble_job *job, enum nibble_finish finish, int error, const char *sentence)
{
    if (job->done)
        return;
    job->done = true;
    job->error = error;
    snprintf(job->sentence, sizeof(job->sentence), "%s", sentence);
    if (error)
        job->session->known = 0; // where the worker's log stopped, only the worker knows
    job->session->job = NULL;
    job->session = NULL;
    if (job->token)
        nb_job_queue(job, job->token);
    job->token = NULL;
    struct nb_node *node = job->done_node;
    job->done_node = NULL;
    node->event.finish = finish;
    node->event.error = error;
    memcpy(node->text, job->sentence, sizeof(job->sentence));
    node->event.reason = error ? node->text : NULL;
    nb_job_queue(job, node);
}

void nb_job_end(nibble_job *job, int error, const char *sentence)
{
    if (job->done)
        return;
    nb_task_abandon(&job->tokenize.task);
    nb_task_abandon(&job->task);
    nb_job_finish(job, NIBBLE_FINISH_ERROR, error, sentence);
}

void nb_job_destroy(nibble_job *job)
{
    nb_job_end(job, NIBBLE_E_CANCELLED, "the job was freed");
    nb_list_remove(&job->link);
    nb_list_remove(&job->ready);
    NB_EACH(link, &job->events)
        free(NB_OF(link, struct nb_node, link));
    free(job->last);
    free(job->tokenize.out);
    free(job->text);
    free(job->stop);
    free(job->matrix);
    free(job);
}

// The new device, where there is one, is told to each session once.
void nb_job_moved(nibble_job *job)
{
    const struct nb_channel *channel = job->session->channel;
    struct nb_node *node = nb_job_event(job, NIBBLE_EVENT_MOVED, sizeof(channel->model.device));
    if (!node)
        return;
    if (job->session->moves != channel->moves) {
        memcpy(node->text, channel->model.device, sizeof(channel->model.device));
        node->event.device = node->text;
        job->session->moves = channel->moves;
    }
    nb_job_queue(job, node);
}

static void pin(nibble_job *job)
{
    job->pins++;
}

static void unpin(nibble_job *job)
{
    if (--job->pins == 0 && job->freed)
        nb_job_destroy(job);
}

static struct nb_node *take_event(nibble_job *job)
{
    struct nb_node *node = NB_OF(job->events.next, struct nb_node, link);
    nb_list_remove(&node->link);
    if (node->event.type == NIBBLE_EVENT_DONE && job->error)
        nb_fail(job->connection, job->error, "%s", job->sentence);
    return node;
}

// One event of one job at a time, so that a callback may do anything, also to other jobs; while it
// runs, its own job's next events wait.
static void deliver_one(nibble_job *job)
{
    nb_list_remove(&job->ready);
    struct nb_node *node = take_event(job);
    job->connection->delivered++;
    pin(job);
    job->in_callback = true;
    job->callback(job, &node->event, job->user);
    job->in_callback = false;
    free(node);
    if (!job->freed && !nb_list_empty(&job->events))
        nb_list_append(&job->connection->ready, &job->ready);
    unpin(job);
}

int nb_deliver(nibble *c)
{
    int n = 0;
    for (; !nb_list_empty(&c->ready); n++)
        deliver_one(NB_OF(c->ready.next, nibble_job, ready));
    return n;
}

static bool has_event(const void *what)
{
    const nibble_job *job = what;
    return !nb_list_empty(&job->events) || job->done || job->freed;
}

int nibble_job_next(nibble_job *job, struct nibble_event *ret_event, int timeout_ms)
{
    nibble *c = job->connection;
    if (job->callback)
        return nb_fail(c, -EINVAL, "the job's events go to its callback");
    pin(job);
    int rc = nb_pump(c, has_event, job, timeout_ms);
    if (!job->freed && !nb_list_empty(&job->events)) {
        free(job->last);
        job->last = take_event(job);
        *ret_event = job->last->event;
        rc = 1;
    } else if (rc > 0) {
        rc = 0; // after DONE
    }
    unpin(job);
    return rc;
}

void nibble_job_drafts(const nibble_job *job, uint32_t *ret_proposed, uint32_t *ret_accepted)
{
    *ret_proposed = job->proposed;
    *ret_accepted = job->accepted;
}

static bool is_done(const void *what)
{
    const nibble_job *job = what;
    bool told = !job->callback || job->in_callback || nb_list_empty(&job->events);
    return (job->done && told) || job->freed;
}

int nibble_job_wait(nibble_job *job)
{
    nibble *c = job->connection;
    pin(job);
    int rc = nb_pump(c, is_done, job, -1);
    if (job->done)
        rc = job->error ? nb_fail(c, job->error, "%s", job->sentence) : 0;
    unpin(job);
    return rc;
}

void nibble_job_cancel(nibble_job *job)
{
    if (job->done || job->cancelled)
        return;
    job->cancelled = true;
    nb_task_cancel(&job->tokenize.task);
    nb_task_cancel(&job->task);
    nb_leave(job->connection);
}

void nibble_job_free(nibble_job *job)
{
    if (!job || job->freed)
        return;
    nibble *c = job->connection;
    nb_job_end(job, NIBBLE_E_CANCELLED, "the job was freed");
    nb_list_remove(&job->ready);
    job->freed = true;
    if (job->pins == 0)
        nb_job_destroy(job);
    nb_leave(c);
}
