// What eval finds of a file, kept with it.
#include <stdlib.h>
#include <string.h>

#include "tools/cli/pipeline/pipeline.h"

// All that the figures depend on, beside the file.
static json_t *describe(const struct pipeline *p)
{
    const struct eval *e = &p->judge;
    json_t *inputs = pipeline_stamps(&e->text_files), *tasks = pipeline_stamps(&e->task_files);
    json_array_extend(inputs, tasks);
    json_decref(tasks);
    if (e->passages_file)
        json_array_append_new(inputs, pipeline_stamp(e->passages_file));
    return json_pack("{s:o, s:o, s:i, s:i, s:i, s:b, s:i, s:i, s:i}", "inputs", inputs, "reference",
                     pipeline_stamp(p->model), "windows", (int)e->max_windows, "window",
                     (int)e->window, "queries", (int)e->queries, "cost", e->cost, "prompt",
                     (int)e->prompt, "gen", (int)e->gen, "runs", (int)e->runs);
}

// One file's object of what eval finds, and how it was found.
static int measure(struct eval *e, const char *path, json_t *story, const char *key)
{
    json_t *found = NULL;
    char *const names[] = {(char *)path};
    int status = eval_run(e, names, 1, &found);
    if (status == CLI_OK) {
        json_object_set(story, key, json_array_get(json_object_get(found, "models"), 0));
        json_object_set(story, "method", json_object_get(found, "method"));
    }
    json_decref(found);
    return status;
}

// Measures where `by` is not what the story's figures were found by.
static int judge(const struct pipeline *p, struct eval *e, const char *name, const char *key,
                 json_t *by, json_t *story)
{
    char *path = pipeline_path(p, name, ".gguf"), known_by[32];
    int status = CLI_OK;
    snprintf(known_by, sizeof(known_by), "%s_by", key);
    if (!json_equal(json_object_get(story, known_by), by)) {
        status = measure(e, path, story, key);
        if (status == CLI_OK) {
            json_object_set(story, known_by, by);
            status = pipeline_keep(p, name, PIPELINE_STORY, story);
        }
    }
    json_decref(by);
    free(path);
    return status;
}

int pipeline_judge(struct pipeline *p, const char *name, json_t *story)
{
    return judge(p, &p->judge, name, "judged", describe(p), story);
}

int pipeline_time(struct pipeline *p, const char *name, json_t *story, double *ret_ms)
{
    struct eval e = eval_usual();
    e.common = p->common;
    e.cost = true;
    e.prompt = p->judge.prompt;
    e.gen = p->judge.gen;
    e.runs = p->judge.runs;
    json_t *by = json_pack("{s:i, s:i, s:i}", "prompt", (int)e.prompt, "gen", (int)e.gen, "runs",
                           (int)e.runs);
    int status = judge(p, &e, name, "timed", by, story);
    *ret_ms = json_number_value(
        json_object_get(json_object_get(json_object_get(story, "timed"), "cost"), "ms_per_token"));
    return status;
}
