// The life of a job: taken in by one worker, done by the next, again after each one's death, until
// it is finished or has failed. Pausing and cancelling are the death of its worker, too: the
// journal in its folder makes that cheap.
#include "daemon/jobs.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/broker.h"
#include "daemon/log.h"
#include "daemon/peer.h"
#include "daemon/refusal.h"
#include "daemon/spawn.h"
#include "libclient/sentence.h"
#include "machine/bounds.h"

#define DEATHS_MOST 3 // in a row without progress

const char *const nb_jobs_states[NB_JOBS_STATES] = {"storing", "waiting",  "running",
                                                    "paused",  "finished", "failed"};

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds);
static void on_exited(void *owner, int clean, const char *how);
static const struct nb_worker_ops ops = {on_packet, on_exited};

static uint64_t now_s(void)
{
    return (uint64_t)time(NULL);
}

static bool is_over(const struct nb_service_job *job)
{
    return job->state == NB_JOBS_FINISHED || job->state == NB_JOBS_FAILED;
}

struct nb_service_job *nb_jobs_create(struct nb_broker *broker, uint64_t id)
{
    struct nb_service_job *job = calloc(1, sizeof(*job));
    if (!job)
        return NULL;
    job->broker = broker;
    job->recipe = -1;
    job->row.id = id;
    job->row.started_s = now_s();
    job->row.eta_ms = UINT64_MAX;
    for (size_t i = 0; i < NIBBLE_JOBS_CURVE; i++)
        job->row.curve[i] = NAN;
    TAILQ_INIT(&job->waits);
    TAILQ_INSERT_TAIL(&broker->service_jobs, job, entry);
    return job;
}

static void let_go(struct nb_service_job *job)
{
    if (job->recipe >= 0)
        close(job->recipe); // a memfd: nobody's close takes long
    job->recipe = -1;
}

void nb_jobs_free(struct nb_service_job *job)
{
    struct nb_jobs_wait *wait;
    nb_worker_kill(job->worker);
    nb_worker_disown(job->worker);
    let_go(job);
    while ((wait = TAILQ_FIRST(&job->waits))) {
        TAILQ_REMOVE(&job->waits, wait, entry);
        free(wait);
    }
    TAILQ_REMOVE(&job->broker->service_jobs, job, entry);
    nb_charge_release(&job->broker->ledger, &job->charge);
    free(job);
}

// The worker that takes a stranger's files in may not end when it is killed, because a file's
// server does not answer: what is charged bounds how many such workers a user can leave behind.
static void abandon(struct nb_service_job *job)
{
    job->abandoned = 1;
    job->owner = NULL;
    nb_worker_kill(job->worker);
    let_go(job);
}

void nb_jobs_cancel(struct nb_service_job *job)
{
    struct nb_broker *broker = job->broker;
    struct nb_refusal refusal;
    nb_refuse(&refusal, -ECANCELED, "job %" PRIu64 " was cancelled", job->row.id);
    if (job->serial && job->owner)
        nb_client_refuse(job->owner, NB_WIRE_JOB_START, job->serial, -ECANCELED, &refusal);
    nb_jobs_answer(job, -ECANCELED, &refusal);
    if (job->state == NB_JOBS_STORING && job->worker) {
        abandon(job);
        return;
    }
    nb_jobs_remove_folder(broker, job->row.id);
    nb_jobs_free(job);
    nb_jobs_kick(broker);
}

void nb_jobs_move(struct nb_service_job *job, enum nb_jobs_state state)
{
    job->state = state;
    if (is_over(job)) {
        job->ended_s = now_s();
        // Which looks when its time and the others' come.
        sd_event_source_set_time_relative(job->broker->jobs_expiry, 0);
    }
    nb_jobs_save(job);
    if (is_over(job)) {
        struct nb_refusal refusal;
        snprintf(refusal.text, sizeof(refusal.text), "%s", job->row.text);
        nb_jobs_answer(job, job->row.status, &refusal);
    } else {
        nb_jobs_tell(job);
    }
    nb_jobs_kick(job->broker);
}

void nb_jobs_fail(struct nb_service_job *job, int status, const char *text)
{
    snprintf(job->row.text, sizeof(job->row.text), "%s", text);
    nb_sentence_clean(job->row.text, sizeof(job->row.text));
    job->row.status = status;
    nb_log(LOG_NOTICE, "job %" PRIu64 " failed: %s", job->row.id, job->row.text);
    nb_jobs_move(job, NB_JOBS_FAILED);
}

// ---- Starting workers

static int spawn(struct nb_service_job *job, const char *half, const int *fds, size_t n_fds,
                 uint32_t files)
{
    struct nb_ledger *ledger = &job->broker->ledger;
    const uint64_t used = nb_ledger_used(ledger, job->row.uid, NB_RES_JOB_BYTES) -
                          job->charge.amount[NB_RES_JOB_BYTES];
    const uint64_t limit = ledger->limits[NB_RES_JOB_BYTES];
    const struct nb_spawn what = {.mode = "job",
                                  .argument = half,
                                  .fds = fds,
                                  .n_fds = n_fds,
                                  .file_bytes = used < limit ? limit - used : 1};
    struct nb_link_job packet = {.header = {.type = NB_LINK_JOB, .size = sizeof(packet)},
                                 .files = files,
                                 .idle = job->broker->config.jobs_idle != 0};
    memcpy(packet.kind, job->row.kind, sizeof(packet.kind));
    job->answered = 0;
    *job->fault = '\0';
    int rc = nb_worker_spawn(job->broker, &what, &ops, job, &job->worker);
    if (rc < 0)
        return rc;
    nb_peer_send(job->worker->link, &packet, NULL, 0);
    return 0;
}

int nb_jobs_store(struct nb_service_job *job, int socket, uint32_t n)
{
    const int fds[] = {nb_jobs_open_folder(job), job->recipe, socket};
    if (fds[0] < 0)
        return fds[0];
    int rc = spawn(job, "store", fds, sizeof(fds) / sizeof(*fds), n);
    close(fds[0]);
    return rc;
}

static void run(struct nb_service_job *job)
{
    char reason[NB_LIMIT_TEXT], text[NB_LIMIT_TEXT + 64];
    int folder = nb_jobs_open_folder(job);
    int rc = folder < 0 ? folder : spawn(job, "run", &folder, 1, 0);
    if (folder >= 0)
        close(folder);
    job->broker->job_uid = job->row.uid;
    if (rc == 0) {
        nb_jobs_move(job, NB_JOBS_RUNNING);
        return;
    }
    snprintf(text, sizeof(text), "its worker could not be started: %s",
             nb_limit_reason(rc, reason));
    nb_jobs_fail(job, rc, text);
}

// The first that waits, of another user than the last one's where there is one: nobody's jobs stand
// in all others' way.
static struct nb_service_job *next_job(const struct nb_broker *broker)
{
    struct nb_service_job *job, *first = NULL;
    TAILQ_FOREACH(job, &broker->service_jobs, entry) {
        if (job->state != NB_JOBS_WAITING || job->worker)
            continue;
        if (job->row.uid != broker->job_uid)
            return job;
        first = first ? first : job;
    }
    return first;
}

static int on_turn(sd_event_source *source, void *user)
{
    struct nb_broker *broker = user;
    struct nb_service_job *job;
    uint64_t running = 0;
    TAILQ_FOREACH(job, &broker->service_jobs, entry)
        running += job->worker && job->state != NB_JOBS_STORING;
    if (!broker->stopping && running < broker->config.jobs_running && (job = next_job(broker)))
        run(job); // which kicks for the next one
    return 0;
}

void nb_jobs_kick(struct nb_broker *broker)
{
    if (broker->jobs_turn && !broker->stopping)
        sd_event_source_set_enabled(broker->jobs_turn, SD_EVENT_ONESHOT);
}

// ---- What workers say

static void grant(struct nb_service_job *job, uint64_t bytes)
{
    struct nb_broker *broker = job->broker;
    struct nb_wire_header granted = {.type = NB_LINK_JOB_GRANT, .size = sizeof(granted)};
    uint64_t *has = job->state == NB_JOBS_STORING ? &job->copied_bytes : &job->result_bytes;
    const uint64_t amount[NB_RES_COUNT] = {[NB_RES_JOB_BYTES] = bytes > *has ? bytes - *has : 0};
    struct nb_charge charge = {0};
    struct nb_refusal refusal;
    int rc = nb_charge_take(&broker->ledger, job->row.uid, amount, &charge, &refusal);
    if (rc < 0) {
        // As if it had said so itself: it is judged when it has ended.
        job->answered = 1;
        job->answer = (struct nb_link_job_done){.header.status = rc};
        memcpy(job->answer.text, refusal.text, sizeof(job->answer.text));
        nb_worker_kill(job->worker);
        return;
    }
    nb_charge_merge(&job->charge, &charge);
    *has = bytes > *has ? bytes : *has;
    job->row.disk_bytes = job->copied_bytes + job->result_bytes;
    nb_jobs_save(job);
    nb_peer_send(job->worker->link, &granted, NULL, 0);
}

static void add_figure(struct nb_service_job *job, const struct nb_link_job_progress *p)
{
    if (!isfinite(p->figure) || p->done >= p->total)
        return;
    const uint32_t at = (uint32_t)((double)p->done / (double)p->total * NIBBLE_JOBS_CURVE);
    float *mean = &job->row.curve[at < NIBBLE_JOBS_CURVE ? at : NIBBLE_JOBS_CURVE - 1];
    uint32_t *n = &job->figures[mean - job->row.curve];
    *mean = *n ? *mean + (p->figure - *mean) / (float)(*n + 1) : p->figure;
    *n += *n < UINT32_MAX;
}

static void on_progress(struct nb_service_job *job, const struct nb_link_job_progress *p)
{
    job->row.done = p->done;
    job->row.total = p->total;
    job->row.eta_ms = p->eta_ms;
    _Static_assert(sizeof(p->text) <= sizeof(job->row.text), "what it is at");
    memcpy(job->row.text, p->text, sizeof(p->text));
    nb_sentence_clean(job->row.text, sizeof(p->text));
    add_figure(job, p);
    nb_jobs_tell(job);
}

static void on_done(struct nb_service_job *job, const struct nb_link_job_done *done)
{
    job->answer = *done;
    job->answered = 1;
    if (job->answer.header.status > 0 || job->answer.n > NB_JOB_RESULTS)
        job->answer.header.status = -EPROTO;
    nb_sentence_clean(job->answer.text, sizeof(job->answer.text));
}

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds)
{
    struct nb_service_job *job = owner;
    if (job->answered || job->abandoned)
        return; // nothing follows the last word
    if (packet->type == NB_LINK_JOB_PROGRESS && packet->size == sizeof(struct nb_link_job_progress))
        on_progress(job, (const struct nb_link_job_progress *)packet);
    else if (packet->type == NB_LINK_JOB_NEEDS && packet->size == sizeof(struct nb_link_job_needs))
        grant(job, ((const struct nb_link_job_needs *)packet)->bytes);
    else if (packet->type == NB_LINK_JOB_DONE && packet->size == sizeof(struct nb_link_job_done))
        on_done(job, (const struct nb_link_job_done *)packet);
    else if (packet->type == NB_LINK_FAULT && packet->size == sizeof(struct nb_link_fault)) {
        memcpy(job->fault, ((const struct nb_link_fault *)packet)->text, sizeof(job->fault));
        nb_sentence_clean(job->fault, sizeof(job->fault));
    } else {
        nb_log(LOG_ERR,
               "the worker of job %" PRIu64 " sent %#x, which is no message of its: killed",
               job->row.id, packet->type);
        nb_worker_kill(job->worker);
    }
}

// ---- What a worker's end means

static void finish(struct nb_service_job *job)
{
    job->row.n_results = job->answer.n;
    for (uint32_t i = 0; i < job->answer.n; i++) {
        memcpy(job->results[i], job->answer.names[i], sizeof(job->results[i]));
        nb_sentence_clean(job->results[i], sizeof(job->results[i]));
    }
    job->row.done = job->row.total;
    job->row.eta_ms = 0;
    *job->row.text = '\0';
    nb_log(LOG_INFO, "job %" PRIu64 " is finished", job->row.id);
    nb_jobs_move(job, NB_JOBS_FINISHED);
}

// It died. Its next worker goes on, unless three in a row came no further.
static void count_death(struct nb_service_job *job, const char *how)
{
    char text[sizeof(job->row.text)];
    const uint64_t journal = nb_jobs_journal_bytes(job);
    job->row.restarts++;
    job->deaths = journal > job->journal_bytes ? 1 : job->deaths + 1;
    job->journal_bytes = journal > job->journal_bytes ? journal : job->journal_bytes;
    nb_log(LOG_WARNING, "the worker of job %" PRIu64 " %s", job->row.id, how);
    if (job->deaths < DEATHS_MOST) {
        nb_jobs_move(job, NB_JOBS_WAITING);
        return;
    }
    snprintf(text, sizeof(text), "its worker %s, the third in a row that came no further%s%.96s",
             how, *job->row.text ? ": at " : "", job->row.text);
    nb_jobs_fail(job, NIBBLE_E_POISON, text);
}

static void judge_store(struct nb_service_job *job, const char *how)
{
    struct nb_refusal refusal = {""};
    int rc = job->answered ? job->answer.header.status : -EIO;
    let_go(job);
    if (rc == 0) {
        struct nb_wire_job reply = {
            .header = {NB_WIRE_JOB_START | NB_WIRE_REPLY, sizeof(reply), job->serial, 0},
            .job = job->row.id};
        nb_peer_send(job->owner->peer, &reply, NULL, 0);
        job->serial = 0;
        job->owner = job->detached ? NULL : job->owner;
        nb_jobs_move(job, NB_JOBS_WAITING);
        return;
    }
    if (job->answered)
        nb_refuse(&refusal, rc, "%.239s", job->answer.text);
    else
        nb_refuse(&refusal, rc, "the worker that took the files in %s%s%s", how,
                  *job->fault ? ": " : "", job->fault);
    nb_client_refuse(job->owner, NB_WIRE_JOB_START, job->serial, rc, &refusal);
    job->serial = 0;
    nb_jobs_cancel(job);
}

static void on_exited(void *owner, int clean, const char *how)
{
    struct nb_service_job *job = owner;
    struct nb_broker *broker = job->broker;
    job->worker = NULL;
    if (job->abandoned)
        nb_jobs_cancel(job);
    else if (job->state == NB_JOBS_STORING)
        judge_store(job, how);
    else if (job->answered && job->answer.header.status == 0)
        finish(job); // perhaps just before it would have been paused
    else if (job->answered)
        nb_jobs_fail(job, job->answer.header.status, job->answer.text);
    else if (job->state == NB_JOBS_RUNNING && *job->fault)
        nb_jobs_fail(job, -EIO, job->fault);
    else if (job->state == NB_JOBS_RUNNING && !broker->stopping)
        count_death(job, how);
    nb_jobs_kick(broker);
}

// ---- The daemon's start and end

// When the next job that is over has been kept long enough.
static int on_expiry(sd_event_source *source, uint64_t usec, void *user)
{
    struct nb_broker *broker = user;
    struct nb_service_job *job, *next;
    const uint64_t keep_s = broker->config.jobs_keep_ms / 1000, now = now_s();
    uint64_t first = now + 3600; // an hour at most: the settings may change
    for (job = TAILQ_FIRST(&broker->service_jobs); job; job = next) {
        next = TAILQ_NEXT(job, entry);
        if (!is_over(job))
            continue;
        const uint64_t due = job->ended_s + keep_s;
        if (due <= now) {
            nb_log(LOG_NOTICE,
                   "job %" PRIu64 " was not fetched in time and is removed (keep in [jobs])",
                   job->row.id);
            nb_jobs_cancel(job);
        } else if (due < first) {
            first = due;
        }
    }
    sd_event_source_set_time_relative(source, (first - now) * 1000000);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static void charge_again(struct nb_service_job *job)
{
    const uint64_t amount[NB_RES_COUNT] = {
        [NB_RES_JOBS] = 1, [NB_RES_JOB_BYTES] = job->copied_bytes + job->result_bytes};
    (void)nb_charge_anyway(&job->broker->ledger, job->row.uid, amount, &job->charge);
    job->row.disk_bytes = job->copied_bytes + job->result_bytes;
}

int nb_jobs_init(struct nb_broker *broker)
{
    struct nb_service_job *job;
    int rc = nb_jobs_open_dir(broker);
    if (rc < 0)
        nb_log(LOG_WARNING, "%s/jobs cannot be used (%s): no job can be started", broker->state_dir,
               strerror(-rc));
    else
        nb_jobs_load(broker);
    TAILQ_FOREACH(job, &broker->service_jobs, entry) {
        charge_again(job);
        job->detached = 1;
        if (job->state == NB_JOBS_RUNNING)
            job->state = NB_JOBS_WAITING;
        if (is_over(job))
            job->row.done = job->state == NB_JOBS_FINISHED ? job->row.total : 0;
        else
            nb_log(LOG_INFO, "job %" PRIu64 " is %s", job->row.id, nb_jobs_states[job->state]);
    }
    rc = sd_event_add_defer(broker->loop, &broker->jobs_turn, on_turn, broker);
    if (rc >= 0)
        rc = sd_event_add_time_relative(broker->loop, &broker->jobs_expiry, CLOCK_BOOTTIME, 1000000,
                                        0, on_expiry, broker);
    return rc < 0 ? rc : 0;
}

void nb_jobs_stop(struct nb_broker *broker)
{
    struct nb_service_job *job;
    TAILQ_FOREACH(job, &broker->service_jobs, entry)
        nb_worker_kill(job->worker);
}

void nb_jobs_finish(struct nb_broker *broker)
{
    while (!TAILQ_EMPTY(&broker->service_jobs))
        nb_jobs_free(TAILQ_FIRST(&broker->service_jobs));
    sd_event_source_disable_unref(broker->jobs_turn);
    sd_event_source_disable_unref(broker->jobs_expiry);
    if (broker->jobs_dir >= 0)
        close(broker->jobs_dir);
    broker->jobs_dir = -1;
}

static void drop_waits(struct nb_service_job *job, const struct nb_client *client)
{
    struct nb_jobs_wait *wait, *next;
    for (wait = TAILQ_FIRST(&job->waits); wait; wait = next) {
        next = TAILQ_NEXT(wait, entry);
        if (wait->client != client)
            continue;
        TAILQ_REMOVE(&job->waits, wait, entry);
        free(wait);
    }
}

// What is attached to it is cancelled; not so when the daemon ends, whose next start goes on with
// it, nor what is finished: its client may not have come to fetch it.
void nb_jobs_drop_client(struct nb_client *client)
{
    struct nb_broker *broker = client->broker;
    struct nb_service_job *job, *next;
    for (job = TAILQ_FIRST(&broker->service_jobs); job; job = next) {
        next = TAILQ_NEXT(job, entry);
        drop_waits(job, client);
        if (job->owner != client)
            continue;
        job->owner = NULL;
        if (job->state == NB_JOBS_STORING || (job->state != NB_JOBS_FINISHED && !broker->stopping))
            nb_jobs_cancel(job);
    }
}
