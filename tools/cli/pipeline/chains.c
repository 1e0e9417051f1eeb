// Chains, one after the other: each step is made, judged and held against its targets before the
// next begins. Chains that begin alike share their files.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli/pipeline/pipeline.h"

// Where a chain is.
struct walk {
    struct pipeline *p;
    const struct pipeline_chain *chain;
    size_t at;                // the step
    char name[PIPELINE_FILE]; // of its file: the steps so far, with "+" between them
    char *from;               // the file before it; freed with the walk
    json_t *rows, *models;    // of all files so far
    json_t *missed;           // by this chain
    json_t **method;          // how eval measures
};

static const struct pipeline_step *step_of(const struct walk *w)
{
    return &w->p->steps[w->chain->step[w->at]];
}

// The job's recipe, with what is to fit filled in. An exit status.
static int fill(struct walk *w, json_t *recipe, json_t *row)
{
    const struct pipeline_step *s = step_of(w);
    json_t *shapes = NULL;
    int status = CLI_OK;
    if (pipeline_fits(recipe, "target"))
        json_object_set_new(recipe, "target",
                            json_pack("{s:O}", "size", json_object_get(w->p->targets, "size")));
    if (s->layers || pipeline_fits(recipe, "weights"))
        status =
            pipeline_search(w->p, w->chain, w->at, w->name, w->from, recipe, w->missed, &shapes);
    if (shapes)
        json_object_set_new(row, "shapes", shapes);
    return status;
}

static void check_targets(struct walk *w, const json_t *judged)
{
    if (step_of(w)->targets)
        pipeline_targets_missed(step_of(w)->targets, judged, w->missed);
    if (w->at + 1 == w->chain->n)
        pipeline_targets_missed(w->p->targets, judged, w->missed);
}

static void tell(const struct walk *w, const json_t *judged)
{
    const json_t *bytes = json_object_get(judged, "file_bytes"),
                 *kld = json_object_get(judged, "kld_mean"), *missed;
    size_t i;
    if (w->p->common.json)
        return;
    printf("%s: %s", w->name, cli_bytes((uint64_t)json_integer_value(bytes)));
    if (json_is_number(kld))
        printf(", KL divergence %.4g", json_number_value(kld));
    json_array_foreach(w->missed, i, missed)
        printf("; %s", json_string_value(missed));
    printf("\n");
    fflush(stdout);
}

// Makes and judges the step's file, and adds it to what was found, once for all chains.
static int make(struct walk *w, json_t *recipe, json_t *row)
{
    const struct pipeline_step *s = step_of(w);
    struct pipeline_job job = {.name = w->name,
                               .from = w->from,
                               .trains = s->trains,
                               .recipe = recipe,
                               .texts = &s->texts};
    json_t *story = NULL;
    int status = pipeline_make(w->p, &job, &story);
    if (status == CLI_OK)
        status = pipeline_judge(w->p, w->name, story);
    json_t *judged = json_object_get(story, "judged");
    if (status == CLI_OK) {
        json_object_set(row, "recipe", recipe);
        if (json_object_get(story, "seconds"))
            json_object_set(row, "seconds", json_object_get(story, "seconds"));
        check_targets(w, judged);
        tell(w, judged);
        json_object_set(*w->method, "eval", json_object_get(story, "method"));
        json_object_set(w->models, w->name, judged);
        json_object_set(w->rows, w->name, row);
    }
    json_decref(story);
    return status;
}

static int take_step(struct walk *w)
{
    const struct pipeline_step *s = step_of(w);
    const size_t len = strlen(w->name);
    json_t *recipe = json_deep_copy(s->recipe);
    snprintf(w->name + len, sizeof(w->name) - len, "%s%s", w->at ? "+" : "", s->name);
    json_t *row = json_pack("{s:s, s:s}", "file", w->name, "step", s->name);
    int status = fill(w, recipe, row);
    if (status == CLI_OK && !json_array_size(w->missed))
        status = make(w, recipe, row);
    json_decref(row);
    json_decref(recipe);
    free(w->from);
    w->from = pipeline_path(w->p, w->name, ".gguf");
    return status;
}

// A chain's row: its last file, and which targets it misses, and where.
static int run_chain(struct walk *w, json_t *chains)
{
    int status = CLI_OK;
    w->missed = json_array();
    w->from = strdup(w->p->model);
    *w->name = '\0';
    for (w->at = 0; w->at < w->chain->n && status == CLI_OK && !json_array_size(w->missed); w->at++)
        status = take_step(w);
    json_t *row = json_pack("{s:s, s:o}", "file", w->name, "missed", w->missed);
    if (json_array_size(w->missed))
        json_object_set_new(row, "stopped_at",
                            json_string(w->p->steps[w->chain->step[w->at - 1]].name));
    json_array_append_new(chains, row);
    free(w->from);
    return status;
}

// The file of a chain that meets all targets and has the least divergence (of encoders the largest
// cosine; where neither is known the fewest bytes), or NULL.
static const char *best_of(const json_t *chains, const json_t *models)
{
    const char *best = NULL;
    double least = 0;
    size_t i;
    json_t *chain;
    json_array_foreach(chains, i, chain) {
        const char *file = json_string_value(json_object_get(chain, "file"));
        const json_t *model = json_object_get(models, file),
                     *kld = json_object_get(model, "kld_mean"),
                     *cosine = json_object_get(json_object_get(model, "vectors"), "cosine");
        const double loss = json_is_number(kld) ? json_number_value(kld)
                            : json_is_number(cosine)
                                ? -json_number_value(cosine)
                                : json_number_value(json_object_get(model, "file_bytes"));
        if (json_array_size(json_object_get(chain, "missed")) || (best && loss >= least))
            continue;
        best = file;
        least = loss;
    }
    return best;
}

static json_t *values_of(json_t *object)
{
    json_t *list = json_array(), *value;
    const char *key;
    json_object_foreach(object, key, value)
        json_array_append(list, value);
    json_decref(object);
    return list;
}

int pipeline_run(struct pipeline *p, json_t **ret_found)
{
    json_t *rows = json_object(), *models = json_object(), *chains = json_array(),
           *method = json_object();
    int status = CLI_OK;
    for (size_t i = 0; i < p->n_chains && status == CLI_OK; i++) {
        struct walk w = {
            .p = p, .chain = &p->chains[i], .rows = rows, .models = models, .method = &method};
        status = run_chain(&w, chains);
    }
    const char *best = best_of(chains, models);
    *ret_found = json_pack("{s:s, s:o?, s:O, s:o}", "reference", p->model, "method",
                           json_incref(json_object_get(method, "eval")), "targets", p->targets,
                           "chains", chains);
    json_object_set_new(*ret_found, "best", best ? json_string(best) : json_null());
    json_object_set_new(*ret_found, "steps", values_of(rows));
    json_object_set_new(*ret_found, "models", values_of(models));
    eval_label(json_object_get(*ret_found, "models"));
    json_decref(method);
    return status;
}
