// Jobs of the service: started, listed, steered and waited for; their results come as fds.
#include "libclient/client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libclient/files.h"
#include "libclient/sentence.h"
#include "machine/bounds.h"

#define REQUEST_MS 30000

// ---- Starting

// The recipe as memory that nobody can change any more.
static int seal_recipe(nibble *c, const char *recipe)
{
    const int seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    char reason[NB_LIMIT_TEXT];
    const size_t len = strlen(recipe);
    if (!len || len > NB_JOB_RECIPE_MAX)
        return nb_fail(c, -EINVAL, "a recipe has 1 to %u bytes, not %zu", NB_JOB_RECIPE_MAX, len);
    int fd = memfd_create("nibble-recipe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd >= 0 && write(fd, recipe, len) == (ssize_t)len && fcntl(fd, F_ADD_SEALS, seals) == 0)
        return fd;
    int rc = -errno;
    if (fd >= 0)
        close(fd);
    return nb_fail(c, rc, "no memory for the recipe: %s", nb_limit_reason(rc, reason));
}

static int make_request(nibble *c, const char *path, const struct nibble_compress_options *options,
                        struct nb_wire_job_start *ret)
{
    const bool weighted = options->n_calibration || options->imatrix;
    const char *kind = options->kind ? options->kind : weighted ? "weighted" : "round";
    const char *slash = strrchr(path, '/');
    const char *name = slash && slash[1] ? slash + 1 : path;
    struct nb_wire_job_start request = {.flags = options->detached ? NB_JOB_DETACHED : 0};
    if (!options->recipe)
        return nb_fail(c, -EINVAL, "a compression needs a recipe, as {\"to\": \"Q8_0\"}");
    if (options->n_calibration && !options->calibration)
        return nb_fail(c, -EINVAL, "n_calibration counts files that calibration does not have");
    if (strlen(kind) >= sizeof(request.kind))
        return nb_fail(c, -EINVAL, "no such kind of job: \"%s\"", kind);
    memcpy(request.kind, kind, strlen(kind));
    snprintf(request.name, sizeof(request.name), "%.63s", name);
    nb_sentence_clean(request.name, sizeof(request.name));
    *ret = request;
    return 0;
}

// A socket that takes no more is that of a worker that has ended: the daemon says why.
void nb_send_files(nibble *c, int socket)
{
    const int64_t deadline = nb_deadline(REQUEST_MS);
    for (size_t i = 0; i < c->files->n; i++) {
        const struct nb_model_file *file = &c->files->items[i];
        struct nb_wire_file packet = {.header = {NB_WIRE_FILE, sizeof(packet), 0, 0}};
        int rc;
        memcpy(packet.name, file->name, sizeof(packet.name));
        while ((rc = nb_wire_send(socket, &packet, sizeof(packet), &file->fd, 1)) == -EAGAIN) {
            struct pollfd writable = {socket, POLLOUT, 0};
            if (poll(&writable, 1, nb_left_ms(deadline)) == 0)
                return;
        }
        if (rc < 0)
            return;
    }
}

static int request_start(nibble *c, struct nb_wire_job_start *request,
                         const struct nb_model_files *files, int recipe, uint64_t *ret_job)
{
    struct nb_packet reply;
    struct nb_wire_job job;
    request->files = (uint32_t)files->n;
    if (c->requesting)
        return nb_fail(c, -EBUSY, "a request is under way on this connection");
    c->files = files;
    int rc = nb_request(c, NB_WIRE_JOB_START, request, &recipe, &reply, -1);
    c->files = NULL;
    if (rc < 0)
        return rc;
    memcpy(&job, reply.bytes, sizeof(job));
    *ret_job = job.job;
    return 0;
}

// The model's, and what a weighted compression takes beside them.
static int open_files(const struct nibble_compress_options *options, const char *path,
                      struct nb_model_files *ret, char sentence[NB_SENTENCE])
{
    int rc = nb_model_files_open(path, ret, sentence, NB_SENTENCE);
    if (rc >= 0)
        rc = nb_model_files_add_adapters(ret, options->adapters, options->n_adapters, sentence,
                                         NB_SENTENCE);
    for (size_t i = 0; i < options->n_calibration && rc >= 0; i++)
        rc = nb_model_files_add_texts(ret, options->calibration[i], NB_JOB_CALIBRATION, sentence,
                                      NB_SENTENCE);
    if (options->imatrix && rc >= 0)
        rc = nb_model_files_add(ret, options->imatrix, NB_JOB_IMATRIX, sentence, NB_SENTENCE);
    if (options->teacher && rc >= 0)
        rc = nb_model_files_add(ret, options->teacher, NB_JOB_TEACHER, sentence, NB_SENTENCE);
    return rc;
}

int nibble_compress(nibble *c, const char *path, const struct nibble_compress_options *given,
                    uint64_t *ret_job)
{
    struct nibble_compress_options options;
    struct nb_wire_job_start request;
    struct nb_model_files files = {0};
    char sentence[NB_SENTENCE];
    int rc = nb_options_read(c, NB_OPTIONS_COMPRESS, given, &options);
    if (rc == 0)
        rc = make_request(c, path, &options, &request);
    int recipe = rc == 0 ? seal_recipe(c, options.recipe) : rc;
    if (recipe < 0)
        return recipe;
    rc = open_files(&options, path, &files, sentence);
    if (rc < 0)
        nb_fail(c, rc, "%s", sentence);
    else
        rc = request_start(c, &request, &files, recipe, ret_job);
    nb_model_files_close(&files);
    close(recipe);
    return rc;
}

// ---- Later

int nibble_jobs_wait(nibble *c, uint64_t job, const struct nibble_jobs_wait_options *given)
{
    struct nibble_jobs_wait_options options = {.size = sizeof(options)};
    struct nb_wire_job request = {.job = job};
    struct nb_packet reply;
    int rc = given ? nb_options_read(c, NB_OPTIONS_JOBS_WAIT, given, &options) : 0;
    if (rc < 0)
        return rc;
    if (c->requesting)
        return nb_fail(c, -EBUSY, "a job is waited for on this connection");
    struct nb_wait wait = {.options = &options};
    c->wait = &wait;
    rc = nb_request(c, NB_WIRE_JOB_WAIT, &request, NULL, &reply, -1);
    c->wait = NULL;
    if (wait.given_up)
        return nb_fail(c, NIBBLE_E_CANCELLED, "job %llu is not waited for any longer",
                       (unsigned long long)job);
    return rc < 0 ? rc : 0;
}

int nibble_jobs_control(nibble *c, uint64_t job, enum nibble_jobs_what what)
{
    struct nb_wire_job_control request = {.job = job, .what = what};
    struct nb_packet reply;
    int rc = nb_request(c, NB_WIRE_JOB_CONTROL, &request, NULL, &reply, REQUEST_MS);
    return rc < 0 ? rc : 0;
}

int nibble_jobs_result(nibble *c, uint64_t job, uint32_t index, int *ret_fd,
                       struct nibble_jobs_result *ret_info)
{
    struct nb_wire_job_result request = {.job = job, .index = index}, result;
    struct nb_packet reply;
    int rc = nb_request(c, NB_WIRE_JOB_RESULT, &request, NULL, &reply, REQUEST_MS);
    if (rc < 0)
        return rc;
    memcpy(&result, reply.bytes, sizeof(result));
    nb_sentence_clean(result.name, sizeof(result.name));
    if (ret_info) {
        *ret_info = (struct nibble_jobs_result){.bytes = result.bytes, .n = result.n};
        memcpy(ret_info->name, result.name, sizeof(ret_info->name));
    }
    *ret_fd = reply.fds[0];
    return 0;
}
