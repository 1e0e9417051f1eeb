// Files that jobs make. What was asked for lies beside each file, so that whoever asks for the same
// again has it, and a job's number while it runs, so that the next run takes it up.
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/cli/jobs.h"
#include "tools/cli/pipeline/pipeline.h"

#define BEGUN ".job"

char *pipeline_path(const struct pipeline *p, const char *name, const char *suffix)
{
    char *path = NULL;
    if (asprintf(&path, "%s/%s%s", p->folder, name, suffix) < 0)
        exit(cli_error("out of memory"));
    return path;
}

json_t *pipeline_stamp(const char *path)
{
    struct stat st = {0};
    if (stat(path, &st) < 0)
        st.st_size = -1;
    return json_pack("{s:s, s:I, s:I}", "path", path, "bytes", (json_int_t)st.st_size, "modified",
                     (json_int_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec);
}

json_t *pipeline_stamps(const struct option_list *paths)
{
    json_t *stamps = json_array();
    for (size_t i = 0; i < paths->n; i++)
        json_array_append_new(stamps, pipeline_stamp(paths->items[i]));
    return stamps;
}

int pipeline_open_folder(const struct pipeline *p, const char *name)
{
    char *path = pipeline_path(p, name, "");
    struct stat st;
    int status = CLI_OK;
    if (mkdir(path, 0777) < 0 && (errno != EEXIST || stat(path, &st) < 0 || !S_ISDIR(st.st_mode)))
        status = cli_error("%s: %s", path, strerror(errno));
    free(path);
    return status;
}

void pipeline_remove_folder(const struct pipeline *p, const char *name, const char *begin)
{
    char *path = pipeline_path(p, name, "");
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        if (!strncmp(entry->d_name, begin, strlen(begin)))
            unlinkat(dirfd(folder), entry->d_name, 0);
    if (folder)
        closedir(folder);
    rmdir(path);
    free(path);
}

// --- What lies beside a file

json_t *pipeline_recall(const struct pipeline *p, const char *name, const char *suffix)
{
    char *path = pipeline_path(p, name, suffix);
    json_t *found = json_load_file(path, JSON_REJECT_DUPLICATES, NULL);
    free(path);
    if (json_is_object(found))
        return found;
    json_decref(found);
    return json_object();
}

int pipeline_keep(const struct pipeline *p, const char *name, const char *suffix,
                  const json_t *object)
{
    char *path = pipeline_path(p, name, suffix);
    int fd, status = cli_output_open(path, true, &fd);
    if (status == CLI_OK) {
        if (json_dumpfd(object, fd, JSON_INDENT(1)) < 0)
            status = cli_error("%s: %s", path, strerror(errno));
        status = cli_output_close(path, true, fd, status);
    }
    free(path);
    return status;
}

static void remove_beside(const struct pipeline *p, const char *name, const char *suffix)
{
    char *path = pipeline_path(p, name, suffix);
    unlink(path);
    free(path);
}

// --- Jobs

// All that the file depends on.
static json_t *describe(const struct pipeline *p, const struct pipeline_job *job)
{
    return json_pack("{s:s, s:O, s:o, s:o, s:o}", "kind", job->trains ? "distill" : "compress",
                     "recipe", job->recipe, "from", pipeline_stamp(job->from), "texts",
                     pipeline_stamps(job->texts), "model", pipeline_stamp(p->model));
}

static int start(const struct pipeline *p, const struct pipeline_job *job, uint64_t *ret_id)
{
    char *recipe = json_dumps(job->recipe, JSON_COMPACT);
    // The whole model teaches, however little of it is left.
    const bool taught = job->trains && strcmp(job->from, p->model) != 0;
    const struct nibble_compress_options options = {.size = sizeof(options),
                                                    .detached = true,
                                                    .recipe = recipe,
                                                    .kind = job->trains                ? "distill"
                                                            : jobs_learns(job->recipe) ? "weighted"
                                                                                       : NULL,
                                                    .calibration = job->texts->items,
                                                    .n_calibration = job->texts->n,
                                                    .teacher = taught ? p->model : NULL};
    int rc = nibble_compress(p->connection, job->from, &options, ret_id);
    free(recipe);
    return rc < 0 ? cli_failed(p->connection, job->from, rc) : CLI_OK;
}

// The row of a job that the service has, or one of id 0.
static struct nibble_jobs_row find_job(const struct pipeline *p, uint64_t id)
{
    size_t n = 0;
    struct nibble_jobs_row *rows = cli_jobs(p->connection, &n), found = {.id = 0};
    for (size_t i = 0; rows && i < n; i++)
        if (rows[i].id == id)
            found = rows[i];
    free(rows);
    return found;
}

// The job that an earlier run has begun for the same, or 0.
static uint64_t taken_up(const struct pipeline *p, const char *name, const json_t *asked)
{
    json_t *begun = pipeline_recall(p, name, BEGUN);
    const struct nibble_jobs_row row =
        find_job(p, (uint64_t)json_integer_value(json_object_get(begun, "id")));
    const bool same =
        json_equal(json_object_get(begun, "asked"), asked) &&
        row.started_s == (uint64_t)json_integer_value(json_object_get(begun, "started"));
    json_decref(begun);
    return same && row.id && strcmp(row.state, "failed") != 0 ? row.id : 0;
}

static int begin(const struct pipeline *p, const struct pipeline_job *job, json_t *asked,
                 uint64_t *ret_id)
{
    int status = start(p, job, ret_id);
    if (status != CLI_OK)
        return status;
    json_t *begun = json_pack("{s:I, s:I, s:O}", "id", (json_int_t)*ret_id, "started",
                              (json_int_t)find_job(p, *ret_id).started_s, "asked", asked);
    status = pipeline_keep(p, job->name, BEGUN, begun);
    json_decref(begun);
    return status;
}

// The file comes last: one that is there has what lies beside it.
static int fetch(const struct pipeline *p, const struct pipeline_job *job, uint64_t id,
                 json_t *story)
{
    char *path = pipeline_path(p, job->name, ".gguf");
    json_t *report = jobs_json(p->connection, id, JOBS_REPORT);
    int status = report ? CLI_OK : cli_error("job %" PRIu64 " has no report that can be read", id);
    json_object_set_new(story, "report", report ? report : json_null());
    jobs_warn(report);
    if (status == CLI_OK)
        status = pipeline_keep(p, job->name, PIPELINE_STORY, story);
    if (status == CLI_OK)
        status = jobs_save(p->connection, id, JOBS_MODEL, path, true);
    if (status == CLI_OK)
        (void)nibble_jobs_control(p->connection, id, NIBBLE_JOBS_CANCEL); // it is forgotten
    free(path);
    return status;
}

// A job that has failed has nothing that is worth keeping.
static bool forget_failed(const struct pipeline *p, uint64_t id)
{
    const bool failed = !strcmp(find_job(p, id).state, "failed");
    if (failed)
        (void)nibble_jobs_control(p->connection, id, NIBBLE_JOBS_CANCEL);
    return failed;
}

static int wait_for(const struct pipeline *p, struct pipeline_job *job, uint64_t id, double began,
                    json_t *story, bool *ret_gave_up)
{
    int rc = jobs_await(p->connection, id, job->name);
    if (rc >= 0 && began > 0)
        json_object_set_new(story, "seconds", json_real(cli_now() - began));
    if (rc >= 0)
        return fetch(p, job, id, story);
    if (rc == NIBBLE_E_CLOSED)
        return cli_error("%s: the daemon is gone; its job goes on by itself when it is back, and "
                         "the same command takes it up",
                         job->name);
    snprintf(job->why, sizeof(job->why), "%s", nibble_error(p->connection));
    *ret_gave_up = forget_failed(p, id) && job->may_fail;
    return *ret_gave_up ? CLI_OK : cli_error("%s: %s", job->name, job->why);
}

static int run_job(const struct pipeline *p, struct pipeline_job *job, json_t *asked,
                   json_t **ret_story)
{
    uint64_t id = taken_up(p, job->name, asked);
    double began = 0;
    bool none = false;
    int status = CLI_OK;
    if (!id) {
        began = cli_now();
        status = begin(p, job, asked, &id);
    }
    json_t *story = json_pack("{s:O}", "asked", asked);
    if (status == CLI_OK)
        status = wait_for(p, job, id, began, story, &none);
    if (status == CLI_OK)
        remove_beside(p, job->name, BEGUN);
    if (status != CLI_OK || none) {
        json_decref(story);
        story = NULL;
    }
    *ret_story = story;
    return status;
}

// Whether the file's place is free: nobody else's file is there.
static bool is_free(const char *path, const json_t *story)
{
    return access(path, F_OK) < 0 || json_object_get(story, "asked");
}

// What lies beside a file goes first, as it is written first.
void pipeline_rename(const struct pipeline *p, const char *from, const char *to)
{
    static const char *const suffixes[] = {PIPELINE_STORY, ".gguf"};
    json_t *story = pipeline_recall(p, to, PIPELINE_STORY);
    char *path = pipeline_path(p, to, ".gguf");
    const bool free_place = is_free(path, story);
    if (free_place)
        unlink(path);
    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]) && free_place; i++) {
        char *old = pipeline_path(p, from, suffixes[i]), *new = pipeline_path(p, to, suffixes[i]);
        (void)rename(old, new); // else it is made anew
        free(new);
        free(old);
    }
    free(path);
    json_decref(story);
}

int pipeline_make(const struct pipeline *p, struct pipeline_job *job, json_t **ret_story)
{
    json_t *asked = describe(p, job), *story = pipeline_recall(p, job->name, PIPELINE_STORY);
    char *path = pipeline_path(p, job->name, ".gguf");
    int status = CLI_OK;
    *job->why = '\0';
    if (!is_free(path, story)) {
        status = cli_error("%s is there, and no pipeline has made it: name another folder", path);
    } else if (access(path, F_OK) < 0 || !json_equal(json_object_get(story, "asked"), asked)) {
        unlink(path); // of another recipe
        json_decref(story);
        status = run_job(p, job, asked, &story);
    }
    json_decref(asked);
    free(path);
    *ret_story = story;
    return status;
}
