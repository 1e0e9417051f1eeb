// Mode `job`: takes in a job (store), or does it (run). A run opens all that it will need, then
// enters its sandbox, and only then looks into a file. It is killed without a word when its job is
// paused or cancelled: what it has told in the journal is all that counts.
#include "daemon/worker/jobs.h"
#include "daemon/worker/jobs_statistics.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/worker/sandbox.h"
#include "daemon/worker/worker.h"
#include "grad/gemm.h"
#include "machine/bounds.h"

#define RECIPE         "recipe"
#define PROGRESS_NS    100000000u  // between two packets
#define ETA_NS         1000000000u // before a rate means anything
#define SIDE           384u        // of the products that tell the machine's speed
#define PRODUCTS       4           // of them
#define LINUX_IOPRIO   (3 << 13)   // IOPRIO_CLASS_IDLE
#define IOPRIO_PROCESS 1

static const struct nb_work_kind kinds[] = {
    {.name = "round",
     .results = {"model.gguf", "report.json"},
     .check = nb_jobs_round_check,
     .run = nb_jobs_round},
    {.name = "weighted",
     .results = {"model.gguf", "report.json", "imatrix.gguf"},
     .scratch = true,
     .statistics = true,
     .check = nb_jobs_round_check,
     .run = nb_jobs_weighted},
    {.name = "folder",
     .results = {"model.safetensors", "report.json", "texts.json"},
     .scratch = true,
     .statistics = true,
     .check = nb_jobs_folder_check,
     .run = nb_jobs_folder},
    {.name = "distill",
     .results = {"model.gguf", "report.json"},
     .scratch = true,
     .check = nb_jobs_distill_check,
     .run = nb_jobs_distill,
     .device = nb_jobs_distill_device},
    {.name = "onnx",
     .results = {"model.onnx", "report.json"},
     .check = nb_jobs_onnx_check,
     .run = nb_jobs_onnx},
};

static const struct nb_work_kind *kind_of(const char *name)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (!strcmp(kinds[i].name, name))
            return &kinds[i];
    return NULL;
}

static const struct nb_work_kind *find_kind(const struct nb_link_job *job, struct nb_error *e)
{
    char name[sizeof(job->kind) + 1] = "";
    memcpy(name, job->kind, sizeof(job->kind));
    const struct nb_work_kind *kind = kind_of(name);
    if (!kind)
        nb_fail(e, -ENOTSUP, "there is no kind of job \"%s\" in this release", name);
    return kind;
}

// ---- What it says

int nb_jobs_need(uint64_t bytes)
{
    struct nb_link_job_needs needs = {.bytes = bytes};
    struct nb_wire_header grant;
    nb_link_send(&needs, NB_LINK_JOB_NEEDS, sizeof(needs));
    return nb_link_receive(&grant, NB_LINK_JOB_GRANT, sizeof(grant));
}

// The least of some products of SIDE by SIDE matrices, in ns; 0 without memory.
static double time_product(struct nb_team *team)
{
    float *m = calloc((size_t)3 * SIDE * SIDE, sizeof(*m));
    uint64_t least = 0;
    for (unsigned i = 0; m && i < PRODUCTS; i++) {
        const uint64_t start = nb_now_ns();
        nb_sgemm(team, false, true, SIDE, SIDE, SIDE, m, SIDE, m + (size_t)SIDE * SIDE, SIDE, 0,
                 m + (size_t)2 * SIDE * SIDE, SIDE);
        const uint64_t took = nb_now_ns() - start;
        least = i && least < took ? least : took;
    }
    free(m);
    return (double)least;
}

void nb_jobs_pace(struct nb_work *work, double operations)
{
    work->pace = operations * time_product(work->team) / (2.0 * SIDE * SIDE * SIDE);
}

// From what was done since this process began: what was done before took another time.
static uint64_t estimate(const struct nb_work *work, uint64_t now, uint64_t done, uint64_t total)
{
    const uint64_t spent = now - work->started_ns, fresh = done - work->started_done;
    const bool early = spent < ETA_NS || !fresh;
    if (done > total || (early && !(work->pace > 0)))
        return UINT64_MAX;
    const double pace = early ? work->pace : (double)spent / (double)fresh;
    return (uint64_t)((double)(total - done) * pace / 1e6);
}

void nb_jobs_tell(struct nb_work *work, const char *what, uint64_t done, uint64_t total)
{
    const uint64_t now = nb_now_ns();
    if (!work->started_ns) {
        work->started_ns = now;
        work->started_done = done;
    }
    if (work->told_ns && now - work->told_ns < PROGRESS_NS && done < total)
        return;
    work->told_ns = now;
    struct nb_link_job_progress packet = {.done = done,
                                          .total = total,
                                          .eta_ms = estimate(work, now, done, total),
                                          .figure = work->figure};
    snprintf(packet.text, sizeof(packet.text), "%.119s", what);
    nb_link_send(&packet, NB_LINK_JOB_PROGRESS, sizeof(packet));
}

static int finish(int rc, const struct nb_work_kind *kind, const struct nb_error *error)
{
    char reason[NB_LIMIT_TEXT];
    struct nb_link_job_done done = {.header.status = rc < 0 ? nb_link_status(rc) : 0};
    if (rc < 0)
        snprintf(done.text, sizeof(done.text), "%.239s",
                 error->text[0] ? error->text : nb_limit_reason(rc, reason));
    for (; rc == 0 && kind && kind->results[done.n]; done.n++)
        snprintf(done.names[done.n], sizeof(done.names[0]), "%s", kind->results[done.n]);
    nb_link_send(&done, NB_LINK_JOB_DONE, sizeof(done));
    return EXIT_SUCCESS;
}

static int enter(enum nb_sandbox profile, struct nb_error *e)
{
    json_object_seed(0); // of hash tables, which needs a file that the sandbox has not
    int rc = nb_sandbox_enter(profile);
    return rc < 0 ? nb_fail(e, rc, "the sandbox cannot be entered: %s", strerror(-rc)) : 0;
}

// ---- store

static int store_recipe(char text[NB_JOB_RECIPE_MAX], size_t *ret_len, struct nb_error *e)
{
    ssize_t n = pread(NB_JOB_RECIPE_FD, text, NB_JOB_RECIPE_MAX, 0);
    int rc = n < 0 ? -errno : nb_jobs_write(RECIPE, text, (size_t)n);
    *ret_len = n < 0 ? 0 : (size_t)n;
    return rc < 0 ? nb_fail(e, rc, "the state directory cannot be written: %s", strerror(-rc)) : 0;
}

// The folder's own record, the folder, and the folder that it is in.
static int sync_folder(struct nb_error *e)
{
    static const char *const names[] = {"job", ".", ".."};
    int rc = 0;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && rc == 0; i++) {
        int fd = openat(NB_JOB_FOLDER_FD, names[i], O_RDONLY | O_CLOEXEC);
        if (fd < 0 || fsync(fd) < 0)
            rc = nb_fail(e, -errno, "the state directory cannot be written: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    return rc;
}

static int store(const struct nb_link_job *job, struct nb_error *e)
{
    static struct nb_jobs_files files;
    static char recipe[NB_JOB_RECIPE_MAX];
    char device[NB_JOB_DEVICE] = "";
    size_t len = 0;
    int device_fd = -1;
    const struct nb_work_kind *kind = find_kind(job, e);
    int rc = kind ? nb_jobs_files_receive(job->files, &files, e) : -ENOTSUP;
    if (rc == 0)
        rc = store_recipe(recipe, &len, e);
    if (rc == 0)
        rc = nb_jobs_files_store(&files, e);
    if (rc == 0)
        rc = nb_jobs_device_begin(&device_fd, e);
    if (rc == 0)
        rc = sync_folder(e);
    // The recipe is looked into last, behind the sandbox's door.
    if (rc == 0)
        rc = enter(NB_SANDBOX_JOB, e);
    if (rc == 0)
        rc = kind->check(recipe, len, e);
    if (rc < 0 || !kind->device)
        return rc;
    kind->device(recipe, len, device);
    return nb_jobs_device_keep(device_fd, device, e);
}

// ---- run

// Nothing that serves waits for it.
static void step_back(void)
{
    const struct sched_param none = {0};
    (void)sched_setscheduler(0, SCHED_IDLE, &none);
    (void)setpriority(PRIO_PROCESS, 0, 19);
    (void)syscall(SYS_ioprio_set, IOPRIO_PROCESS, 0, LINUX_IOPRIO);
}

static int open_to_write(const char *name, struct nb_error *e)
{
    int fd = openat(NB_JOB_FOLDER_FD, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    return fd < 0 ? nb_fail(e, -errno, "%s in the state directory cannot be opened: %s", name,
                            strerror(errno))
                  : fd;
}

static int open_results(const struct nb_work_kind *kind, struct nb_work *work, struct nb_error *e)
{
    char name[24];
    work->journal = open_to_write("journal", e);
    int rc = work->journal < 0 ? work->journal : 0;
    // One that another broker had started may not have ended yet: two never write.
    while (rc == 0 && flock(work->journal, LOCK_EX) < 0)
        if (errno != EINTR)
            rc = nb_fail(e, -errno, "the job's journal cannot be locked: %s", strerror(errno));
    for (uint32_t i = 0; rc == 0 && kind->results[i]; i++) {
        snprintf(name, sizeof(name), "result.%u", i);
        work->results[i] = open_to_write(name, e);
        rc = work->results[i] < 0 ? work->results[i] : 0;
    }
    for (uint32_t i = 0; rc == 0 && kind->scratch && i < NB_JOB_SCRATCH; i++) {
        snprintf(name, sizeof(name), "scratch.%u", i);
        work->scratch[i] = open_to_write(name, e);
        rc = work->scratch[i] < 0 ? work->scratch[i] : 0;
    }
    return rc;
}

// What the work is done from: what is told in the journal holds for nothing else.
static int make_key(const struct nb_work_kind *kind, struct nb_work *work, const char *list,
                    size_t len)
{
    XXH128_canonical_t key;
    XXH3_state_t *hash = XXH3_createState();
    if (!hash)
        return -ENOMEM;
    XXH3_128bits_reset(hash);
    XXH3_128bits_update(hash, kind->name, strlen(kind->name) + 1);
    XXH3_128bits_update(hash, work->recipe, work->recipe_len + 1);
    XXH3_128bits_update(hash, list, len);
    XXH128_canonicalFromHash(&key, XXH3_128bits_digest(hash));
    memcpy(work->key, &key, sizeof(work->key));
    XXH3_freeState(hash);
    return 0;
}

// What depends on which files there are.
static int look_up(const struct nb_work_kind *kind, struct nb_work *work, struct nb_error *e)
{
    char *list = NULL;
    size_t len = 0;
    int rc = nb_jobs_read("files", SIZE_MAX / 2, &list, &len);
    if (rc == 0)
        rc = make_key(kind, work, list, len);
    work->statistics = rc == 0 && kind->statistics ? nb_jobs_statistics_open(list, len) : -1;
    free(list);
    return rc < 0 ? nb_fail(e, rc, "the job's list of files cannot be read: %s", strerror(-rc)) : 0;
}

static int make_team(struct nb_work *work, struct nb_error *e)
{
    int rc = nb_cpu_allowed(&work->allowed);
    if (rc == 0)
        rc = nb_team_create(work->allowed.threads, &work->team);
    return rc < 0 ? nb_fail(e, rc, "the threads cannot be started: %s", strerror(-rc)) : 0;
}

static int prepare(const struct nb_work_kind *kind, struct nb_work *work,
                   struct nb_jobs_files *files, struct nb_error *e)
{
    char *recipe = NULL;
    int rc = nb_jobs_read(RECIPE, NB_JOB_RECIPE_MAX, &recipe, &work->recipe_len);
    if (rc < 0)
        return nb_fail(e, rc, "the job's recipe cannot be read: %s", strerror(-rc));
    work->recipe = recipe;
    rc = nb_jobs_files_open(files, e);
    if (rc == 0)
        rc = open_results(kind, work, e);
    if (rc == 0)
        rc = look_up(kind, work, e);
    if (rc == 0 && fsync(NB_JOB_FOLDER_FD) < 0)
        rc = nb_fail(e, -errno, "the state directory cannot be written: %s", strerror(errno));
    if (rc == 0)
        rc = make_team(work, e);
    memcpy(work->files, files->items, sizeof(work->files));
    work->n_files = files->n;
    if (rc == 0)
        rc = nb_jobs_device_open(work, e);
    close(NB_JOB_FOLDER_FD);
    return rc;
}

static int run(const struct nb_work_kind *kind, bool idle, struct nb_error *e)
{
    static struct nb_work work = {.figure = NAN};
    static struct nb_jobs_files files;
    if (idle)
        step_back();
    int rc = prepare(kind, &work, &files, e);
    if (rc == 0)
        rc = enter(work.device ? NB_SANDBOX_JOB_VULKAN : NB_SANDBOX_JOB, e);
    if (rc == 0)
        rc = kind->run(&work, e);
    if (work.device)
        work.device->ops->destroy(work.device);
    return rc == 0 ? nb_jobs_files_check(&files, e) : rc;
}

int nb_jobs_run(char **args)
{
    const struct nb_work_kind *kind = NULL;
    struct nb_link_job job;
    struct nb_error error = {""};
    const int stores = !strcmp(args[0], "store");
    if (!stores && strcmp(args[0], "run") != 0)
        return 2;
    int rc = nb_link_receive(&job, NB_LINK_JOB, sizeof(job));
    if (rc == 0 && stores)
        rc = store(&job, &error);
    else if (rc == 0)
        rc = (kind = find_kind(&job, &error)) ? run(kind, job.idle != 0, &error) : -ENOTSUP;
    return finish(rc, kind, &error);
}
