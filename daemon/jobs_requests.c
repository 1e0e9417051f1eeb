// Requests about jobs, and who is told of them. An application's are about its own user's jobs, an
// admin's about all.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/broker.h"
#include "daemon/jobs.h"
#include "daemon/log.h"
#include "daemon/peer.h"
#include "daemon/refusal.h"
#include "daemon/spawn.h"
#include "libclient/sentence.h"

#define SEALS      (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)
#define WAITS_MOST 64 // of a job

bool nb_jobs_shown_to(const struct nb_service_job *job, const struct nb_client *client)
{
    return job->state != NB_JOBS_STORING &&
           (client->role == NB_ROLE_ADMIN || job->row.uid == client->uid);
}

// NULL after a refusal, which is -ENOENT.
static struct nb_service_job *find(const struct nb_client *client, uint64_t id,
                                   struct nb_refusal *refusal)
{
    struct nb_service_job *job;
    TAILQ_FOREACH(job, &client->broker->service_jobs, entry)
        if (job->row.id == id && nb_jobs_shown_to(job, client))
            return job;
    nb_refuse(refusal, -ENOENT, "there is no job %" PRIu64 ": `nibble jobs` lists yours", id);
    return NULL;
}

// ---- Telling

void nb_jobs_tell_one(const struct nb_service_job *job, const struct nb_jobs_wait *wait)
{
    const struct nibble_jobs_row *row = &job->row;
    struct nb_wire_job_progress event = {
        .header = {NB_WIRE_JOB_PROGRESS, sizeof(event), wait->serial, 0},
        .job = row->id,
        .done = row->done,
        .total = row->total,
        .eta_ms = row->eta_ms,
    };
    // A client that has not read the last one yet does not need another.
    if (nb_peer_queued(wait->client->peer))
        return;
    snprintf(event.state, sizeof(event.state), "%s", nb_jobs_states[job->state]);
    snprintf(event.text, sizeof(event.text), "%.119s", row->text);
    _Static_assert(sizeof(event.curve) == sizeof(row->curve), "one curve");
    memcpy(event.curve, row->curve, sizeof(event.curve));
    nb_peer_send(wait->client->peer, &event, NULL, 0);
}

void nb_jobs_tell(struct nb_service_job *job)
{
    const struct nb_jobs_wait *wait;
    TAILQ_FOREACH(wait, &job->waits, entry)
        nb_jobs_tell_one(job, wait);
}

void nb_jobs_answer(struct nb_service_job *job, int status, const struct nb_refusal *refusal)
{
    struct nb_jobs_wait *wait;
    while ((wait = TAILQ_FIRST(&job->waits))) {
        TAILQ_REMOVE(&job->waits, wait, entry);
        if (status < 0)
            nb_client_refuse(wait->client, NB_WIRE_JOB_WAIT, wait->serial, status, refusal);
        else
            nb_client_done(wait->client, NB_WIRE_JOB_WAIT, wait->serial);
        free(wait);
    }
}

// ---- JOB_START

static int check_kind(const char *kind, size_t size, struct nb_refusal *refusal)
{
    static const char known[] = "abcdefghijklmnopqrstuvwxyz0123456789-";
    const size_t len = strnlen(kind, size);
    if (len && len < size && strspn(kind, known) == len)
        return 0;
    return nb_refuse(refusal, -EINVAL, "a job's kind is 1 to %zu small letters", size - 1);
}

// A memfd, by its seals, before anything else is asked of it: what a stranger's file answers to
// fstat may take long.
static int check_recipe(int fd, struct nb_refusal *refusal)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) < 0)
        return nb_refuse(refusal, -EINVAL,
                         "a recipe comes as a memfd that is sealed against any change");
    if (st.st_size < 1 || st.st_size > (off_t)NB_JOB_RECIPE_MAX)
        return nb_refuse(refusal, -EINVAL, "a recipe has 1 to %u bytes, not %lld",
                         NB_JOB_RECIPE_MAX, (long long)st.st_size);
    return 0;
}

static int check_start(const struct nb_client *client, const struct nb_wire_job_start *request,
                       int recipe, struct nb_refusal *refusal)
{
    int rc = check_kind(request->kind, sizeof(request->kind), refusal);
    if (rc == 0)
        rc = check_recipe(recipe, refusal);
    if (rc == 0 && (request->files < 1 || request->files > NB_WIRE_FILES))
        rc = nb_refuse(refusal, -EINVAL, "a job has 1 to %d files", NB_WIRE_FILES);
    if (rc == 0 && client->broker->stopping)
        rc = nb_refuse(refusal, NIBBLE_E_LOST, "the daemon is stopping");
    if (rc == 0 && client->broker->jobs_dir < 0)
        rc = nb_refuse(refusal, -EIO, "the daemon has no state directory for jobs: see its log");
    return rc;
}

static int create(struct nb_client *client, const struct nb_wire_job_start *request,
                  struct nb_charge *charge, struct nb_service_job **ret, struct nb_refusal *refusal)
{
    struct nb_broker *broker = client->broker;
    uint64_t id = 0;
    int rc = nb_jobs_make_folder(broker, &id);
    if (rc < 0)
        return nb_refuse(refusal, rc, "the state directory cannot be written: %s", strerror(-rc));
    struct nb_service_job *job = nb_jobs_create(broker, id);
    if (!job) {
        nb_jobs_remove_folder(broker, id);
        return -ENOMEM;
    }
    job->row.uid = client->uid;
    memcpy(job->row.kind, request->kind, sizeof(job->row.kind));
    memcpy(job->row.name, request->name, sizeof(job->row.name));
    nb_sentence_clean(job->row.name, sizeof(job->row.name));
    job->detached = request->flags & NB_JOB_DETACHED ? 1 : 0;
    nb_charge_merge(&job->charge, charge);
    nb_jobs_save(job);
    *ret = job;
    return 0;
}

// The client's end of the way to the worker. The broker has neither end of it from then on: it does
// not receive a stranger's files, because each process that it forks would have to close them, and
// that may take long.
static int ask_for_files(struct nb_client *client, const struct nb_service_job *job,
                         uint32_t serial, int socket, struct nb_refusal *refusal)
{
    const struct nb_wire_job event = {.header = {NB_WIRE_JOB_FILES, sizeof(event), serial, 0},
                                      .job = job->row.id};
    int rc = nb_client_expect_fds(client, 1, refusal);
    if (rc < 0)
        close(socket);
    else
        nb_peer_send(client->peer, &event, &socket, 1);
    return rc;
}

static int store(struct nb_client *client, struct nb_service_job *job,
                 const struct nb_wire_job_start *request, struct nb_refusal *refusal)
{
    int pair[2];
    int rc = nb_wire_pair(SOCK_SEQPACKET, pair);
    if (rc < 0)
        return rc;
    rc = nb_jobs_store(job, pair[0], request->files);
    close(pair[0]);
    if (rc < 0) {
        close(pair[1]);
        return rc;
    }
    return ask_for_files(client, job, request->header.serial, pair[1], refusal);
}

// It takes the recipe.
static int start(struct nb_client *client, const struct nb_wire_job_start *request, int *fd,
                 struct nb_refusal *refusal)
{
    static const uint64_t amount[NB_RES_COUNT] = {[NB_RES_JOBS] = 1};
    struct nb_ledger *ledger = &client->broker->ledger;
    struct nb_charge charge = {0};
    struct nb_service_job *job = NULL;
    int rc = nb_charge_take(ledger, client->uid, amount, &charge, refusal);
    if (rc == 0)
        rc = create(client, request, &charge, &job, refusal);
    nb_charge_release(ledger, &charge);
    if (!job)
        return rc;
    job->recipe = *fd;
    *fd = -1;
    rc = store(client, job, request, refusal);
    if (rc < 0) {
        nb_jobs_cancel(job);
        return rc;
    }
    job->owner = client;
    job->serial = request->header.serial;
    return 0;
}

NB_HANDLER(nb_on_job_start)
{
    const struct nb_wire_job_start *request = packet;
    int rc = check_start(client, request, fds[0], refusal);
    if (rc == 0)
        rc = start(client, request, &fds[0], refusal);
    return rc;
}

// ---- JOB_WAIT

static size_t count_waits(const struct nb_service_job *job)
{
    const struct nb_jobs_wait *wait;
    size_t n = 0;
    TAILQ_FOREACH(wait, &job->waits, entry)
        n++;
    return n;
}

static int wait_for(struct nb_client *client, struct nb_service_job *job, uint32_t serial,
                    struct nb_refusal *refusal)
{
    if (count_waits(job) >= WAITS_MOST)
        return nb_refuse(refusal, NIBBLE_E_QUOTA, "%d connections wait for job %" PRIu64 " already",
                         WAITS_MOST, job->row.id);
    struct nb_jobs_wait *wait = calloc(1, sizeof(*wait));
    if (!wait)
        return -ENOMEM;
    wait->client = client;
    wait->serial = serial;
    TAILQ_INSERT_TAIL(&job->waits, wait, entry);
    nb_jobs_tell_one(job, wait);
    return 0;
}

NB_HANDLER(nb_on_job_wait)
{
    const struct nb_wire_job *request = packet;
    struct nb_service_job *job = find(client, request->job, refusal);
    int rc = 0;
    if (!job)
        return -ENOENT;
    if (job->state == NB_JOBS_FINISHED)
        nb_client_done(client, NB_WIRE_JOB_WAIT, request->header.serial);
    else if (job->state == NB_JOBS_FAILED)
        rc = nb_refuse(refusal, job->row.status, "%s", job->row.text);
    else
        rc = wait_for(client, job, request->header.serial, refusal);
    return rc;
}

// ---- JOB_CONTROL

static int refuse_state(const struct nb_service_job *job, struct nb_refusal *refusal)
{
    return nb_refuse(refusal, -EINVAL, "job %" PRIu64 " is %s", job->row.id,
                     nb_jobs_states[job->state]);
}

static int pause_job(struct nb_service_job *job, struct nb_refusal *refusal)
{
    if (job->state != NB_JOBS_WAITING && job->state != NB_JOBS_RUNNING)
        return refuse_state(job, refusal);
    nb_jobs_move(job, NB_JOBS_PAUSED);
    nb_worker_kill(job->worker);
    return 0;
}

static int resume_job(struct nb_service_job *job, struct nb_refusal *refusal)
{
    if (job->state != NB_JOBS_PAUSED && job->state != NB_JOBS_FAILED)
        return refuse_state(job, refusal);
    job->deaths = 0;
    job->row.status = 0;
    *job->row.text = '\0';
    nb_jobs_move(job, NB_JOBS_WAITING);
    return 0;
}

static int cancel_job(struct nb_service_job *job, struct nb_refusal *refusal)
{
    nb_jobs_cancel(job);
    return 0;
}

NB_HANDLER(nb_on_job_control)
{
    static int (*const run[])(struct nb_service_job *, struct nb_refusal *) = {
        [NB_JOB_CANCEL] = cancel_job, [NB_JOB_PAUSE] = pause_job, [NB_JOB_RESUME] = resume_job};
    const struct nb_wire_job_control *request = packet;
    struct nb_service_job *job = find(client, request->job, refusal);
    if (!job)
        return -ENOENT;
    if (request->what >= sizeof(run) / sizeof(*run))
        return nb_refuse(refusal, -EINVAL, "a job cannot be steered by %" PRIu32, request->what);
    int rc = run[request->what](job, refusal);
    if (rc == 0)
        nb_client_done(client, NB_WIRE_JOB_CONTROL, request->header.serial);
    return rc;
}

// ---- JOB_RESULT

static int open_result(const struct nb_service_job *job, uint32_t index,
                       struct nb_wire_job_result *ret, struct nb_refusal *refusal)
{
    struct stat st;
    int fd = nb_jobs_open_result(job, index);
    if (fd < 0 || fstat(fd, &st) < 0) {
        int rc = nb_refuse(refusal, fd < 0 ? fd : -errno, "the result of job %" PRIu64 " is gone",
                           job->row.id);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    ret->bytes = (uint64_t)st.st_size;
    ret->n = job->row.n_results;
    memcpy(ret->name, job->results[index], sizeof(ret->name));
    return fd;
}

NB_HANDLER(nb_on_job_result)
{
    const struct nb_wire_job_result *request = packet;
    struct nb_wire_job_result reply = {
        .header = {NB_WIRE_JOB_RESULT | NB_WIRE_REPLY, sizeof(reply), request->header.serial, 0},
        .job = request->job,
        .index = request->index};
    const struct nb_service_job *job = find(client, request->job, refusal);
    if (!job)
        return -ENOENT;
    if (job->state != NB_JOBS_FINISHED)
        return nb_refuse(refusal, NIBBLE_E_BUSY, "job %" PRIu64 " is %s: it has no result yet",
                         job->row.id, nb_jobs_states[job->state]);
    if (request->index >= job->row.n_results)
        return nb_refuse(refusal, -EINVAL, "job %" PRIu64 " has %" PRIu32 " results", job->row.id,
                         job->row.n_results);
    int rc = nb_client_expect_fds(client, 1, refusal);
    if (rc == 0)
        rc = open_result(job, request->index, &reply, refusal);
    if (rc < 0)
        return rc;
    nb_peer_send(client->peer, &reply, &rc, 1);
    return 0;
}
